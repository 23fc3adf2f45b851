"""The report of one environment."""

from __future__ import annotations

from itertools import groupby

from benchmarks.published_null.environments import Environment
from benchmarks.published_null.rows import Compared, counts

COLUMNS = (
    *("run", "model", "method", "figure", "published", "unit"),
    *("null_up_bytes", "null_down_bytes", "difference_bytes", "is_equal", "outcome", "source"),
)


def csv_row(one: Compared) -> dict[str, object]:
    """Return a figure as one row of the CSV file."""
    settings = one.run.settings
    cells = (
        *(one.run.name, settings["model"], settings["method"]),
        *(one.figure.name, one.figure.value, one.figure.unit),
        *(one.measured.get("up"), one.measured.get("down"), one.difference),
        *(one.is_equal, one.outcome, one.run.source),
    )
    return dict(zip(COLUMNS, cells, strict=True))


def report(environment: Environment, name: str, compared: list[Compared]) -> str:
    """Return the comparison as Markdown: counts, runs, and every figure that is not equal."""
    equal, total = counts(compared)
    command = f"python -m benchmarks.published_null {environment.name}"
    if name != environment.name:
        command += f" --rows benchmarks/published_null/rows/{name}.csv"
    lines = [
        f"# {environment.title}",
        "",
        "Published figures of a real GPU beside the null GPU's, with the versions of the publication. "
        "No figure of the null GPU was measured on a GPU. "
        f"`{command}` repeats it; [{name}.csv]({name}.csv) has every figure.",
        "",
        f"{equal} of {total} figures are equal: to the byte where bytes were published, else when rounded as "
        "published.",
    ]
    if len(environment.orders) > 1:
        lines[-1] += (
            " The driver publishes no order of addresses: each run is made with the lowest free address "
            "first, and, where a figure is not equal, with the highest; equal is what either order gives."
        )
    lines += ["", "| Run | Model | Settings | Equal | Largest difference |", "|---|---|---|---:|---:|"]
    lines += [_run_line(list(figures)) for _, figures in groupby(compared, key=lambda one: one.run.name)]
    other = [one for one in compared if not one.is_equal]
    if other:
        lines += ["", "## Not equal", "", "| Run | Figure | Published | Null GPU | Difference |"]
        lines += ["|---|---|---:|---:|---:|", *(_figure_line(one) for one in other)]
    sources = sorted({one.run.source.split(" data row")[0] for one in compared})
    lines += ["", "Sources:", "", *(f"- {source}" for source in sources)]
    return "\n".join(lines) + "\n"


def _run_line(compared: list[Compared]) -> str:
    equal, total = counts(compared)
    run = compared[0].run
    shown = {name: value for name, value in run.settings.items() if value and name != "model"}
    settings = ", ".join(f"{name} {value}" for name, value in shown.items())
    differences = [one.difference for one in compared if one.difference is not None and not one.is_equal]
    ended = "none" if equal == total else compared[0].outcome
    most = f"{max(differences, key=abs):+,} B" if differences else ended
    return f"| {run.name} | {run.settings['model']} | {settings} | {equal} of {total} | {most} |"


def _figure_line(one: Compared) -> str:
    measured = " or ".join(f"{value:,} B" for value in sorted(set(one.measured.values()))) or one.outcome
    difference = "" if one.difference is None else f"{one.difference:+,} B"
    published = f"{int(one.figure.value):,} B" if one.figure.unit == "B" else f"{one.figure.value} GiB"
    return f"| {one.run.name} | {one.figure.name} | {published} | {measured} | {difference} |"
