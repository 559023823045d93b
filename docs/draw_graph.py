"""Draw the graph of dvc.yaml to docs/images/graph.svg: `python docs/draw_graph.py`.

Stages, folders and arrows are read from dvc.yaml; only where a stage stands is written here. An arrow that others
already imply (stage1 also reads the cohort) is left out.
"""

from __future__ import annotations

import re
from html import escape
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parent.parent
PARAMS = yaml.safe_load((ROOT / "params.yaml").read_text())  # one of them decides an arrow
PICTURE = ROOT / "docs" / "images" / "graph.svg"

# Column and row of each stage.
PLACES = {
    "ingest": (0, 0),
    "validate": (0, 1),
    "stratify": (0, 2),
    "base_models": (1, 1),
    "stage1": (2, 0),
    "stage2": (2, 1),
    "fair_moe": (2, 2),
    "predict": (3, 0),
    "tune_thresholds": (3, 1),
    "evaluate": (3, 2),
    "champion": (3, 3),
    "compare": (4, 1),
    "register": (4, 2),
}
HEADS = ("Cohort", "Base", "Training", "Judgement, per model", "Choice")
WIDTH, HEIGHT, ACROSS, DOWN = 144, 46, 180, 76  # of a box, and from box to box
LEFT, TOP = 18, 54
ROUND = 12  # of the corner of an arrow that goes around
FILLS = ("#e3eef8", "#ececec", "#e6f2e4", "#fbefd9", "#f3e6f3")

Node = tuple[str, str]  # stage, and item of its matrix (or nothing)


def graph(content: dict[str, Any]) -> tuple[dict[str, str], set[tuple[str, str]]]:
    """Stage -> the folder it writes, and the arrows between stages that no others imply."""
    reads: dict[Node, set[str]] = {}
    writes: dict[str, Node] = {}
    folders = {}
    for stage, body in content["stages"].items():
        items = body.get("matrix", {}).get("model", [""])
        for item in items:

            def filled(path: str, item: str = item) -> str:
                return re.sub(r"\$\{(\w+)\.(\w+)\}", lambda m: item if m[1] == "item" else PARAMS[m[1]][m[2]], path)

            reads[stage, item] = {filled(path) for path in body["deps"]}
            writes |= {filled(path): (stage, item) for path in body["outs"]}
        folders[stage] = body["outs"][0].replace("${item.model}", "*")
    edges = {(writes[path], node) for node, paths in reads.items() for path in paths if path in writes}
    return folders, {(a[0], b[0]) for a, b in reduced(edges)}


def reduced(edges: set[tuple[Node, Node]]) -> set[tuple[Node, Node]]:
    """The edges without those that a longer way replaces; the graph has no cycle."""
    after: dict[Node, set[Node]] = {}
    for a, b in edges:
        after.setdefault(a, set()).add(b)

    def reachable(node: Node) -> set[Node]:
        return set().union(*({b} | reachable(b) for b in after.get(node, ())))

    return {(a, b) for a, b in edges if not any(b in reachable(other) for other in after[a] - {b})}


def svg(folders: dict[str, str], edges: set[tuple[str, str]]) -> str:
    """The picture, on a white ground so that it can be read in a dark page."""
    columns, rows = (1 + max(place[i] for place in PLACES.values()) for i in (0, 1))
    width, height = 2 * LEFT + (columns - 1) * ACROSS + WIDTH, TOP + (rows - 1) * DOWN + HEIGHT + 24
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'role="img" font-family="system-ui, sans-serif">',
        f"<title>{escape(', '.join(f'{a} to {b}' for a, b in ordered(edges)))}</title>",
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0 8 4 0 8z" fill="#5b6770"/></marker></defs>',
        f'<rect width="{width}" height="{height}" rx="8" fill="#ffffff"/>',
    ]
    for column, head in enumerate(HEADS):
        x = LEFT + column * ACROSS + WIDTH / 2
        lines.append(f'<text x="{x}" y="30" text-anchor="middle" font-size="13" fill="#5b6770">{escape(head)}</text>')
    lines += [
        f'<path d="{arrow(a, b)}" fill="none" stroke="#5b6770" marker-end="url(#tip)"/>' for a, b in ordered(edges)
    ]
    for stage, folder in folders.items():
        x, y = corner(stage)
        fill = FILLS[PLACES[stage][0]]
        lines += [
            f'<rect x="{x}" y="{y}" width="{WIDTH}" height="{HEIGHT}" rx="6" fill="{fill}" stroke="#9aa5ad"/>',
            f'<text x="{x + WIDTH / 2}" y="{y + 20}" text-anchor="middle" font-size="14" font-weight="600" '
            f'fill="#1d2733">{escape(stage)}</text>',
            f'<text x="{x + WIDTH / 2}" y="{y + 36}" text-anchor="middle" font-size="10.5" fill="#46525c">'
            f"{escape(folder)}</text>",
        ]
    return "\n".join([*lines, "</svg>"]) + "\n"


def ordered(edges: set[tuple[str, str]]) -> list[tuple[str, str]]:
    names = list(PLACES)
    return sorted(edges, key=lambda edge: (names.index(edge[0]), names.index(edge[1])))


def corner(stage: str) -> tuple[int, int]:
    column, row = PLACES[stage]
    return LEFT + column * ACROSS, TOP + row * DOWN


def arrow(a: str, b: str) -> str:
    """Straight down within a column, else from the right side to the left side of the next one; farther, around."""
    (x0, y0), (x1, y1) = corner(a), corner(b)
    x, end, row = x0 + WIDTH / 2, x1 - 2, y1 + HEIGHT // 2
    if x0 == x1:
        return f"M{x} {y0 + HEIGHT} L{x} {y1 - 2}"
    if x1 - x0 > ACROSS:
        return f"M{x} {y0 + HEIGHT} L{x} {row - ROUND} Q{x} {row} {x + ROUND} {row} L{end} {row}"
    start, y0 = x0 + WIDTH, y0 + HEIGHT // 2
    bend = (end - start) / 2
    return f"M{start} {y0} C{start + bend} {y0} {end - bend} {row} {end} {row}"


def check(folders: dict[str, str], edges: set[tuple[str, str]]) -> None:
    """Every stage has a place of its own, and no arrow runs through a box."""
    if folders.keys() != PLACES.keys() or len(set(PLACES.values())) != len(PLACES):
        raise SystemExit(f"Give each stage of dvc.yaml a place in PLACES: {', '.join(folders.keys() ^ PLACES.keys())}.")
    for a, b in edges:
        (x0, y0), (x1, y1) = PLACES[a], PLACES[b]
        around = {(x0, y) for y in range(y0 + 1, y1 + 1)} | {(x, y1) for x in range(x0, x1)}
        free = x1 > x0 + 1 and y1 > y0 and not around & set(PLACES.values())
        if (x1 - x0, y1 - y0) != (0, 1) and x1 - x0 != 1 and not free:
            raise SystemExit(f"The arrow from {a} to {b} would run through others: move one of them.")


def picture(content: dict[str, Any]) -> str:
    """The SVG of a parsed dvc.yaml."""
    folders, edges = graph(content)
    check(folders, edges)
    return svg(folders, edges)


if __name__ == "__main__":
    PICTURE.write_text(picture(yaml.safe_load((ROOT / "dvc.yaml").read_text())))
