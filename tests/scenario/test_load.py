from __future__ import annotations

import random
import time
from pathlib import Path
from typing import Any

import pytest

from qbench.errors import ScenarioError
from qbench.scenario import load
from qbench.scenario.expand import expand
from qbench.scenario.load import load_scenario, scenario_folder, shipped_scenarios
from qbench.scenario.schema import Scenario

HEAD = "name: s\nquestion: Which?\n"
BASE = HEAD + "base: {model: m}\n"


def written(folder: Path, text: str | bytes) -> Path:
    file = folder / "s.yaml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return file


def problems_of(folder: Path, text: str | bytes, **options: Any) -> list[str]:
    """The problems of a file, without the name of the file."""
    file = written(folder, text)
    with pytest.raises(ScenarioError) as caught:
        load_scenario(file, **options)
    problems = [str(problem) for problem in caught.value.problems]
    assert all(problem.startswith(f"{file}:") and problem.isprintable() for problem in problems)
    return [problem.removeprefix(f"{file}:").strip() for problem in problems]


def test_a_whole_scenario(tmp_path: Path) -> None:
    text = """\
name: whole
question: Which?
base:
  model: m
  lora: {r: 16, lora_alpha: 5e-1}
matrix:
  precision: [fp32, nf4]
  lora.r: [8, 64]
exclude: [{precision: fp32, r: 64}]
include: [{lora: null}]
plan: {gpus: [RTX 4090]}
measure: {warmup_steps: 0, steps: 3, repeats: 1, timeout_s: 60}
"""
    scenario = load_scenario(written(tmp_path, text))
    assert (scenario.name, scenario.plan.gpus, scenario.measure.steps) == ("whole", ("RTX 4090",), 3)
    assert list(scenario.matrix) == ["precision", "lora.r"]
    points = expand(scenario)
    assert [point.lora.r if point.lora else None for point in points] == [8, 8, 64, None]
    assert points[0].lora is not None
    assert points[0].lora.lora_alpha == 0.5


