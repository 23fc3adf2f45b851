from __future__ import annotations

import json
import re
import time
from dataclasses import replace
from html.parser import HTMLParser
from itertools import count, islice

import pytest

from qbench.report.content import gather_content
from tests.comparison.hand_made import finding, make_record
from tests.report.sample_run import SPEED, measurement, plan, render_html, render_markdown, sample_run

EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def page():
    return render_html(sample_run(), "A <title> & more")


class Structure(HTMLParser):
    """Collects the elements of a page, and complains about none that is left open."""

    VOID = ("meta", "link", "br", "img", "hr", "input")

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def count(self, tag):
        return sum(name == tag for name, _ in self.elements)


def figures_of(page):
    return json.loads(re.search(r'id="figures">(.*?)</script>', page, re.S).group(1))


def test_the_page_is_well_formed_and_asks_for_nothing(page):
    elements = Structure(page).elements
    assert not [tag for tag, attrs in elements if "src" in attrs]
    links = [attrs["href"] for _, attrs in elements if "href" in attrs]
    assert [link for link in links if not link.startswith("#record-")] == [
        "data:,",
        "report.csv",
        "report.charts.csv",
    ]
    policy = next(attrs["content"] for _, attrs in elements if attrs.get("http-equiv"))
    assert policy.startswith("default-src 'none';")


def test_plotly_is_in_the_page_once(page):
    assert page.count("plotly.js v") == 1
    assert len(page) < 8_000_000


def test_a_report_without_charts_carries_no_plotly():
    assert len(render_html([make_record()], "small")) < 100_000


def test_sentences_come_before_tables_and_charts(page):
    order = [
        "needs 6.41\u00a0GiB where",
        "QLoRA against LoRA</h2>",
        "Charts</h2>",
        "Points</h2>",
        "Environment and validity</h2>",
        "Caveats</h2>",
        "did not reach</h2>",
    ]
    places = [page.index(text) for text in order]
    assert places == sorted(places)


def test_every_chart_has_a_place(page):
    ids = {attrs["id"] for tag, attrs in Structure(page).elements if attrs.get("class") == "plot"}
    assert ids == set(figures_of(page))
    assert len(ids) == 14  # nine charts, two of them with two figures, the timeline with four


def test_each_number_leads_to_its_records(page):
    elements = Structure(page).elements
    ids = {attrs["id"] for tag, attrs in elements if tag == "tr" and "id" in attrs}
    assert ids == {f"record-{number}" for number in range(1, 54)}
    links = {attrs["href"] for tag, attrs in elements if tag == "a" and attrs["href"].startswith("#record-")}
    # A range of the processes of one point leads to its first.
    assert len(links) > 28
    assert {link[1:] for link in links} <= ids


def test_text_of_records_is_escaped_everywhere():
    skipped = [{"module": EVIL, "reason": EVIL, "params": 1, "share": 0.5}]
    fits = [{"gpu": EVIL, "fits": True}]
    detail = {"caveats": [EVIL], "skipped": skipped, "error": EVIL, "stderr_tail": EVIL, "fits": fits}
    records = []
    for record in [*sample_run(), make_record(kind="measurement", outcome="crashed", metrics={})]:
        records.append(
            replace(
                record,
                run_id=EVIL,
                point=record.point.model_copy(update={"model": f"org/{EVIL}"}),
                detail=record.detail | detail,
                environment=record.environment | {EVIL: EVIL, "device": EVIL},
            )
        )
    evil = render_html(records, EVIL)
    assert "alert(1)" in evil
    assert Structure(evil).count("script") == 4  # figures, plotly, drawing, sorting
    assert Structure(evil).count("img") == 0
    assert "<" not in re.search(r'id="figures">(.*?)</script>', evil, re.S).group(1)


def test_the_title_is_escaped(page):
    assert "<h1>A &lt;title&gt; &amp; more</h1>" in page


def test_numbers_are_sorted_by_value_and_columns_say_how(page):
    cell = re.search(r'<td class="n" data-k="([\d.]+)">14\.82 GiB</td>', page)
    assert float(cell.group(1)) / 2**30 == pytest.approx(14.82, abs=0.005)
    assert '<th scope="col" aria-sort="none"><button type="button">Saved</button></th>' in page


