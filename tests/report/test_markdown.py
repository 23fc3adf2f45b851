from __future__ import annotations

import re
from dataclasses import replace

from qbench.records.record import Record
from qbench.report.content import LONG_ERROR, gather_content
from qbench.report.markdown import (
    COMMENT_LIMIT,
    MOST_ROWS,
    SUMMARY_LIMIT,
    comment_text,
    escaped,
    table_text,
)
from qbench.report.table import Column, Table
from tests.comparison.hand_made import make_record
from tests.report.sample_run import SPEED, measurement, plan, render_markdown, sample_run


def test_sentences_then_the_table_then_folded_details():
    text = render_markdown(sample_run(), "A title")
    lines = text.splitlines()
    assert lines[0] == "## A title"
    assert lines[2].startswith(
        "**On RTX 4090 QLoRA (nf4-dq) trains Llama-2-7b-hf at rank 256 where bf16 LoRA"
    )
    assert lines[4].startswith(
        "- QLoRA (nf4-dq) of Llama-2-7b-hf needs 6.41 GiB where bf16 LoRA needs 14.82 GiB"
    )
    assert text.index("| Rank | Candidate |") < text.index("<details>")
    assert text.count("<details>") == text.count("</details>") == 7
    assert text.endswith("\n")
    assert not text.endswith("\n\n")


def interrupted(begun: str = "sweep-20261124T120000Z", resumed: str = "") -> list[Record]:
    """Return four plans of a run, two of them measured, at once or when the run was taken up again."""
    plans = [replace(plan(precision, 16), run_id=begun) for precision in SPEED]
    measured = [measurement(plans[0], 0), measurement(plans[2], 0)]
    return [*plans, *(replace(record, run_id=resumed or begun) for record in measured)]


def test_a_run_that_is_not_finished_says_so_first():
    said = (
        "Not finished: 2 of 4 planned points are not measured yet (sweep). "
        "To continue, repeat the qbench run command."
    )
    for records in (interrupted(), interrupted(resumed="sweep-20261125T060000Z")):
        assert gather_content(records).sentences[0] == said
        assert render_markdown(records, "t").splitlines()[2] == f"**{said}**"
    one_left = [*interrupted(), replace(measurement(interrupted()[1], 0), run_id="another")]
    assert gather_content(one_left).sentences[0].startswith("Not finished: 1 of 4 planned points is not")


def failed(records: list[Record], *errors: str) -> list[Record]:
    """Return the records, each ended in an error."""
    return [
        replace(record, outcome="error", metrics={}, detail={"error": error})
        for record, error in zip(records, errors, strict=True)
    ]


def test_failures_are_told_first_by_kind_and_compare_nothing():
    plans = [plan(precision, 16) for precision in ("bf16", "nf4")]
    broken = failed(plans, "OSError: no config.json\nin tiny", "OSError: no config.json")
    content = gather_content(broken)
    assert content.sentences == ["2 plans failed: OSError: no config.json."]
    assert (content.comparison, content.headline) == (None, [])
    assert content.failures is not None
    assert render_markdown(broken, "t").splitlines()[2] == "**2 plans failed: OSError: no config.json.**"
    measured = [measurement(each, repeat) for each in plans for repeat in range(2)]
    worse = failed(measured, "first", "second. ", "third", "second")
    assert gather_content([*broken, *worse]).sentences == [
        "2 plans failed: OSError: no config.json.",
        "4 measurements failed: second (and 2 other errors).",
    ]
    # What was measured is told all the same, and running out of memory is no failure.
    assert gather_content([*broken, *measured]).sentences[1].startswith("QLoRA (nf4) of Llama-2-7b-hf needs")
    gone = [replace(record, outcome="oom") for record in broken]
    assert gather_content(gone).unfinished == []
    assert "ran out of memory" in gather_content(gone).sentences[0]


def test_a_failure_without_or_with_a_very_long_error_is_one_short_sentence():
    (unknown,) = failed([plan("bf16", 16)], "")
    assert gather_content([unknown]).sentences == ["1 plan failed: the error is not known."]
    (long,) = failed([plan("bf16", 16)], "x" * 70_000)
    assert gather_content([long]).sentences == [f"1 plan failed: {'x' * LONG_ERROR} (shortened)."]


