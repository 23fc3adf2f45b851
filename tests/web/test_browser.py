"""The page in a real browser. Skipped where Chromium, playwright or axe is missing."""

from __future__ import annotations

import json
import shutil
import threading
import time
from pathlib import Path
from urllib.parse import quote

import pytest
from tiny import tiny_config

from qbench.records.store import write_records
from qbench.web.runs import open_runs
from qbench.web.server import PlannerPage, bind
from tests.report.sample_run import render_html, sample_run

sync_api = pytest.importorskip("playwright.sync_api")
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium to open the page with")

# A machine under load takes its time; only a page that hangs reaches this.
PATIENCE_S = 300
HOSTILE = "<b onclick=alert(1)>'\"\u202e"
SMALL = "model=HuggingFaceTB/SmolLM2-135M&seq=256"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("served")
    write_records(folder / HOSTILE / "records.jsonl", sample_run())
    page = PlannerPage(open_runs([folder / HOSTILE]), folder / "configs")
    server = bind(page, 0)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield page, f"http://127.0.0.1:{server.port}/"
    page.close()
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def page(browser):
    """A page of its own; whatever it writes to the console fails the test, and so does a foreign request."""
    context = browser.new_context(permissions=["clipboard-read", "clipboard-write"])
    opened = context.new_page()
    opened.set_default_timeout(PATIENCE_S * 1000)
    said, asked = [], []
    opened.on("console", lambda message: said.append(message.text))
    opened.on("pageerror", lambda error: said.append(str(error)))
    opened.on("request", lambda request: asked.append(request.url))
    yield opened
    assert said == []
    assert [
        url for url in asked if not url.startswith(("http://127.0.0.1:", "data:", "blob:", "file:"))
    ] == []
    context.close()


def open_page(page, served, query: str = SMALL) -> None:
    page.goto(f"{served[1]}?{query}")
    answered(page)


def answered(page) -> None:
    page.wait_for_selector("#answer[aria-busy=false] > :is(.verdict, .problem)")


def until(page, condition: str) -> None:
    """Wait for a condition in JavaScript; the page's policy forbids what playwright would do for it."""
    deadline = time.monotonic() + PATIENCE_S
    while not page.evaluate(condition):
        assert time.monotonic() < deadline, condition
        time.sleep(0.02)


def numbers(page) -> dict[str, list[str]]:
    """Return the cells of the table of numbers by the name of their row."""
    rows = page.eval_on_selector_all(
        "#numbers tr", "rows => rows.map(row => [...row.cells].map(c => c.innerText))"
    )
    return {name: cells for name, *cells in rows}


def test_choose_change_and_restore_from_the_link(page, served):
    open_page(page, served)
    assert "Fits on RTX 4090" in page.inner_text(".verdict")
    before = numbers(page)["Peak allocated"]
    page.select_option("#precision", "bf16")
    answered(page)
    page.fill("#seq", "512")
    until(page, "location.search.includes('seq=512')")
    answered(page)
    after = numbers(page)
    assert after["Peak allocated"] != before
    assert "bf16" in page.inner_text(".verdict .scope")
    other = page.context.new_page()
    other.goto(page.url)
    answered(other)
    assert numbers(other) == after
    assert other.input_value("#precision") == "bf16"
    assert other.input_value("#seq") == "512"
    page.locator("#overview").scroll_into_view_if_needed()
    page.wait_for_selector("#overview table")
    assert page.inner_text("#overview thead").split() == ["GPU", "Memory", "bf16", "nf4", "nf4-dq", "int8"]


def test_on_a_phone_the_verdict_stands_above_the_form(page, served):
    page.set_viewport_size({"width": 400, "height": 860})
    open_page(page, served)
    tops = [
        page.locator(part).bounding_box()["y"] for part in (".verdict", "#form", "#chart-memory", "#numbers")
    ]
    assert tops == sorted(tops)
    assert page.evaluate("document.documentElement.scrollWidth") <= 400


def test_hours_and_cost_of_ones_tokens_and_what_the_card_holds_are_shown(page, served):
    open_page(page, served)
    assert "Time for 10M tokens" in page.inner_text(".verdict")
    page.fill("#tokens", "2M")
    until(page, "document.querySelector('.verdict').innerText.includes('Cost of 2M tokens')")
    page.select_option("#recipe", "trl")
    until(page, "document.querySelector('.verdict .scope').innerText.includes('recipe trl, autocast bf16')")
    page.wait_for_selector("#limits h2")
    # The model has 8,192 positions.
    assert "Longest sequence with these settings: 8,192 tokens" in page.inner_text("#limits")
    links = page.locator(".points a")
    assert links.count() == page.locator(".points li").count() > 0


def test_settings_stand_side_by_side(page, served):
    open_page(page, served)
    page.click("text=Pin to compare")
    page.wait_for_selector("th:has-text('pin 1')")
    page.select_option("#precision", "bf16")
    until(page, "document.querySelector('#numbers').innerText.includes('bf16')")
    answered(page)
    assert numbers(page)["Precision"] == ["bf16", "nf4-dq"]
    assert "now" in page.inner_text("#chart-memory")
    ranges = page.eval_on_selector("#chart-memory .js-plotly-plot", "plot => plot._fullLayout.xaxis.range")
    assert ranges[0] == 0
    assert page.text_content("#chart-memory .xtitle") in ("On the device (GiB)", "On the device (MiB)")
    page.click("[aria-label='remove pin 1']")
    until(page, "!location.search.includes('pin')")
    answered(page)
    assert "Precision" not in numbers(page)