def test_failures_caveats_and_validity_are_shown(page):
    assert "Not all records ended ok: 1 oom of 53." in page
    assert "Tried to allocate 172.00 MiB" in page
    assert "cuBLAS workspaces are not planned yet." in page


def test_a_large_share_left_out_is_said_at_the_top():
    skipped = [{"module": "experts", "reason": "stacked", "params": 97, "share": 0.97}]
    page = render_html([make_record(precision="nf4", detail={"skipped": skipped})], "moe")
    assert (
        '<p class="warning">Quantization leaves out 97 % of the weights of Llama-2-7b-hf: experts (stacked).'
        in page
    )
    assert page.index("leaves out 97 %") < page.index("<h2>")


@pytest.mark.parametrize(
    ("shares", "said"),
    [
        ((0.1, 0.1), "20 % of the weights of Llama-2-7b-hf: m0 (why) and m1 (why)."),
        ((0.1, 0.3), "40 % of the weights of Llama-2-7b-hf: mostly m1 (why)."),
        ((0.1, 0.1, 0.1), "30 % of the weights of Llama-2-7b-hf: mostly m0 (why) and m1 (why)."),
    ],
)
def test_what_is_left_out_is_named_up_to_more_than_half(shares: tuple[float, ...], said: str):
    skipped = [
        {"module": f"m{i}", "reason": "why", "params": 1, "share": share} for i, share in enumerate(shares)
    ]
    (warning,) = gather_content([make_record(precision="nf4", detail={"skipped": skipped})]).warnings
    assert warning == f"Quantization leaves out {said}"


@pytest.mark.parametrize(
    ("verdicts", "said"),
    [
        (("ok", "ok"), "2 of 2 processes passed every check."),
        (("ok", "warn"), "2 of 2 processes passed every check, 1 with notes."),
        (("warn", "warn"), "2 of 2 processes passed every check, 2 with notes."),
        (
            ("warn", "invalid"),
            "1 of 2 processes passed every check, 1 with notes. "
            "The speed of 1 process is not valid and left out.",
        ),
    ],
)
def test_notes_are_no_failures(verdicts: tuple[str, str], said: str):
    records = [
        make_record(kind="measurement", detail={"repeat": repeat, "validity": [finding("name", verdict)]})
        for repeat, verdict in enumerate(verdicts)
    ]
    assert said in gather_content(records).validity


def test_a_plan_alone_says_that_nothing_was_measured():
    page = render_html([make_record()], "plan")
    assert "Nothing was measured: every number is planned." in page
    assert "bf16 LoRA of Llama-2-7b-hf needs 14.00\u00a0GiB" in page


def test_an_unfinished_loss_does_not_break_the_page():
    record = measurement(plan("nf4", 16), 0)
    broken = replace(record, metrics=record.metrics | {"loss": [3.0, float("nan"), float("inf")]})
    figures = figures_of(render_html([broken], "nan"))
    assert figures["chart-loss-0"]["data"][0]["y"] == [3.0, None, None]


def many_records():
    for number in count():
        planned = plan(list(SPEED)[number % 4], 1 + number // 4)
        yield planned
        yield from (measurement(planned, repeat) for repeat in range(3))


def test_ten_thousand_records_stay_small_and_quick():
    records = list(islice(many_records(), 10_000))
    started = time.process_time()
    page = render_html(records, "large")
    assert time.process_time() - started < 30
    assert len(page) < 8_000_000
    assert "The first 400 of 2,500 rows are shown; all records are in report.csv." in page


def test_validity_and_the_memory_of_the_card_are_shown_where_there_is_any(page):
    assert "Validity: what was found" not in page
    assert "Where the memory of the GPU went" not in page
    detail = {
        "validity": [finding("allocator_retries", "invalid", 2, "at the card's limit")],
        "reconciliation_bytes": {"device_bytes": 3 << 30, "reserved_bytes": 2 << 30},
    }
    record = make_record(kind="measurement", detail=detail)
    for text in (render_html([record], "void"), render_markdown([record], "void")):
        assert "Validity: what was found against the measurements" in text
        assert "limit" in text
        assert "Where the memory of the GPU went" in text
        assert "3.00 GiB" in text
        assert "0 of 1 process passed every check. The speed of 1 process is not valid and left out." in text
