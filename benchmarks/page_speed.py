"""How fast the planner page answers, in a real browser: after its start, after a change, after many.

    python -m benchmarks.page_speed [--out FILE]

The server is a process of its own with an empty plan cache. Needs playwright and Chromium.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

from playwright.sync_api import sync_playwright

CHANGES = (
    ("seq", "4096"),
    ("r", "64"),
    ("gradient_checkpointing", "no"),
    ("precision", "bf16"),
    ("batch", "2"),
    ("optim", "adamw_8bit"),
    ("recipe", "trl"),
    ("precision", "nf4"),
    ("seq", "1024"),
    ("gpu", "A100-SXM4-80GB"),
)
"""Fields of the form and their new values, for Llama-3.1-8B; none was planned before."""

WATCH = """() => {
  window.asked = 0; window.took = [];
  new MutationObserver(() => {
    if (document.getElementById("answer").getAttribute("aria-busy") === "false" && window.asked) {
      window.took.push(performance.now() - window.asked); window.asked = 0;
    }
  }).observe(document.getElementById("answer"), {attributes: true, attributeFilter: ["aria-busy"]});
}"""
CHANGE = """([name, value]) => {
  const field = document.getElementById(name);
  field.value = value; window.asked = performance.now();
  field.dispatchEvent(new Event("change", {bubbles: true}));
}"""
MANY = """() => { for (let rank = 1; rank <= 20; rank++) {
  const field = document.getElementById("r");
  field.value = rank; window.asked = performance.now();
  field.dispatchEvent(new Event("change", {bubbles: true}));
} }"""


def main() -> None:
    """Run all trials and print, or write, what they took in seconds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path)
    out = parser.parse_args().out
    with tempfile.TemporaryDirectory() as cache, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        began = time.perf_counter()
        server = _start(cache)
        try:
            lines = _trials(browser, server, began)
        finally:
            server.terminate()
            server.wait()
        browser.close()
    text = "\n".join(["# Speed of the planner page", "", *lines, ""])
    if out is None:
        print(text)
    else:
        out.write_text(text, encoding="utf-8")


def _start(cache: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "qbench", "serve", "--port", "0", "--no-open"]
    environment = os.environ | {"QBENCH_CACHE_DIR": cache}
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


def _trials(browser: Any, server: subprocess.Popen[str], began: float) -> list[str]:
    assert server.stdout is not None
    address = server.stdout.readline().strip()
    listening = time.perf_counter() - began
    page = browser.new_page()
    page.goto(address)
    page.wait_for_selector("#answer[aria-busy=false] .verdict")
    cold = time.perf_counter() - began
    page.evaluate(WATCH)
    page.wait_for_timeout(1000)
    took = [_change(page, name, value) for name, value in CHANGES]
    page.locator("#overview h2").scroll_into_view_if_needed()
    page.wait_for_timeout(200)
    beside = [_change(page, "r", str(rank)) for rank in (33, 34, 35, 36)]
    page.evaluate(MANY)
    began = time.perf_counter()
    slowest = 0.0
    while page.evaluate("window.asked"):
        slowest = max(slowest, _request(address))
    many = time.perf_counter() - began
    assert "rank 20" in page.inner_text(".verdict .scope")
    each = ", ".join(f"{name} {seconds:.2f}" for (name, _), seconds in zip(CHANGES, took, strict=True))
    return [
        f"- From the start of the process: listening after {listening:.2f} s, first answer after {cold:.2f} "
        "s (Llama-3.1-8B, nothing in the cache).",
        f"- A changed setting is answered after {statistics.median(took):.2f} s (median), {max(took):.2f} s "
        f"(longest): {each}.",
        f"- While the overview is planned, too: {max(beside):.2f} s (longest of {len(beside)}).",
        f"- 20 changes at once: the last is answered after {many:.2f} s; a request for a file meanwhile took "
        f"{slowest:.3f} s at most.",
    ]


def _change(page: Any, name: str, value: str) -> float:
    """Return the seconds from a change to its answer on the page."""
    before = page.evaluate("window.took.length")
    page.evaluate(CHANGE, [name, value])
    while page.evaluate("window.took.length") == before:
        time.sleep(0.01)
    page.wait_for_timeout(1200)
    return float(page.evaluate("window.took.at(-1)")) / 1000


def _request(address: str) -> float:
    began = time.perf_counter()
    with urllib.request.urlopen(f"{address}assets/page.css") as answer:
        answer.read()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