def test_a_dropped_config_is_planned(page, served, tmp_path: Path):
    open_page(page, served)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(tiny_config("meta-llama/Llama-3.1-8B")))
    page.set_input_files("#config", file)
    until(page, "document.querySelector('#model').value.startsWith('config-')")
    answered(page)
    assert "config-" in page.inner_text(".verdict .scope")
    for content, said in (
        ("[]", "must be a JSON object"),
        (" " * (2**20 + 1), "the limit is 1,048,576"),
    ):
        file.write_text(content)
        page.set_input_files("#config", file)
        until(page, f"document.querySelector('#dropped').textContent.includes({said!r})")


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("seq=0", "this page plans 1 to 1,048,576"),
        ("model=llama-9", "is not in the catalog; nearest:"),
        (f"precision={quote(HOSTILE)}", "allowed: fp32, bf16"),
        (f"{quote(HOSTILE)}=1", "unknown; allowed: model"),
        (f"model={quote('<img src=x onerror=alert(1)>' * 50)}", "is not in the catalog"),
    ],
)
def test_what_cannot_be_planned_is_said(page, served, query: str, said: str):
    open_page(page, served, query)
    assert said in page.inner_text("[role=alert]")
    assert page.query_selector("#answer b, #answer img") is None
    page.click("text=Reset")
    page.wait_for_selector(".verdict")
    assert page.query_selector("[role=alert]") is None


def test_texts_can_be_copied(page, served):
    open_page(page, served)
    page.click("text=Copy as command")
    until(page, "document.querySelector('#status').textContent === 'Copied.'")
    copied = page.evaluate("navigator.clipboard.readText()")
    assert copied.startswith("qbench plan HuggingFaceTB/SmolLM2-135M --precision nf4-dq")
    page.click("text=Copy as scenario")
    until(page, "navigator.clipboard.readText().then(text => text.startsWith('name:'))")


def test_twenty_quick_changes_leave_no_backlog(page, served):
    open_page(page, served)
    plans = served[0].plans
    before = plans.num_planned
    page.evaluate(
        """() => { const field = document.getElementById("r");
        for (let rank = 1; rank <= 20; rank++) {
          field.value = rank;
          field.dispatchEvent(new Event("change", {bubbles: true}));
        } }"""
    )
    until(page, "document.querySelector('.verdict .scope').innerText.includes('rank 20')")
    answered(page)
    # The first may be in hand when the last comes; those between may slip in before one another.
    assert plans.num_planned - before < 20
    # What follows the last answer, its longest sequence and the changes that fit, is asked for once.
    deadline = time.monotonic() + PATIENCE_S
    while plans.num_waiting:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    # A search for each of the twenty would take hundreds.
    assert plans.num_planned - before < 100


def test_the_keyboard_reaches_everything(page, served):
    open_page(page, served)
    wanted = {
        "model",
        "config",
        "gpu",
        "precision",
        "r",
        "batch",
        "seq",
        "gradient_checkpointing",
        "optim",
        "recipe",
    }
    seen = []
    for _ in range(30):
        page.keyboard.press("Tab")
        seen.append(page.evaluate("document.activeElement.id || document.activeElement.innerText"))
    assert wanted <= set(seen)
    assert {"Copy link", "Reset", "Pin to compare"} <= set(seen)
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline != "none"


def test_a_run_can_be_explored(page, served):
    open_page(page, served)
    assert page.inner_text("#runs summary") == HOSTILE
    link = page.get_attribute("#runs .points a", "href")
    page.click("text=Report with tables and charts")
    page.wait_for_selector(".js-plotly-plot .main-svg")
    assert page.inner_text("h1") == HOSTILE
    page.goto(served[1].rstrip("/") + link)
    answered(page)
    assert page.input_value("#precision") == "fp32"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_serious_fault(browser, served, tmp_path: Path, scheme: str):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    report = tmp_path / "report.html"
    report.write_text(render_html(sample_run(), "Sample"), encoding="utf-8")
    opened = browser.new_page(color_scheme=scheme)
    opened.set_default_timeout(PATIENCE_S * 1000)
    opened.goto(f"{served[1]}?{SMALL}&pin=seq%3D128")
    answered(opened)
    opened.locator("#overview h2").scroll_into_view_if_needed()
    opened.wait_for_selector("#overview table")
    opened.click("text=More settings")
    assert serious(axe, opened) == []
    opened.goto(f"{served[1]}?seq=0")
    answered(opened)
    assert serious(axe, opened) == []
    opened.goto(report.as_uri())
    opened.wait_for_selector(".js-plotly-plot .main-svg")
    assert serious(axe, opened) == []
    opened.close()


def serious(axe, page) -> list[tuple[str, str]]:
    """Return rule and first place of each fault of impact serious or critical."""
    found = axe.run(page).response["violations"]
    return [
        (fault["id"], fault["nodes"][0]["html"][:200])
        for fault in found
        if fault["impact"] in ("serious", "critical")
    ]


@pytest.mark.parametrize("width", [1440, 400])
def test_nothing_is_cut_off(page, served, width: int):
    page.set_viewport_size({"width": width, "height": 900})
    open_page(page, served, f"{SMALL}&pin=seq%3D128&pin=r%3D8")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    cut = page.eval_on_selector_all(
        ".js-plotly-plot",
        """plots => plots.flatMap(plot => [...plot.querySelectorAll("text")].filter(text => {
          const box = text.getBoundingClientRect(), frame = plot.getBoundingClientRect();
          return box.width && (box.left < frame.left - 1 || box.right > frame.right + 1);
        }).map(text => text.textContent))""",
    )
    assert cut == []
