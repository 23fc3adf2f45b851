"""What `qbench fit` prints: whole text of answers made by hand, and the shape of real ones."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from qbench.cli.fit_text import fit_lines
from qbench.cli.main import main
from qbench.planner.changes import Relief
from qbench.planner.fit import Axis, Largest, Probe
from qbench.records.record import Record
from qbench.scenario.expand import point_from
from qbench.units import GIB, MIB
from tests.tiny import write_tiny_model

CARD = ("--gpu-memory", "467MiB", "--compute-capability", "8.9")


def answer(precision: str, value: int | None, **fit: Any) -> Largest:
    """Return an answer in steps of 64, one step above which two changes were planned."""
    settings = {"precision": precision, "seq_len": value or 64, "recipe": "plain"}
    point = point_from({"model": "gpt2"}, settings)
    held = {"gpu": "L4", "fits": value is not None, "verdict": "fits", "headroom_bytes": 5 * MIB}
    record = Record(
        run_id="plan",
        point=point,
        kind="plan",
        outcome="ok",
        metrics={},
        detail={"fits": [held | fit], "caveats": []},
        environment={"device": "cuda"},
    )
    return Largest(
        axis=Axis(setting="seq_len", step=64, limit=1024, limited_by="model", why="the model ends at 1,024"),
        value=value,
        record=record,
        above=Probe(value=(value or 0) + 64, fits=False, verdict="does not fit", reserved_bytes=GIB),
        limited_by="memory",
        is_monotone=True,
        probes=(),
        # 15, 4 and 1 of 20 parts.
        fills={"weights": 15 * MIB, "logits_loss": 4 * MIB, "quant_state": MIB},
        grows="logits_loss",
        grows_bytes=2 * MIB,
        reliefs=(
            Relief(
                changes={"r": 8}, cost="adapters of half the rank", freed_bytes=MIB, fits=False,
                step_time_ratio=1.0,
            ),
            Relief(
                changes={"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2},
                cost="the same update in twice as many passes of half the size", freed_bytes=3 * GIB,
                fits=True, step_time_ratio=None,
            ),
        ),
    )  # fmt: skip


def test_one_table_of_answers_and_one_of_changes_for_each():
    found = [answer("bf16", 1024), answer("nf4", 1536, verdict="tight", num_alloc_retries=2)]
    assert (
        "\n".join(fit_lines(found, 90))
        == """\
Longest sequence on L4: gpt2, rank 16, batch 1, checkpointing, recipe plain, no autocast

precision  tokens  bound by     left  filled by
--------------------------------------------------------------------------------------
bf16        1,024  memory    5.0 MiB  weights 75 %, logits and loss 20 %, quantization
                                      state 5 %
nf4         1,536  memory *        -  weights 75 %, logits and loss 20 %, quantization
                                      state 5 %

In steps of 64. One step above each answer was planned and does not fit.
* Fits only after PyTorch empties its cache, which takes time in every step: nothing is
left to spare.

Ways to free memory, evaluated one step above the answer: sufficient ones first, then by
cost. Each was planned on its own; 'frees' is reserved memory, 'step time' is relative to
no change.

bf16 at 1,088 tokens (what grows most: logits and loss, 2.0 MiB for 64 more):
  change               frees  fits  step time  what it costs
  batch 2, accum 2  3.00 GiB  yes         n/a  the same update in twice as many passes of
                                               half the size
  r 8                1.0 MiB  no       x 1.00  adapters of half the rank