def test_every_problem_is_reported_at_its_line_in_the_order_of_the_file(tmp_path: Path) -> None:
    text = """\
name: s
question: no
bass: 1
base:
  model: m
  precision: nf5
  lora:
    r: 0
    alpha: 16
  train: {seq_len: long, optim: adam_8bit}
matrix:
  precison: [nf4]
  recipe:
    - peft
    - trl
    - peft
    - tlr
  optim: []
exclude: [{rank: 8}]
include:
  - {lora.r: "8"}
  - 3
plan: {gpu: [T4]}
measure: {steps: 0,
  repeats: true}
"""
    assert [problem.partition(";")[0] for problem in problems_of(tmp_path, text)] == [
        "2: question: given false",
        "3: bass: unknown key",
        "6: base.precision: given 'nf5'",
        "8: base.lora.r: given 0",
        "9: base.lora.alpha: unknown key",
        "10: base.train.seq_len: given 'long'",
        "10: base.train.optim: given 'adam_8bit'",
        "12: matrix.precison: unknown setting",
        "16: matrix.recipe[2]: 'peft' is in the list twice",
        "17: matrix.recipe[3]: given 'tlr'",
        "18: matrix.optim: given []",
        "19: exclude[0].rank: unknown setting",
        "21: include[0].lora.r: given '8'",
        "22: include[1]: given 3",
        "23: plan.gpu: unknown key",
        "24: measure.steps: given 0",
        "25: measure.repeats: given true",
    ]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (
            "base: {model: m, precison: nf4}",
            "base.precison: unknown key; allowed: model, weights, precision, data, lora, train, "
            "quantization, distributed, vision; did you "
            "mean precision?",
        ),
        (
            "base: {model: m, seq_len: 64}",
            "base.seq_len: base takes nested keys; write train: {seq_len: ...}",
        ),
        ("base: {model: m, lora.r: 8}", "base.lora.r: base takes nested keys; write lora: {r: ...}"),
        ("base: {precision: nf4}", "base.model: missing; give it: Catalog id, hub id, or a folder"),
        (
            "base: m",
            "base: given 'm'; allowed: the keys model, weights, precision, data, lora, train, quantization, "
            "distributed",
        ),
        (
            "base: {model: m, train: null}",
            "base.train: given null; allowed: the keys per_device_train_batch_size",
        ),
        ("base: {model: m, model: n}", "base.model: given twice, first in line 3; keep one of the two"),
        (
            "base: {model: yes}",
            "base.model: given true; allowed: text; YAML reads yes, no, on, off as booleans",
        ),
        ("base: {model: 7}", "base.model: given 7; allowed: text"),
        (
            "base: {model: m, on: 1}",
            "base: given the key 'on'; allowed: text, in quotes where YAML reads something",
        ),
        ("base: {? [a] : 1, model: m}", "base: given the key 'sequence'; allowed: text"),
        ("base: {<<: {model: m}, model: m}", "base: given the key '<<'; allowed: text"),
        (
            "base: {model: !!python/name:os.system }",
            "base.model: given '' as python/name:os.system; allowed: text",
        ),
        ("base: !!set {model: m}", "base: given the YAML tag !!set; allowed: no tag"),
        (
            'base: {model: m, lora: {r: !!int ""}}',
            "base.lora.r: given '' as int; allowed: text, numbers, true",
        ),
        (
            "base: {model: m}\nprecision: nf4",
            "precision: not a key of a scenario; write it in base: precision: ...",
        ),
        (
            "base: {model: m}\nseq_len: 4",
            "seq_len: not a key of a scenario; write it in base: train: {seq_len: ...}",
        ),
        (
            "base: {model: m}\nmatrix: [nf4]",
            "matrix: given ['nf4']; allowed: settings and their lists, such as",
        ),
        ("base: {model: m}\nmatrix: {r: 8}", "matrix.r: given 8; allowed: a list of at least one value"),
        (
            "base: {model: m}\nmatrix: {lora.rr: [8]}",
            "matrix.lora.rr: unknown setting; allowed: model, weights",
        ),
        (
            "base: {model: m}\nmatrix: {lora: [{}, 3]}",
            "matrix.lora[1]: given 3; allowed: the keys r, lora_alpha",
        ),
        (
            "base: {model: m}\nmatrix: {r: [8], lora.r: [4]}",
            "matrix.lora.r: sets the same as r; keep one of the two",
        ),
        (
            "base: {model: m}\nmatrix: {lora: [null], r: [4]}",
            "matrix.r: sets the same as lora; keep one of the two",
        ),
        (
            "base: {model: m}\nmatrix: {lora_alpha: [16, 16.0]}",
            "matrix.lora_alpha[1]: 16.0 is in the list twice; it is also value 1 of lora.lora_alpha",
        ),
        (
            "base: {model: m}\ninclude:",
            "include: given null; allowed: a list, such as [{precision: nf4, r: 8}]",
        ),
        (
            "base: {model: m}\nexclude: [{}]",
            "exclude[0]: given {}; allowed: settings and their values, such as",
        ),
        (
            "base: {model: m}\nexclude: [{r: 3}]",
            "exclude[0]: matches no point of the matrix: lora.r=3; correct or remove it",
        ),
        (
            "base: {model: m}\nmeasure: {timeout_s: yes}",
            "measure.timeout_s: given true; allowed: a number above 0",
        ),
        ("base: {model: m}\nplan: {gpus: T4}", "plan.gpus: given 'T4'; allowed: a list of text"),
        (
            "base: {model: m, data: notes.txt}",
            "base: data is a text file but weights are random; set weights: pretrai",
        ),
    ],
)
def test_one_problem(tmp_path: Path, line: str, problem: str) -> None:
    number = 3 + line.count("\n")
    found = problems_of(tmp_path, HEAD + line + "\n")
    assert len([text for text in found if text.startswith(f"{number}: {problem}")]) == 1, found


