"""What a table was made with: which commit, seeds, hours and machine, as JSON and in a sentence."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from fairvlm_core.experiments.chain import Run, work_of
from fairvlm_core.experiments.schedule import WORK_FILE, place
from fairvlm_core.experiments.surroundings import commit_of_code, machine, versions
from fairvlm_core.files import read_json


def provenance(runs: Iterable[Run], out: Path, *, command: str) -> dict[str, Any]:
    """Where a table comes from.

    Returns:
        command; commit and dirty of the code that made the table; `work_commits`: commit (with + where files were
        changed) -> how many pieces of work it did; seeds; `pieces`; `hours`: what the work took in all, added up, in
        whichever process; `cpu_hours`: of a processor, likewise; `untimed`: pieces of which that is not known;
        machine {cpu, cores, gpu, system}; versions.
    """
    listed = list(runs)
    commits: dict[str, int] = {}
    seconds, busy, untimed, pieces = 0.0, 0.0, 0, work_of(listed)
    for work, _ in pieces:
        file = place(work, out) / WORK_FILE
        noted = read_json(file, made_by="experiment") if file.is_file() else {}
        seconds += noted.get("seconds", 0.0)
        busy += noted.get("cpu_seconds", 0.0)
        untimed += "seconds" not in noted
        name = f"{noted.get('commit', 'unknown')}{'+' if noted.get('dirty') else ''}"
        commits[name] = commits.get(name, 0) + 1
    return {
        **commit_of_code(),
        "command": command,
        "work_commits": commits,
        "seeds": sorted({run.seed for run in listed if not run.recipe.baseline}),
        "pieces": len(pieces),
        "hours": round(seconds / 3600, 2),
        "cpu_hours": round(busy / 3600, 2),
        "untimed": untimed,
        "machine": machine(),
        "versions": versions(),
    }


def told(found: Mapping[str, Any]) -> str:
    """The same in sentences, for the foot of a table."""
    hardware = found["machine"]
    device = hardware["gpu"] or f"{hardware['cpu']}, {hardware['cores']} cores"
    code = "an unknown commit"
    if "commit" in found:
        code = f"`{found['commit'][:7]}`{' with changes that were not committed' if found['dirty'] else ''}"
    known = (found.get("commit"), "unknown")
    others = [name for name in found["work_commits"] if name.rstrip("+") not in known]
    earlier = f" Parts of the work are of other commits: {_listed(name[:7] for name in others)}." if others else ""
    seeds = ", ".join(map(str, found["seeds"]))
    took, busy = (
        f"{hours:.1f} hours" if hours >= 1 else f"{60 * hours:.0f} minutes"
        for hours in (found["hours"], found["cpu_hours"])
    )
    lacking = f" ({found['untimed']} of them not timed)" if found["untimed"] else ""
    torch = found["versions"].get("torch", "unknown")
    return (
        f"At commit {code}, seeds {seeds}; {found['pieces']} pieces of work{lacking}, {took} added up, {busy} of "
        f"them on a processor; {device}; Python {found['versions']['python']}, torch {torch}.{earlier}"
    )


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in dict.fromkeys(names))