nf4 at 1,600 tokens (what grows most: logits and loss, 2.0 MiB for 64 more):
  change               frees  fits  step time  what it costs
  batch 2, accum 2  3.00 GiB  yes         n/a  the same update in twice as many passes of
                                               half the size
  r 8                1.0 MiB  no       x 1.00  adapters of half the rank"""
    )


def test_an_answer_alone_needs_no_label():
    lines = fit_lines([replace(answer("nf4", 1024), is_monotone=False)], 100)
    assert lines[0].startswith("Longest sequence on L4: gpt2, nf4, rank 16")
    assert lines[2].split() == ["tokens", "bound", "by", "left", "filled", "by"]
    assert "Not monotone: a larger value fits although a smaller one does not (see --json)." in lines
    assert "At 1,088 tokens (what grows most: logits and loss, 2.0 MiB for 64 more):" in lines


def test_changes_none_of_which_is_enough_are_followed_by_a_line_that_says_so():
    found = answer("nf4", 1024)
    said = "  None of these changes is sufficient on its own."
    assert said not in fit_lines([found], 100)
    short = [replace(relief, fits=False) for relief in found.reliefs]
    lines = fit_lines([found, replace(answer("bf16", 1024), reliefs=tuple(short))], 100)
    assert lines.count(said) == 1
    assert lines[-2:] == ["", said]


def test_times_that_nobody_planned_take_no_column():
    found = answer("nf4", 1024)
    untimed = [replace(relief, step_time_ratio=None) for relief in found.reliefs]
    lines = fit_lines([replace(found, reliefs=tuple(untimed))], 100)
    assert lines[-3].split() == ["change", "frees", "fits", "what", "it", "costs"]


def test_a_share_stays_with_its_number():
    for width in range(60, 101):
        lines = fit_lines([answer("nf4", 1024)], width)
        assert not [line for line in lines if line.strip().startswith("%")]


def test_cards_are_told_apart_where_there_are_several():
    lines = fit_lines([answer("nf4", 1024), answer("nf4", 2048, gpu="L40S")], 100)
    assert lines[0].startswith("Longest sequence: gpt2, nf4")
    assert [line.split()[:2] for line in lines[4:6]] == [["L4", "1,024"], ["L40S", "2,048"]]
    assert any(line.startswith("L40S at 2,112 tokens") for line in lines)


def test_nothing_that_fits_is_said():
    lines = fit_lines([answer("bf16", None, headroom_bytes=-3 * MIB)], 100)
    assert lines[4].split()[:5] == ["none", "memory", "3.0", "MiB", "short"]
    assert (
        "none: even the smallest value (64 tokens) does not fit; the rest of the row describes it." in lines
    )


def test_a_limit_that_is_not_memory_is_explained():
    found = replace(answer("bf16", 1024), above=None, limited_by="model", reliefs=())
    lines = fit_lines([found], 100)
    assert lines[6:] == [
        "In steps of 64.",
        "The search ends at a limit other than memory: the model ends at 1,024.",
    ]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_tiny_model(tmp_path_factory.mktemp("fit") / "tiny", "HuggingFaceTB/SmolLM2-135M")


@pytest.mark.parametrize("width", [80, 100])
@pytest.mark.parametrize("asked", [["--batch", "32"], ["--vary", "batch", "--seq", "256"]])
def test_real_answers_keep_to_the_terminal_and_say_what_the_document_says(
    model: str,
    asked: list[str],
    width: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.setenv("COLUMNS", str(width))
    arguments = ["fit", model, *CARD, "--precision", "bf16", "--precision", "nf4", *asked]
    assert main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= width
    assert main([*arguments, "--json"]) == 0
    fits = json.loads(capsys.readouterr().out)["fits"]
    rule = next(at for at, line in enumerate(lines) if line.startswith("---"))
    said = [line.split()[:2] for line in lines[rule + 1 : lines.index("", rule)] if line[0] != " "]
    assert said == [[fit["point"]["precision"], f"{fit['largest']:,}"] for fit in fits]
    tables = [at for at, line in enumerate(lines) if line.startswith("  change ")]
    for at, fit in zip(tables, fits, strict=True):
        # Lines that go on with a text are further in.
        rows = [line for line in [*lines, ""][at + 1 : [*lines, ""].index("", at)] if line[2] != " "]
        held = [row[lines[at].index("fits") :].split()[0] for row in rows]
        assert held == sorted(("yes" if change["fits"] else "no" for change in fit["changes"]), reverse=True)


def test_a_step_above_that_cannot_be_planned_is_told():
    above = Probe(value=1088, fits=False, verdict="unknown", error="no such kernel")
    lines = fit_lines([replace(answer("nf4", 1024), above=above)], 100)
    assert "One step above cannot be planned (no such kernel)." in lines


def test_a_card_without_a_kernel_does_not_hide_the_others(model: str, capsys: pytest.CaptureFixture[str]):
    flags = ("--attn", "flash_attention_2", "--precision", "bf16", "--vary", "r", "--seq", "64")
    assert main(["fit", model, *flags, "--gpu", "T4", "--gpu", "RTX 3070"]) == 0
    captured = capsys.readouterr()
    assert "T4, bf16: flash_attention_2 needs compute capability 8.0 or more" in captured.err
    assert "Largest rank on RTX 3070" in captured.out
