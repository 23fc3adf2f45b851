"""Tables of the docs and of README, made from qbench's own tables and from the committed records.

`python docs/_build/generated.py` writes the accuracy table of README anew.
"""

from __future__ import annotations

import csv
import html
import re
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
REPORTS = ROOT / "reports"
README_TABLE = re.compile(r"(<!-- accuracy: [^\n]*-->\n).*?(<!-- /accuracy -->)", re.DOTALL)


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a Markdown table."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(_cell(value) for value in line) + " |" for line in lines)


def _cell(value: object) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")


def _code(names: Iterable[str]) -> str:
    return " ".join(f"`{name}`" for name in names)


def settings() -> str:
    """Return every setting of a point: key, flag, values, default, meaning."""
    from qbench.scenario.settings import SETTINGS, allowed, plain_default

    rows = []
    for row in SETTINGS.values():
        flag = f"<br>`--{row.names.flag.replace('_', '-')}`" if row.names.flag else ""
        meaning = str(row.leaf.model.model_fields[row.name].description)
        schema = row.leaf.json_schema()
        default = "required" if row.leaf.model.model_fields[row.name].is_required() else plain_default(row)
        rows.append((f"`{row.path}`{flag}", allowed(schema), f"`{default}`" if default else "", meaning))
    return table(("Key and flag", "Values", "Default", "Meaning"), rows)


def metrics() -> str:
    """Return every metric: name, unit, direction, how `check` compares it, meaning."""
    from qbench.records.metrics import METRICS

    gates = {
        "exact": "must be equal",
        "near": "within a tolerance",
        "statistical": "interval over processes",
        "report": "shown only",
    }
    rows = (
        (f"`{row.name}`", row.unit or "none", row.better, gates[row.gate], row.description)
        for row in METRICS.values()
    )
    return table(("Metric", "Unit", "Better", "`qbench check`", "Meaning"), rows)


def facts() -> str:
    """Return the facts about the built model that `check` compares."""
    from qbench.records.metrics import FACTS

    rows = ((f"`{row.name}`", row.unit or "none", row.description) for row in FACTS)
    return table(("Fact", "Unit", "Meaning"), rows)


def recipes() -> str:
    """Return what each recipe chooses, with the source it follows."""
    from qbench.scenario.recipes import RECIPES

    names = ("loop", "loss_type", "upcast", "adapter_dtype", "checkpoint_impl", "lora_kernels")
    names += ("activation_offloading",)
    known = [name for name in names if hasattr(next(iter(RECIPES.values())), name)]
    rows = (
        (f"`{name}`", *(f"`{getattr(row, field)}`" for field in known)) for name, row in RECIPES.items()
    )
    sources = "\n".join(f"- `{name}` follows {_escaped(row.source)}" for name, row in RECIPES.items())
    return table(("Recipe", *(f"`{name}`" for name in known)), rows) + f"\n\n{sources}"


def _escaped(text: str) -> str:
    return text.replace("_", "\\_").replace("*", "\\*")


def models() -> str:
    """Return the architectures of the catalog with the number of models of each."""
    from qbench.catalog.models import models as catalog

    counts = Counter(str(model.config.get("model_type")) for model in catalog())
    total = sum(counts.values())
    named = ", ".join(f"`{name}` ({count})" for name, count in sorted(counts.items()))
    return f"{total} models of {len(counts)} architectures: {named}."


def import_keys() -> str:
    """Return the keys of other tools' configs that are not planned, by their effect on memory."""
    from qbench.scenario.importers.configs import FORMATS
    from qbench.scenario.importers.keys import EITHER, HARMLESS, LESS, MORE

    rows = (
        ("the step needs **more** than planned", "`does not fit` stays, anything else is `unknown`", MORE),
        ("the step needs **less** than planned", "`fits` stays, anything else is `unknown`", LESS),
        ("it can go **either** way", "`unknown`", EITHER),
        ("memory stays the same", "none", HARMLESS),
    )
    head = f"Formats: {_code(FORMATS)}. A name that ends in `*` stands for every key with that beginning.\n\n"
    return head + table(
        ("If the config sets it", "Effect on the verdict", "Keys"),
        ((effect, verdict, _code(sorted(keys))) for effect, verdict, keys in rows),
    )


def commands() -> str:
    """Return the help of every command."""
    import typer

    from qbench.cli.main import app_of

    group: Any = typer.main.get_command(app_of())
    parts = []
    with group.make_context("qbench", [], resilient_parsing=True) as outer:
        for name, command in group.commands.items():
            parts += _help_of(f"qbench {name}", command, outer, "##")
    return "\n\n".join(parts)


def _help_of(path: str, command: Any, outer: Any, level: str) -> list[str]:
    context = type(outer)(command, info_name=path.rpartition(" ")[2], parent=outer)
    context.max_content_width = context.terminal_width = 98
    text = f"{level} {path}\n\n```text\n{command.get_help(context)}\n```"
    nested = getattr(command, "commands", {}).items()
    return [text, *(part for name, inner in nested for part in _help_of(f"{path} {name}", inner, context, "###"))]


