"""How many passes a dataset makes: tokens, padded batches, packed rows, and files with junk."""

from __future__ import annotations

from pathlib import Path

import pytest

from qbench.errors import QbenchError
from qbench.planner.workload import of_lengths, of_tokens, parse_tokens, read_lengths
from qbench.scenario.expand import point_from

POINT = point_from({"model": "gpt2"}, {"per_device_train_batch_size": 2, "seq_len": 100})


@pytest.mark.parametrize(
    ("text", "count"), [("10M", 10_000_000), ("1.5b", 1_500_000_000), ("12_345", 12_345)]
)
def test_tokens_are_read(text: str, count: int):
    assert parse_tokens(text) == count


@pytest.mark.parametrize("text", ["", "ten", "-5", "0", "1e6", "10 M M", "nan"])
def test_other_texts_are_refused(text: str):
    with pytest.raises(QbenchError, match="--tokens: given"):
        parse_tokens(text)


def test_tokens_fill_sequences():
    # 6,000 tokens x 3 epochs in passes of 2 x 100.
    assert of_tokens(6000, 3, POINT).passes == {100: 90}


def test_batches_are_padded_to_their_longest_sequence():
    work = of_lengths([10, 30, 50, 20, 250], 2, POINT, packing=False)
    # (10, 30) -> 30; (50, 20) -> 50; 250 is cut to 100 and alone. Twice each.
    assert work.passes == {30: 2, 50: 2, 100: 2}
    assert work.tokens == 2 * (10 + 30 + 50 + 20 + 100)
    assert work.padded_tokens == 2 * 2 * (30 + 50 + 100)
    assert work.num_truncated == 1


def test_packed_rows_are_full():
    work = of_lengths([10, 30, 50, 20, 250], 2, POINT, packing=True)
    # 210 tokens fill 3 rows of 100, two of which make a pass: 1.5 passes an epoch.
    assert work.passes == {100: 3}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("12\nabc\n", "lengths.txt:2: given 'abc'; allowed: the tokens of one sequence, at least 1"),
        ("12\n\n0\n", "lengths.txt:3: given '0'"),
        ("-4\n", "lengths.txt:1: given '-4'"),
        ("3.5\n", "lengths.txt:1: given '3.5'"),
        ("9" * 40, "lengths.txt:1: given"),
        ("\n\n", "no lengths in it"),
        ("", "no lengths in it"),
    ],
)
def test_junk_is_told_with_its_line(tmp_path: Path, content: str, message: str):
    file = tmp_path / "lengths.txt"
    file.write_text(content)
    with pytest.raises(QbenchError, match=r"^[^\n]+$") as raised:
        read_lengths(file)
    assert message in str(raised.value)


def test_all_junk_is_told_up_to_ten_lines(tmp_path: Path):
    file = tmp_path / "lengths.txt"
    file.write_text("12\nabc\n7\n-1\n")
    with pytest.raises(QbenchError) as raised:
        read_lengths(file)
    assert [line.split(": ")[0][-1] for line in str(raised.value).splitlines()] == ["2", "4"]
    file.write_text("x\n" * 12)
    with pytest.raises(QbenchError) as raised:
        read_lengths(file)
    told = str(raised.value).splitlines()
    assert len(told) == 11
    assert told[-1].endswith("lengths.txt: 2 more lines are not lengths")


def test_blank_lines_are_no_sequences(tmp_path: Path):
    file = tmp_path / "lengths.txt"
    file.write_text("12\n\n 7 \n")
    assert read_lengths(file) == [12, 7]


def test_a_file_that_cannot_be_read_is_told(tmp_path: Path):
    with pytest.raises(QbenchError, match="cannot be read"):
        read_lengths(tmp_path)
