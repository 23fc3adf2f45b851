"""Do `qbench check` and `qbench gate` cry wolf, and do they see what they should? Trials of real processes.

    python -m benchmarks.gate_trials --out reports/gate [--collect 210 [--busy 1]] [--trials 2000]

`--collect` first measures for so many seconds (see benchmarks.gate_processes) and adds to
OUT/processes.jsonl, or with `--busy` to OUT/processes-busy.jsonl. The report, OUT/gate.md, is of all that
is there. A trial draws processes as they ran next to each other and puts them through the code that decides
for users:

    gate   blocks of four pairs in a row, drawn with replacement; for equal code each A B B A within is
           turned round or not, by lot as a gate does it, so that nothing differs but by chance
    check  as many processes in a row for the baseline, and as many from another time for the run
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import expm1, log
from pathlib import Path
from typing import Any

from benchmarks.gate_processes import GROWTH, POINT, SETTINGS, collect
from qbench.cli.gate import DEFAULT_PROCESSES
from qbench.comparison.check import check
from qbench.comparison.intervals import processes_needed
from qbench.comparison.noise import cautious, noise_of
from qbench.comparison.sequential import Pair, StoppingRule, looks, paired_ratio, pairs_needed, pairs_of
from qbench.comparison.verdicts import MIN_EFFECT, WANTED_EFFECT, CheckVerdict
from qbench.records.record import Record

BLOCK = 4
KINDS = ("same", "5 %", "8 %", "15 %")
CHECK_SIZES = (2, 3, 5, 10)
VERDICTS: tuple[CheckVerdict, ...] = ("worse", "better", "ambiguous", "same")

Line = dict[str, Any]
Rounds = list[dict[str, tuple[Line, Line]]]
"""Of one session, in the order of time: by kind the pair of processes."""
Trial = Callable[[random.Random], tuple[CheckVerdict, int]]
"""Returns a verdict and how many processes a side it took."""


@dataclass(frozen=True, slots=True)
class Pool:
    """The processes of one file."""

    sessions: list[Rounds]

    def pairs(self, kind: str) -> list[Pair]:
        """Return the median step times of all pairs of a kind."""
        found = [each[kind] for session in self.sessions for each in session if kind in each]
        return [(_time(a), _time(b)) for a, b in found]

    def in_time(self) -> list[list[Line]]:
        """Return for each session the processes of unchanged code in the order of time."""
        found = []
        for session in self.sessions:
            pairs = [(kind, pair) for each in session for kind, pair in each.items()]
            pairs = [(kind, pair) for kind, pair in pairs if kind != "same too"]
            lines = [line for kind, (a, b) in pairs for line in ((a, b) if kind == "same" else (a,))]
            found.append(sorted(lines, key=lambda line: line["start"]))
        return found


def read_pool(file: Path) -> Pool:
    """Return what was collected; rounds that are not whole are left out."""
    sessions: dict[str, dict[int, dict[tuple[str, str], Line]]] = {}
    for text in file.read_text(encoding="utf-8").splitlines():
        line = json.loads(text)
        rounds = sessions.setdefault(line["session"], {})
        rounds.setdefault(line["round"], {})[line["kind"], line["side"]] = line
    return Pool([list(map(_pairs, filter(_is_whole, rounds.values()))) for rounds in sessions.values()])


def _is_whole(members: dict[tuple[str, str], Line]) -> bool:
    return all((kind, side) in members for kind in KINDS for side in "ab")


def _pairs(members: dict[tuple[str, str], Line]) -> dict[str, tuple[Line, Line]]:
    kinds = {kind for kind, side in members if (kind, "b") in members and (kind, "a") in members}
    pairs = {kind: (members[kind, "a"], members[kind, "b"]) for kind in kinds}
    # Both are of unchanged code, and only one process ran between them.
    return pairs | {"same too": (members["5 %", "a"], members["8 %", "a"])}


def _time(line: Line) -> float:
    return statistics.median(line["step_time_s"])


def record_of(line: Line, repeat: int) -> Record:
    """Return a line as the record that a run would hold."""
    metrics = {name: value for name, value in line.items() if name.endswith(("_s", "_bytes", "_params"))}
    return Record(
        run_id="trial",
        point=POINT,
        kind="measurement",
        outcome="ok",
        metrics=metrics,
        detail={"repeat": repeat, "protocol": {"steps": SETTINGS.steps}},
        environment={"device": "cpu", "device_name": "trial machine"},
        created_at="2026-01-01T00:00:00+00:00",
    )


def _records(lines: Sequence[Line]) -> list[Record]:
    return [record_of(line, repeat) for repeat, line in enumerate(lines)]


def gate_trial(pool: Pool, kind: str, most: int, factor: float = 1.0) -> Trial:
    """Return a trial of a whole gate: looks until it is decided or `most` pairs are gone.

    `factor` is multiplied with the times of the run.
    """
    starts = [
        (session, at)
        for session in pool.sessions
        for at in range(max(1, len(session) - BLOCK + 1))
        if session
    ]

    def trial(source: random.Random) -> tuple[CheckVerdict, int]:
        drawn: list[tuple[Line, Line]] = []
        while len(drawn) < most:
            session, at = source.choice(starts)
            source_kind = source.choice(("same", "same too")) if kind == "same" else kind
            block = [each[source_kind] for each in session[at : at + BLOCK]]
            for half in (block[: BLOCK // 2], block[BLOCK // 2 :]):
                swapped = kind == "same" and source.random() < 0.5
                drawn += [(b, a) for a, b in half] if swapped else half
        before = _records([pair[0] for pair in drawn[:most]])
        now = _records([_slower(pair[1], factor) for pair in drawn[:most]])
        pairs, rule = pairs_of(before, now, "step_time_s"), StoppingRule(most=most)
        for look in looks(most):
            verdict = rule.judge(pairs[:look], "step_time_s", ended=look == most).verdict
            if verdict != "ambiguous":
                return verdict, look
        return "ambiguous", most

    return trial


def _slower(line: Line, factor: float) -> Line:
    return line if factor == 1 else line | {"step_time_s": [factor * each for each in line["step_time_s"]]}


def check_trial(pool: Pool, kind: str, count: int) -> Trial:
    """Return a trial of a check with so many processes a side."""
    before_pool = [lines for lines in pool.in_time() if len(lines) >= 3 * count]
    now_pool = [[each[kind][1] for each in session] for session in pool.sessions]
    now_pool = before_pool if kind == "same" else [lines for lines in now_pool if len(lines) >= count]

    def trial(source: random.Random) -> tuple[CheckVerdict, int]:
        before = _window(source, before_pool, count)
        now = _window(source, now_pool, count)
        while {id(line) for line in before} & {id(line) for line in now}:
            now = _window(source, now_pool, count)
        return _speed(check(_records(before), _records(now)).findings), count

    return trial


def _window(source: random.Random, sessions: list[list[Line]], count: int) -> list[Line]:
    lines = source.choice(sessions)
    at = source.randrange(len(lines) - count + 1)
    return lines[at : at + count]


def _speed(findings: Sequence[Any]) -> CheckVerdict:
    return next(finding.verdict for finding in findings if finding.metric == "step_time_s")


@dataclass(frozen=True, slots=True)
class Row:
    """What trials of one kind came to."""

    tool: str
    most: str
    kind: str
    seen: Counter[CheckVerdict]
    processes: float
    """Mean a side."""

    @property
    def text(self) -> str:
        """The row of a Markdown table."""
        total = self.seen.total()
        shares = (f"{100 * self.seen[verdict] / total:.1f} %" for verdict in VERDICTS)
        return f"| {self.tool} | {self.most} | {self.kind} | {' | '.join(shares)} | {self.processes:.1f} |"


def rows(pool: Pool, trials: int, proposed: int | None) -> Iterator[Row]:
    """Yield a row for each tool, size and kind."""
    budgets = {f"{DEFAULT_PROCESSES} (default)": DEFAULT_PROCESSES}
    if proposed is not None:
        budgets[f"{proposed} (proposed)"] = proposed
    for name, most in budgets.items():
        for kind in KINDS:
            yield _row("gate", name, kind, gate_trial(pool, kind, most), trials)
        for factor in (1.05, 1.08):
            yield _row("gate", name, f"same x {factor}", gate_trial(pool, "same", most, factor), trials)
    longest = max(len(session) for session in pool.sessions)
    for count in (size for size in CHECK_SIZES if size <= longest):
        for kind in KINDS:
            yield _row("check", str(count), kind, check_trial(pool, kind, count), trials)


def _row(tool: str, most: str, kind: str, trial: Trial, trials: int) -> Row:
    source = random.Random(f"{tool} {most} {kind}")
    made = [trial(source) for _ in range(trials)]
    return Row(tool, most, kind, Counter(v for v, _ in made), statistics.fmean(n for _, n in made))


def memory_row(pool: Pool) -> str:
    """Return what check says of each process with planted memory against each without, as a sentence."""
    sizes = [each["memory"] for session in pool.sessions for each in session if "memory" in each]
    found: Counter[CheckVerdict] = Counter()
    for a, b in sizes:
        findings = check(_records([a]), _records([b])).findings
        found.update(finding.verdict for finding in findings if finding.metric == "peak_allocated_bytes")
    peaks = {a["peak_allocated_bytes"] for a, _ in sizes}
    return (
        f"A planted growth of {100 * GROWTH:.0f} % of the peak: {found['worse']} of {found.total()} single "
        f"processes are told as worse. Peaks of unchanged code: "
        f"{', '.join(f'{peak:,} B' for peak in sorted(peaks))}."
    )


def section(file: Path, title: str, trials: int) -> str:
    """Return the report of one file of processes as Markdown."""
    pool = read_pool(file)
    pairs = {kind: pool.pairs(kind) for kind in KINDS}
    ratio = paired_ratio([*pairs["same"], *pool.pairs("same too")], 0.5)
    noise = noise_of(_records([line for lines in pool.in_time() for line in lines]))
    if ratio is None or noise is None:
        return f"## {title}\n\nToo few processes.\n"
    proposed = pairs_needed(cautious(ratio.deviation, ratio.freedom), WANTED_EFFECT, MIN_EFFECT)
    unpaired = processes_needed(noise.spreads["step_time_s"].process, WANTED_EFFECT, MIN_EFFECT)
    effects = ", ".join(
        f"{kind}: {100 * expm1(statistics.median(log(b / a) for a, b in made)):+.1f} %"
        for kind, made in pairs.items()
    )
    table = "\n".join(row.text for row in rows(pool, trials, proposed))
    count = sum(1 for lines in pool.in_time() for _ in lines)
    return f"""## {title}