def _rows(path: str) -> list[dict[str, str]]:
    with (REPORTS / path).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _percent(value: float) -> str:
    return f"{abs(value):.3f} %" if abs(value) < 0.1 else f"{abs(value):.1f} %"


def published_memory() -> tuple[int, float, float]:
    """Return of the peaks published of GPUs: how many, median and largest absolute error in percent."""
    errors = [
        abs(float(row["error_percent"]))
        for row in _rows("accuracy/accuracy.csv")
        if row["figure"].startswith("max_")
    ]
    return len(errors), statistics.median(errors), max(errors)


def null_grid(path: str) -> Counter[str]:
    """Return how many points of a grid are equal in all they have, and how many of these ran or ran out."""
    rows = _rows(path)
    equal = [row["null_outcome"] for row in rows if row["is_equal"] == "True"]
    return Counter(points=len(rows), equal=len(equal), ok=equal.count("ok"), oom=equal.count("oom"))


def null_worst(path: str) -> float:
    """Return the largest difference of a planned peak, allocated or reserved, in percent."""
    peaks = ("peak_allocated_bytes", "peak_reserved_bytes")
    pairs = [
        (int(row[f"planned_{name}"]), int(row[f"null_{name}"]))
        for row in _rows(path)
        for name in peaks
        if row[f"planned_{name}"] and row[f"null_{name}"]
    ]
    return max(100 * abs(planned - null) / null for planned, null in pairs)


def null_published(*, kept_apart: bool) -> tuple[int, int, float]:
    """Return how many published figures of GPUs the null GPU repeats, how many there are, and the worst error.

    `kept_apart` takes the figures that nothing was corrected by. The error is in percent, over all figures.
    """
    names = (path.name for path in sorted((REPORTS / "nullgpu/published").glob("*.csv")))
    rows = [
        row for name in names if name.endswith("-more.csv") == kept_apart for row in _rows(f"nullgpu/published/{name}")
    ]
    errors = [100 * abs(int(row["difference_bytes"])) / int(row["null_up_bytes"]) for row in rows]
    return sum(row["is_equal"] == "True" for row in rows), len(rows), max(errors)


def published_speed() -> tuple[str, ...]:
    """Return of published speeds on Linux: how many, median error, and what nine of ten keep within."""
    text = (REPORTS / "timing/published.md").read_text("utf-8")
    match = re.search(r"Eager steps on Linux: (\d+) .*?median error ([\d.]+)%, nine of ten within ([\d.]+)%", text)
    assert match is not None, "reports/timing/published.md has no line about eager steps on Linux"
    return match.groups()


def accuracy() -> str:
    """Return the accuracy table of README: four lines, each from a committed record."""
    count, median, worst = published_memory()
    grid, random = (null_grid(f"nullgpu/{name}null_grid.csv") for name in ("", "random/"))
    worst_null = null_worst("nullgpu/null_grid.csv")
    differ = f", worst {_percent(worst_null)}" if worst_null else ""
    equal, compared, _ = null_published(kept_apart=False)
    refused = grid["equal"] - grid["ok"] - grid["oom"]
    kept, kept_of, worst_kept = null_published(kept_apart=True)
    speeds, middle, most_of = published_speed()
    return table(
        ("Compared", "Result", "Record"),
        (
            (
                "planned peaks with peaks published for real GPUs",
                f"{count} figures: median error {_percent(median)}, worst {_percent(worst)}",
                "[accuracy](reports/accuracy/accuracy.md)",
            ),
            (
                "planned peaks with PyTorch's own CUDA code on a null GPU",
                f"{grid['equal']} of {grid['points']} points agree: {grid['ok']} ran, equal to the byte in allocated "
                f"and reserved, {grid['oom']} ran out of memory at the same request, {refused} were refused by both"
                f"{differ}; {random['equal']} of {random['points']} random ones",
                "[nullgpu](reports/nullgpu/null_grid.md)",
            ),
            (
                "the null GPU with figures published for an RTX 4080 and an A100",
                f"{equal} of {compared} equal, to the byte or as rounded; {kept} of {kept_of} that were kept apart, "
                f"the rest within {_percent(worst_kept)}",
                "[nullgpu/published](reports/nullgpu/published)",
            ),
            (
                "planned with published training speeds (eager, Linux)",
                f"{speeds} figures: median error {middle} %, nine of ten within {most_of} %",
                "[timing](reports/timing/published.md)",
            ),
        ),
    )


def accuracy_in_docs() -> str:
    """Return the accuracy table with links that hold in the docs."""
    return re.sub(r"\]\(reports/", "](repo:reports/", accuracy())


