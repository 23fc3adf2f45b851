"""The report in a real browser: no console error, charts drawn, tables sorted. Skipped without Chromium."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.report.sample_run import render_html, sample_run

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--enable-logging=stderr",
    "--v=0",
    "--virtual-time-budget=5000",
    "--hide-scrollbars",
    "--dump-dom",
]
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium to open the report with")


def open_page(folder: Path, page: str, width: int = 1280) -> tuple[str, list[str]]:
    """Return the document after its scripts ran, and what they wrote to the console."""
    file = folder / "page.html"
    file.write_text(page, encoding="utf-8")
    command = [str(BROWSER), *FLAGS, f"--window-size={width},900", f"--user-data-dir={folder / 'profile'}"]
    done = subprocess.run([*command, file.as_uri()], capture_output=True, text=True, timeout=120, check=True)
    return done.stdout, re.findall(r"^.*\bCONSOLE\b.*$", done.stderr, re.M)


def with_script(page: str, script: str) -> str:
    return page.replace("</body>", f"<script>{script}</script></body>")


@pytest.fixture(scope="module")
def page():
    return render_html(sample_run(), "Sample")


def test_charts_are_drawn_without_a_console_message(tmp_path, page):
    document, console = open_page(tmp_path, page)
    assert console == []
    plots = re.findall(r'<div class="plot js-plotly-plot" id="(chart-[a-z]+-\d)"', document)
    assert len(plots) == 14
    assert document.count('class="main-svg"') > 10
    assert document.count('class="point"') > 30


def test_a_console_error_would_be_seen(tmp_path, page):
    _, console = open_page(tmp_path, with_script(page, "throw new Error('planted')"))
    assert len(console) == 1
    assert "planted" in console[0]


def test_the_page_refuses_the_network(tmp_path, page):
    _, console = open_page(tmp_path, with_script(page, "fetch('http://127.0.0.1:9/').catch(() => {})"))
    assert any("Content Security Policy" in line for line in console)


SORT = """
const table = document.querySelector("table");
const column = [...table.querySelectorAll("th")].findIndex((th) => th.textContent === "Saved");
const button = table.querySelectorAll("th button")[column];
const first = () => table.tBodies[0].rows[0].cells[column].textContent;
button.focus();
const seen = [document.activeElement === button];
button.click(); seen.push(first(), button.parentElement.getAttribute("aria-sort"));
button.click(); seen.push(first(), button.parentElement.getAttribute("aria-sort"));
document.title = seen.join("|");
"""


def test_tables_sort_by_value(tmp_path, page):
    document, console = open_page(tmp_path, with_script(page, SORT))
    assert console == []
    # fp32 costs 12.60 GiB where measured; nf4-dq saves 8.41 GiB there.
    assert "<title>true|-12.60 GiB|ascending|8.41 GiB|descending</title>" in document


FILTER = """
const input = document.querySelector(".filter input");
const region = input.closest("label").nextElementSibling, rows = [...region.querySelectorAll("tbody tr")];
const shown = () => rows.filter((row) => row.getClientRects().length).length;
const type = (text) => { input.value = text; input.dispatchEvent(new Event("input")); };
const seen = [shown()];
type("nf4-dq measured"); seen.push(shown(), input.parentElement.querySelector("output").textContent);
type("no such row"); seen.push(shown());
type(""); seen.push(shown());
document.title = seen.join("|");
"""


def test_tables_filter_by_words(tmp_path, page):
    document, console = open_page(tmp_path, with_script(page, FILTER))
    assert console == []
    # 3 candidates at 7 ranks planned, and at 2 ranks measured.
    assert "<title>27|2|2 of 27|0|27</title>" in document


REVEAL = """
addEventListener("load", () => {
  const link = document.querySelector("figure a[href^='#record-']");
  link.click();
  setTimeout(() => {
    const row = document.getElementById(link.hash.slice(1));
    document.title = `${row.closest("details").open} ${row.cells[0].textContent === link.hash.slice(8)}`;
  }, 200);
});
"""


def test_a_number_of_a_record_leads_to_its_row(tmp_path, page):
    document, console = open_page(tmp_path, with_script(page, REVEAL))
    assert console == []
    assert "<title>true true</title>" in document


TOGGLE = """
const figure = document.getElementById("peak");
figure.querySelector(".legend button").click();
document.title = String(figure.querySelector(".plot").data[0].visible);
"""


def test_the_legend_hides_a_category(tmp_path, page):
    document, console = open_page(tmp_path, with_script(page, TOGGLE))
    assert console == []
    assert "<title>false</title>" in document


FRAME = """
const frame = document.querySelector("iframe");
frame.addEventListener("load", () => {
  const root = frame.contentDocument.documentElement;
  document.title = root.clientWidth + " " + root.scrollWidth;
});
frame.srcdoc = document.getElementById("page").textContent.replaceAll("END-OF-SCRIPT", "</" + "script");
"""


@pytest.mark.parametrize("width", [400, 1280])
def test_only_tables_scroll_sideways(tmp_path, page, width):
    # Inside a frame, for a browser window cannot be as narrow as a phone.
    frame = f"<title></title><iframe style='border:0;width:{width}px;height:900px'></iframe>"
    text = f"<script type='text/plain' id='page'>{page.replace('</script', 'END-OF-SCRIPT')}</script>"
    document, console = open_page(tmp_path, f"{frame}{text}<script>{FRAME}</script>", width=1400)
    assert console == []
    assert f"<title>{width} {width}</title>" in document


WIDTHS = """
const first = document.querySelector(".scroll");
document.title = "too wide by " + (first.scrollWidth - first.clientWidth);
"""


def test_the_comparison_needs_no_scrolling_on_a_laptop(tmp_path, page):
    document, console = open_page(tmp_path, with_script(page, WIDTHS), width=1280)
    assert console == []
    assert "<title>too wide by 0</title>" in document