def test_missing_keys_of_a_scenario(tmp_path: Path) -> None:
    assert [problem.partition(";")[0] for problem in problems_of(tmp_path, "measure: {}\n")] == [
        "1: name: missing",
        "1: question: missing",
        "1: base: missing",
    ]


def test_combinations_are_checked_although_another_section_has_a_problem(tmp_path: Path) -> None:
    text = BASE + "matrix: {r: [8]}\nexclude: [{r: 4}]\nmeasure: {step: 3}\n"
    assert [problem.partition(":")[0] for problem in problems_of(tmp_path, text)] == ["5", "6"]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("name: s\nbase: [}\n", "2: not valid YAML: while parsing a flow node, expected the node content"),
        (
            "name: s\n\tbase: 1\n",
            "2: not valid YAML: while scanning for the next token, found character '\\t'",
        ),
        ("name: s\nbase: a: b\n", "2: not valid YAML: mapping values are not allowed here"),
        ("name: s\n---\nname: t\n", "2: not valid YAML: expected a single document in the stream"),
        ("name: s\nbase: *b\n", "2: not valid YAML: found undefined alias 'b'"),
        ("name: s\nbase: \x07\n", "2: not valid YAML: character U+0007 is not allowed"),
        ('name: "\\UFFFFFFFF"\n', "not valid YAML: "),
        (b"name: s\nbase: \xe9\n", "2: byte 0xe9 is not UTF-8; save the file as UTF-8"),
        ("name: s\n".encode("utf-16"), "1: byte 0xff is not UTF-8"),
        ("", "empty; begin with name: and question:"),
        ("# only a comment\n", "empty; begin with name: and question:"),
        ("\n- name: s\n", "2: not a scenario; begin with name: and question:"),
        ("scenario\n", "1: not a scenario; begin with name: and question:"),
        ("a: " + "[" * 5000, "nested too deeply; a scenario needs five levels"),
        ("a: " + "[" * 30 + "]" * 30, "1: nested more than 20 deep; a scenario needs five"),
        ("a: &a [*a]\n", "1: nested more than 20 deep; a scenario needs five"),
        ("a: " + "x" * 70_000, "larger than 64.0 KiB, the limit for a scenario file"),
    ],
)
def test_a_file_that_cannot_be_read_as_a_whole(tmp_path: Path, text: str | bytes, problem: str) -> None:
    (found,) = problems_of(tmp_path, text)
    assert found.startswith(problem)


def test_an_alias_bomb_is_refused_at_once(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 10)]  # 9^10 values
    start = time.process_time()
    (problem,) = problems_of(tmp_path, "\n".join(lines))
    assert problem.endswith("more than 20,000 values with aliases written out; use no aliases")
    assert time.process_time() - start < 20


def test_few_aliases_are_allowed(tmp_path: Path) -> None:
    scenario = load_scenario(written(tmp_path, BASE + "matrix: {r: &ranks [8, 16], seq_len: *ranks}\n"))
    assert scenario.matrix == {"r": [8, 16], "seq_len": [8, 16]}


def test_a_byte_order_mark_and_windows_line_ends_are_allowed(tmp_path: Path) -> None:
    text = b"\xef\xbb\xbf" + BASE.replace("\n", "\r\n").encode()
    assert load_scenario(written(tmp_path, text)).name == "s"


def test_a_date_is_text(tmp_path: Path) -> None:
    assert load_scenario(written(tmp_path, BASE.replace("name: s", "name: 2024-01-31"))).name == "2024-01-31"