def test_what_nobody_set_out_to_measure_is_not_unfinished():
    plans_only, other_run = interrupted()[:4], interrupted(resumed="other-20261124T120000Z")
    out_of_memory = replace(interrupted()[4], outcome="oom", metrics={}, point=plans_only[1].point)
    last = replace(out_of_memory, point=plans_only[3].point)
    for records in (plans_only, other_run, [*interrupted(), out_of_memory, last]):
        assert gather_content(records).unfinished == []


def test_a_table():
    table = Table(
        columns=(Column("Name"), Column("Peak", "bytes")), rows=(("a", 2**30), ("b", None)), notes=("Why.",)
    )
    assert table_text(table) == (
        "| Name | Peak |\n"
        "|---|---:|\n"
        "| a | 1.00 GiB |\n"
        "| b | n/a |\n"
        "\n"
        "Why."
    )  # fmt: skip


def test_text_cannot_become_markup():
    assert (
        escaped("a|b\nc `d` *e* [f](g) <h> & \\") == "a\\|b c \\`d\\` \\*e\\* \\[f\\](g) &lt;h&gt; &amp; \\\\"
    )
    text = render_markdown([make_record(model="org/<script>|x", precision=p) for p in ("bf16", "nf4")], "<b>")
    assert "<script>" not in text
    assert "<b>" not in text


def test_it_fits_a_comment():
    records = [make_record(r=r, precision=p) for r in range(1, 501) for p in ("bf16", "nf4")]
    text = render_markdown(records, "large")
    assert len(text) < 65_536
    assert f"The first {MOST_ROWS} of 500 rows are shown" in text


def test_the_form_for_a_pull_request_keeps_to_its_limit_and_says_what_is_missing():
    content = gather_content(sample_run())
    whole = comment_text(content, "t")
    assert whole.count("<details>") == 7
    assert "left out" not in whole
    for limit in (2_000, 5_000, 9_000):
        text = comment_text(content, "t", limit)
        assert len(text.encode()) <= limit
        assert re.search(r"\d sections? (is|are) too long for this place and left out", text)
        assert text.startswith("## t\n\n**On RTX 4090")
        assert text.endswith(whole.splitlines()[-1] + "\n")
        assert text.count("<details>") == text.count("</details>")


def test_it_keeps_to_any_limit_and_says_what_is_missing_as_soon_as_it_can():
    wide = [replace(record, run_id="\U0001f4a9" * 9) for record in sample_run()]
    content = replace(gather_content(wide), scope="Größe. " * 30)
    whole = comment_text(content, "\U0001f4a9", 100_000)
    for limit in (*range(-3, 1_500, 7), *range(len(whole.encode()) - 20, len(whole.encode()) + 200, 7)):
        text = comment_text(content, "\U0001f4a9", limit)
        assert len(text.encode()) <= max(0, limit)
        if limit < 100:
            assert text == ""
        else:
            assert text == whole or "too long for this place and left out" in text
            assert text.count("<details>") == text.count("</details>")


def test_hostile_names_neither_break_the_limit_nor_become_markup():
    name = "</details><script>alert(1)</script>|`_x_`" + "A" * 10_000
    evil = f"\u202e{name}"
    records = [make_record(model=name, precision=p, r=r) for r in range(1, 30) for p in ("bf16", "nf4")]
    text = comment_text(gather_content(records), evil[:80])
    assert len(text) <= 65_536
    assert "<script>" not in text
    assert text.count("<details>") == text.count("</details>")


def test_a_warning_stands_out():
    skipped = [{"module": "experts", "reason": "stacked", "params": 97, "share": 0.97}]
    text = render_markdown([make_record(precision="nf4", detail={"skipped": skipped})], "moe")
    assert "> **Note:** Quantization leaves out 97 %" in text


def test_two_thousand_records_with_hostile_names_keep_to_both_limits():
    evil = "</details><script>|`_x_`\u202e" + "\U0001f4a9" * 3_000
    records = []
    for number in range(500):
        planned = plan(list(SPEED)[number % 4], 1 + number // 4)
        point = planned.point.model_copy(update={"model": f"org/{evil}{number % 7}"})
        planned = replace(planned, run_id=evil, point=point, detail=planned.detail | {"caveats": [evil]})
        records += [planned, *(measurement(planned, repeat) for repeat in range(3))]
    content = gather_content(records)
    for limit in (COMMENT_LIMIT, SUMMARY_LIMIT):
        text = comment_text(content, evil, limit)
        assert len(text.encode()) <= limit
        assert text.count("<details>") == text.count("</details>")
        assert "<script" not in text
