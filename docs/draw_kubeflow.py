"""Draw what Kubeflow makes of the compiled pipeline: `python docs/draw_kubeflow.py`, which needs chromium.

Fields, lists, tasks, arrows and pools are read from pipelines/fairvlm.yaml; only which column a task stands in is
written here. Each picture carries the hash of the page it was made from, so that a test can tell an old one.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

import yaml
from PIL import Image, PngImagePlugin

ROOT = Path(__file__).parent.parent
PIPELINE = ROOT / "pipelines" / "fairvlm.yaml"
PICTURES = ROOT / "docs" / "images"
MADE_FROM = "made-from"  # key of the hash in a picture
SIZES = {"kubeflow-form": (860, 940), "kubeflow-run": (860, 1120)}  # of the pages, in CSS pixels
COLUMNS = {"stage1": 0, "stage2": 1, "fair_moe": 2, "champion": 3}  # all other tasks stand in that of stage2
WIDTH, HEIGHT, ACROSS, DOWN, LEFT, TOP = 186, 44, 204, 72, 2, 4
STYLE = """
* { box-sizing: border-box }
body { margin: 0; padding: 24px 28px; color: #1d2733; background: #fff }
body { font: 14px/1.4 system-ui, "DejaVu Sans", sans-serif }
h1 { font-size: 18px; margin: 0 0 14px } h2 { font-size: 15px; margin: 18px 0 8px; color: #1a73e8 }
.row { display: grid; grid-template-columns: 220px 1fr; gap: 2px 14px; align-items: center; padding: 5px 0 }
label { font-family: ui-monospace, "DejaVu Sans Mono", monospace; font-size: 13px }
input, select { font: inherit; width: 100%; padding: 5px 8px; background: #fff }
input, select { border: 1px solid #9aa5ad; border-radius: 4px }
small, footer { color: #46525c; font-size: 12px } small { grid-column: 2 }
footer { margin-top: 14px; border-top: 1px solid #d5dadd; padding-top: 8px }
"""


def read(path: Path = PIPELINE) -> dict[str, Any]:
    """The graph's document of a compiled pipeline."""
    with path.open() as handle:
        return dict(next(yaml.safe_load_all(handle)))


def page(title: str, body: str, footer: str) -> str:
    """A page of HTML that says under its content that it is not the UI."""
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(title)}</title><style>{STYLE}</style>'
        f"<body>{body}<footer>{escape(footer)}</footer></body></html>\n"
    )


def form(spec: Mapping[str, Any]) -> str:
    """The form of a run: the fields sorted by name, as the UI sorts them, and a list where the file offers one."""
    rows = []
    for name, field in sorted(spec["root"]["inputDefinitions"]["parameters"].items()):
        value = field.get("defaultValue", "")
        if "literals" in field:
            options = "".join(
                f"<option{' selected' if item == value else ''}>{escape(item)}</option>" for item in field["literals"]
            )
            box = f'<select id="{name}">{options}</select>'
        else:
            shown = escape("{}" if value == {} else str(value), quote=True)
            box = f'<input id="{name}" value="{shown}">'
        offered = f"<small>{escape(' · '.join(field['literals']))}</small>" if "literals" in field else ""
        rows.append(f'<div class="row"><label for="{name}">{name}</label>{box}{offered}</div>')
    head = (
        ("Pipeline", spec["pipelineInfo"]["name"]),
        ("Experiment", "fairvlm"),
        ("Service account", "fairvlm"),
    )
    details = "".join(
        f'<div class="row"><span>{label}</span><input value="{escape(value, quote=True)}"></div>'
        for label, value in head
    )
    return page(
        "Start a run",
        f"<h1>Start a run</h1>{details}<h2>Run parameters</h2>{''.join(rows)}",
        "A rendering of pipelines/fairvlm.yaml by docs/draw_kubeflow.py, not a picture of the Kubeflow UI, which shows "
        "the same fields in this order. The line under a list says what it offers; the UI has no such line.",
    )


def tasks_of(spec: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Name -> task, of every task that has a container."""
    return {
        name: task
        for graph in (spec["root"], *spec["components"].values())
        for name, task in graph.get("dag", {}).get("tasks", {}).items()
        if "executorLabel" in spec["components"][task["componentRef"]["name"]]
    }


def tasks(spec: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Name -> `title`, `after` (names), `pool` (what the label says): every task but those that look up a pool."""
    found = tasks_of(spec)
    declared = spec["root"]["inputDefinitions"]["parameters"]

    def field(task: Mapping[str, Any]) -> str:
        """The field of the form that a task `pool` reads; nothing for another task."""
        chosen = task.get("inputs", {}).get("parameters", {}).get("name", {}).get("componentInputParameter", "")
        name = chosen.removeprefix("pipelinechannel--")
        return name if name in declared and task["componentRef"]["name"].startswith("comp-pool") else ""

    pools = {name: chosen for name, task in found.items() if (chosen := field(task))}
    drawn = {}
    for name, task in found.items():
        if name in pools:
            continue
        before = task.get("dependentTasks", [])
        (asked,) = {pools[other] for other in before if other in pools} or {""}
        drawn[name] = {
            "title": task["taskInfo"]["name"],
            "after": {other for other in before if other in found and other not in pools},
            "pool": f"{asked}: {declared[asked]['defaultValue']}" if asked else "cpu",
        }
    ends = {name for name in drawn if not any(name in task["after"] for task in drawn.values())}
    last = next(name for name, task in found.items() if "triggerPolicy" in task)
    drawn[last]["after"] = ends - {last}
    return drawn


def graph(spec: Mapping[str, Any]) -> str:
    """The tasks from top to bottom, with arrows that no others imply, and the pool that each asks for."""
    drawn = tasks(spec)

    def before(name: str) -> set[str]:
        return set().union(*({other} | before(other) for other in drawn[name]["after"]))

    def row(name: str) -> int:
        return 1 + max((row(other) for other in drawn[name]["after"]), default=-1)

    def column(name: str) -> int:
        title = drawn[name]["title"].replace("fair-moe", "fair_moe")
        return next((at for model, at in COLUMNS.items() if re.search(rf"(^|-){model}$", title)), COLUMNS["stage2"])

    places = {name: (LEFT + column(name) * ACROSS, TOP + row(name) * DOWN) for name in drawn}
    if len(set(places.values())) != len(places):
        raise SystemExit("Two tasks would stand in one place: give one of them another column in COLUMNS.")
    height = max(y for _, y in places.values()) + HEIGHT + 12
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="804" height="{height}" font-family="system-ui, DejaVu Sans">',
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0 8 4 0 8z" fill="#5b6770"/></marker></defs>',
    ]
    for name, task in sorted(drawn.items()):
        x, y = places[name]
        nearest = {other for other in task["after"] if not any(other in before(more) for more in task["after"])}
        for other in sorted(nearest):
            (x0, y0), (x1, gap) = places[other], (x, y - DOWN + HEIGHT)
            x0, x1, y0 = x0 + WIDTH // 2, x1 + WIDTH // 2, y0 + HEIGHT
            bend = f"C{x0} {y - 8} {x1} {gap + 4} {x1} {y - 2}"
            lines.append(f'<path d="M{x0} {y0} V{gap} {bend}" fill="none" stroke="#5b6770" marker-end="url(#tip)"/>')
        fill = {"cpu": "#ffffff"}.get(task["pool"], "#fbefd9" if task["pool"].endswith("large") else "#e3eef8")
        middle = x + WIDTH // 2
        lines += [
            f'<rect x="{x}" y="{y}" width="{WIDTH}" height="{HEIGHT}" rx="6" fill="{fill}" stroke="#9aa5ad"/>',
            f'<text x="{middle}" y="{y + 19}" text-anchor="middle" font-size="12.5" font-weight="600" fill="#1d2733">'
            f"{escape(task['title'])}</text>",
            f'<text x="{middle}" y="{y + 35}" text-anchor="middle" font-size="11" fill="#46525c">'
            f"{escape(task['pool'])}</text>",
        ]
    return page(
        "The tasks of a run",
        "\n".join([*lines, "</svg>"]),
        "Drawn from pipelines/fairvlm.yaml by docs/draw_kubeflow.py, not a picture of the Kubeflow UI. Under a task's "
        "name: its pool, with the field of the form that chooses it. Arrows that others imply are left out, and so are "
        "the four tasks that look up a pool. report-status runs however the run ends.",
    )


def pages(spec: Mapping[str, Any]) -> dict[str, str]:
    """Picture -> its page."""
    return {"kubeflow-form": form(spec), "kubeflow-run": graph(spec)}


def mark(html: str) -> str:
    """The hash that a picture carries of its page."""
    return hashlib.sha256(html.encode()).hexdigest()


def draw(name: str, html: str) -> None:
    """Let chromium take the picture, in 64 colours, which a drawing does with."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        raise SystemExit("There is no chromium here to take the pictures with.")
    with tempfile.TemporaryDirectory() as folder:
        source, taken = Path(folder) / "page.html", Path(folder) / "page.png"
        source.write_text(html)
        size = ",".join(map(str, SIZES[name]))
        options = ("--headless", "--no-sandbox", "--hide-scrollbars", "--force-device-scale-factor=1.5")
        command = [browser, *options, f"--window-size={size}", f"--screenshot={taken}", source.as_uri()]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if not taken.is_file():
            sys.exit(f"chromium took no picture: {done.stderr.strip().splitlines()[-1:]}")
        information = PngImagePlugin.PngInfo()
        information.add_text(MADE_FROM, mark(html))
        with Image.open(taken) as picture:
            small = picture.convert("RGB").quantize(64)
        small.save(PICTURES / f"{name}.png", optimize=True, pnginfo=information)


if __name__ == "__main__":
    for picture, html in pages(read()).items():
        draw(picture, html)