def test_too_many_points(tmp_path: Path) -> None:
    many = ", ".join(str(number) for number in range(1, 1001))
    text = BASE + f"matrix:\n  r: [{many}]\n  seq_len: [{many}]\n"
    assert problems_of(tmp_path, text) == [
        "4: matrix: 1,000,000 points are more than the limit of 10,000; shorten it or raise the limit "
        "(--max-points)"
    ]
    few = written(tmp_path, BASE + "matrix: {r: [1, 2, 3]}\n")
    assert len(load_scenario(few, max_points=3).matrix["r"]) == 3
    with pytest.raises(ScenarioError, match="3 points are more than the limit of 2"):
        load_scenario(few, max_points=2)


def test_a_folder_names_the_scenarios_it_holds(tmp_path: Path) -> None:
    written(tmp_path, BASE)
    with pytest.raises(ScenarioError, match=r": a folder, not a scenario file; it holds s\.yaml$"):
        load_scenario(tmp_path)


def test_a_missing_file_names_the_shipped_scenarios(tmp_path: Path) -> None:
    with pytest.raises(ScenarioError, match=r"none\.yaml: no such file; shipped scenarios are .*demo,"):
        load_scenario(tmp_path / "none.yaml")


def test_a_path_through_a_file_says_why(tmp_path: Path) -> None:
    with pytest.raises(ScenarioError, match="cannot be read: Not a directory"):
        load_scenario(written(tmp_path, BASE) / "inner.yaml")


def test_relative_paths_are_relative_to_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "inner").mkdir()
    file = written(
        tmp_path / "inner",
        HEAD
        + """\
base: {model: ./tiny, weights: pretrained, data: text/notes.txt}
matrix:
  model: [../other, ./tiny, org/name, /abs/model]
exclude: [{model: ./tiny}]
include: [{model: .., data: random, weights: random}]
""",
    )
    monkeypatch.chdir(tmp_path)
    points = expand(load_scenario(file.relative_to(tmp_path)))
    assert [point.model for point in points] == [
        str(tmp_path / "other"),
        "org/name",
        "/abs/model",
        str(tmp_path),
    ]
    # Below the working folder a text is named from there, so that a record names no one's home.
    assert [point.data for point in points] == ["inner/text/notes.txt"] * 3 + ["random"]
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    assert expand(load_scenario(file))[0].data == str(tmp_path / "inner/text/notes.txt")


def test_damaged_files_raise_nothing_but_scenario_errors(tmp_path: Path) -> None:
    """Cut, swap and overwrite parts of real scenarios: the outcome is a scenario or a ScenarioError."""
    seed = random.Random(7)
    sources = [file.read_text(encoding="utf-8") for file in shipped_scenarios()]
    tokens = [
        "null",
        "[]",
        "{}",
        "yes",
        "-1",
        "1e9",
        "&a",
        "*a",
        "!!int",
        ": ",
        "- ",
        "\n",
        "\t",
        "'",
        "lora: ",
    ]
    outcomes: list[type] = []
    for _ in range(300):
        text = seed.choice(sources)
        for _ in range(seed.randint(1, 4)):
            start = seed.randrange(len(text))
            text = text[:start] + seed.choice(tokens) + text[start + seed.randint(0, 12) :]
        try:
            outcomes.append(type(load_scenario(written(tmp_path, text))))
        except ScenarioError:
            outcomes.append(ScenarioError)
    assert set(outcomes) == {Scenario, ScenarioError}


def test_an_installed_package_carries_its_scenarios(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "__file__", str(tmp_path / "qbench" / "scenario" / "load.py"))
    with pytest.raises(ScenarioError, match="the installation is incomplete"):
        scenario_folder()
    (tmp_path / "qbench" / "_scenarios").mkdir(parents=True)
    assert scenario_folder() == tmp_path / "qbench" / "_scenarios"


def test_the_shipped_scenarios_lie_in_the_checkout() -> None:
    assert scenario_folder() == Path(__file__).parents[2] / "scenarios"
    assert [file.parent for file in shipped_scenarios()] == [scenario_folder()] * len(shipped_scenarios())