{count} processes of unchanged code and {len(pairs["5 %"])} of each slowdown, {len(pool.sessions)} sessions.
Deviation of one process: {100 * noise.spreads["step_time_s"].process:.1f} %; of a pair's ratio
{100 * ratio.deviation:.1f} % (trimmed). For 5 % the gate proposes {proposed or "no affordable number of"}
pairs, check {unpaired or "no affordable number of"} processes a side.
Median of the pairs' ratios, {effects}.

| tool | most a side | planted | worse | better | ambiguous | same | used a side |
|---|--:|---|--:|--:|--:|--:|--:|
{table}

{memory_row(pool)}
"""


def report(out: Path, trials: int) -> str:
    """Return the whole report as Markdown."""
    files = {"processes.jsonl": "As the machine is", "processes-busy.jsonl": "With another process at work"}
    sections = [section(out / name, title, trials) for name, title in files.items() if (out / name).exists()]
    return f"""# Does the gate cry wolf, and does it see what it should?

Real processes on a shared machine with 2 cores: `{POINT.label}`, {SETTINGS.steps} timed steps each;
slowdowns are real work after each step, and rows with a factor multiply times instead.
Each row is {trials} trials, *bootstrapped* from these processes: blocks in the order of time, so that drift
and bursts stay. They are not as many independent experiments, and a gate may take more pairs than there are.
The error that the gate leaves to noise which is not as assumed, and the two factors of `check` (ALIKE and
FLOOR in comparison/intervals.py), were chosen by the first 300 of these processes.

Verdicts are those of `StoppingRule.judge` (comparison/sequential.py) and of `check`, as users get them.
Repeat: `python -m benchmarks.gate_trials --out {out}`; `--collect 210` adds processes.

Wanted: of equal code at most 1 % worse or better; 8 % and more found in 95 % within the default budget, 5 %
within the proposed one; what is not found ambiguous, never same.

{chr(10).join(sections)}"""


def main() -> None:
    """Collect if asked to, and write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--collect", type=float, default=0, help="seconds")
    parser.add_argument("--busy", type=int, default=0, help="other processes at work")
    parser.add_argument("--trials", type=int, default=2000)
    given = parser.parse_args()
    if given.collect:
        name = "processes-busy.jsonl" if given.busy else "processes.jsonl"
        collect(given.out / name, given.collect, given.busy)
    text = report(given.out, given.trials)
    (given.out / "gate.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
