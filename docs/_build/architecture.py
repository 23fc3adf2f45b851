"""Draws the packages of qbench and who imports whom, from the import statements: docs/pictures/architecture.svg.

`python docs/_build/architecture.py` draws it anew. An arrow that follows from others is left out.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PICTURE = ROOT / "docs" / "pictures" / "architecture.svg"
FLOOR = {"errors", "units", "files", "version", "quiet", "quick_imports"}
"""Modules below every package, which stand in one box."""
LEFT_OUT = {"__init__", "__main__"}
WIDTH, ROW, BOX = 1040, 84, 34

Graph = dict[str, set[str]]


def imports() -> Graph:
    """Return which packages each package of qbench imports, directly."""
    found: Graph = {}
    for path in sorted((ROOT / "qbench").rglob("*.py")):
        layer = path.relative_to(ROOT / "qbench").parts[0].removesuffix(".py")
        if layer in LEFT_OUT | FLOOR:
            continue
        targets = set(_targets(ast.parse(path.read_text("utf-8"))))
        found.setdefault(layer, set()).update(targets - {layer} - FLOOR - LEFT_OUT)
    return found


def _targets(tree: ast.AST) -> Iterator[str]:
    """Yield the package of qbench that each absolute import names."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names = [node.module] if "." in node.module else [f"{node.module}.{one.name}" for one in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        yield from (name.split(".")[1] for name in names if name.startswith("qbench."))


def reduced(graph: Graph) -> Graph:
    """Return the graph without the edges that follow from others."""
    reach: Graph = {}
    for name in TopologicalSorter(graph).static_order():
        below = graph.get(name, set())
        reach[name] = below.union(*(reach[one] for one in below))
    return {
        name: {one for one in below if not any(one in reach[other] for other in below - {one})}
        for name, below in graph.items()
    }


def rows(graph: Graph) -> list[list[str]]:
    """Return the packages in rows, each above all that it imports; the lowest row comes last."""
    height: dict[str, int] = {}
    for name in TopologicalSorter(graph).static_order():
        height[name] = 1 + max((height[one] for one in graph.get(name, ())), default=-1)
    return [
        sorted(name for name in height if height[name] == level)
        for level in range(max(height.values()), -1, -1)
    ]


def svg() -> str:
    """Return the picture."""
    graph = imports()
    places: dict[str, tuple[float, float, float]] = {}
    layers = rows(graph)
    arrows = reduced(graph)
    for number, names in reversed([*enumerate(layers)]):

        def middle(name: str) -> float:
            """Where the packages stand that it imports, so that few arrows cross."""
            return sum(places[one][0] for one in arrows[name]) / max(len(arrows[name]), 1)

        for at, name in enumerate(sorted(names, key=middle)):
            wide = 20 + 9 * len(name)
            places[name] = (WIDTH * (at + 1) / (len(names) + 1), 30 + ROW * number, wide)
    lines = [_arrow(places[name], places[one]) for name in sorted(arrows) for one in sorted(arrows[name])]
    boxes = [_box(name, *place) for name, place in places.items()]
    bottom = 30 + ROW * len(layers)
    floor = ", ".join(sorted(FLOOR))
    boxes.append(_box(floor, WIDTH / 2, bottom, WIDTH - 40))
    style = (
        "text{font:14px system-ui,sans-serif;text-anchor:middle;fill:#1c2434}"
        "rect{fill:#e8ecff;stroke:#4051b5}path{fill:none;stroke:#7a86b8;stroke-width:1.3}"
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {bottom + 50}">\n<style>{style}</style>\n'
        f'<path d="M0 0h{WIDTH}v{bottom + 50}h-{WIDTH}z" style="fill:#fff;stroke:none"/>\n'
        + "\n".join(lines + boxes)
        + "\n</svg>\n"
    )


def _box(name: str, x: float, y: float, wide: float) -> str:
    return (
        f'<rect x="{x - wide / 2:.0f}" y="{y:.0f}" width="{wide:.0f}" height="{BOX}" rx="6"/>'
        f'<text x="{x:.0f}" y="{y + 22:.0f}">{name}</text>'
    )


def _arrow(start: tuple[float, float, float], end: tuple[float, float, float]) -> str:
    (x, y, _), (to_x, to_y, _) = start, end
    top, bottom = y + BOX, to_y
    middle = (top + bottom) / 2
    return f'<path d="M{x:.0f} {top:.0f}C{x:.0f} {middle:.0f} {to_x:.0f} {middle:.0f} {to_x:.0f} {bottom:.0f}"/>'


if __name__ == "__main__":
    PICTURE.parent.mkdir(exist_ok=True)
    PICTURE.write_text(svg(), encoding="utf-8")