def report(path: str) -> str:
    """Return a committed report in Markdown, its headings in bold and its links as links to the files."""
    folder = (ROOT / path).parent
    text = (ROOT / path).read_text("utf-8")

    def link(match: re.Match[str]) -> str:
        target = match[1]
        if re.match(r"\w+:|#", target):
            return match[0]
        inside = (folder / target).resolve().relative_to(ROOT)
        return f"](repo:{inside})"

    text = re.sub(r"\]\(([^)\s]+)\)", link, text)
    text = re.sub(r"^# .*\n", "", text, count=1)
    return re.sub(r"^#+ (.*)$", r"**\1**", text, flags=re.M)


def folded(title: str, markdown: str) -> str:
    """Return Markdown that a reader unfolds."""
    inner = "\n".join(f"    {line}" if line else "" for line in markdown.splitlines())
    return f'??? note "{title}"\n\n{inner}'


def folded_report(path: str) -> str:
    """Return a committed report to unfold."""
    title = (ROOT / path).read_text("utf-8").partition("\n")[0].lstrip("# ").replace("`", "").replace('"', "")
    return folded(f"{title} ({path})", report(path))


def scenario_files() -> str:
    """Return the shipped scenarios with the question that each asks."""
    from qbench.scenario.load import load_scenario, shipped_scenarios

    rows = ((f"`{path.name}`", load_scenario(path).question) for path in shipped_scenarios())
    return table(("File", "Question"), rows)


def line_chart(values: Sequence[tuple[float, float]], marks: Sequence[tuple[float, str]], unit: str) -> str:
    """Return an SVG of values over events, with vertical marks; it takes the colours of the page."""
    width, height, left, bottom = 860, 260, 64, 28
    most_x, most_y = values[-1][0] or 1, max(y for _, y in values) * 1.08

    def at(x: float, y: float) -> str:
        return f"{left + (width - left) * x / most_x:.1f},{(height - bottom) * (1 - y / most_y) + 6:.1f}"

    steps = " ".join(at(x, y) for x, y in values)
    area = f"{at(0, 0)} {steps} {at(most_x, 0)}"
    parts = [f'<polygon points="{area}" class="area"/><polyline points="{steps}" class="line"/>']
    for share in (0, 0.5, 1):
        y = share * max(y for _, y in values)
        x, line = (float(part) for part in at(0, y).split(","))
        parts.append(f'<text x="{x - 6}" y="{line + 4}" text-anchor="end">{y:.0f} {unit}</text>')
        parts.append(f'<line x1="{left}" x2="{width}" y1="{line}" y2="{line}" class="grid"/>')
    taken = 0.0
    for x, name in marks:
        place = float(at(x, 0).split(",")[0])
        line = height - 6 if place > taken else 16  # Beside the last name there is no room below.
        taken = place + 8 * len(name)
        parts.append(f'<line x1="{place}" x2="{place}" y1="6" y2="{height - bottom + 6}" class="mark"/>')
        parts.append(f'<text x="{place + 4}" y="{line}">{html.escape(name)}</text>')
    return framed(f'viewBox="0 0 {width} {height}" role="img"', parts)


def framed(attributes: str, parts: Iterable[str]) -> str:
    """Return an SVG in a frame that scrolls where the page is narrow."""
    return f'<div class="chart-frame"><svg class="chart" {attributes}>{"".join(parts)}</svg></div>'


def block_chart(segments: Sequence[Any], title: str) -> str:
    """Return an SVG of the allocator's segments, a row each: what is allocated filled, what is free open."""
    largest = max(sum(size for _, size, _ in segment.blocks) for segment in segments)
    width, row = 860, 20
    parts = []
    for number, segment in enumerate(segments):
        place = 0.0
        for _, size, is_allocated in segment.blocks:
            share = width * size / largest
            kind = "taken" if is_allocated else "free"
            parts.append(
                f'<rect x="{place:.1f}" y="{number * row}" width="{max(share - 0.5, 0.5):.1f}" '
                f'height="{row - 5}" class="{kind}"/>'
            )
            place += share
    height = row * len(segments)
    label = f'role="img" aria-label="{html.escape(title)}"'
    return framed(f'viewBox="0 0 {width} {height}" {label}', parts)


GENERATED: dict[str, Callable[..., str]] = {
    "settings": settings,
    "metrics": metrics,
    "facts": facts,
    "recipes": recipes,
    "models": models,
    "import-keys": import_keys,
    "commands": commands,
    "accuracy": accuracy_in_docs,
    "report": folded_report,
    "scenarios": scenario_files,
}
"""What `<!-- generated: NAME ARGUMENT... -->` in a page stands for."""


def with_accuracy(readme: str) -> str:
    """Return README with the accuracy table as the records have it."""
    return README_TABLE.sub(lambda match: f"{match[1]}{accuracy()}\n{match[2]}", readme)


if __name__ == "__main__":
    path = ROOT / "README.md"
    path.write_text(with_accuracy(path.read_text("utf-8")), encoding="utf-8")
