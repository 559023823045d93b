"""`fairvlm experiment`: a table of the papers, run."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from fairvlm_core.config import read_params
from fairvlm_core.experiments import EXPERIMENTS, load_experiment
from fairvlm_core.steps import STEPS


def _named(name: str | None) -> str:
    """The name of an experiment; without one, say which there are and what they compare, before anything is asked."""
    if name:
        return name
    width = max(map(len, EXPERIMENTS))
    for known in EXPERIMENTS:
        typer.echo(f"{known:{width}}  {load_experiment(known).title}")
    typer.echo("Run one of them: fairvlm experiment NAME --out FOLDER. More: fairvlm experiment --help.")
    raise typer.Exit(2)


def experiment(
    *,
    name: Annotated[
        str | None,
        typer.Argument(
            help=f"{', '.join(EXPERIMENTS)}. Without a name, the command says what each of them compares.",
            callback=_named,
            is_eager=True,
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder to write; what an earlier run left there is not repeated.")],
    params: Annotated[Path | None, typer.Option(help="YAML file with a section per step, as for the steps.")] = None,
    root: Annotated[Path | None, typer.Option(help="Folder of the release, as for ingest.")] = None,
    seeds: Annotated[int, typer.Option(help="Trainings of each recipe, with the seeds 0, 1, ...")] = 5,
    together: Annotated[
        bool,
        typer.Option(
            "--together", help="One model for all attributes at once also where the table has one for each (Fair-MoE)."
        ),
    ] = False,
    toy: Annotated[
        bool, typer.Option("--toy", help="So small that it takes a minute or two and shows nothing.")
    ] = False,
) -> None:
    """Run a table of the papers: every recipe over several seeds, with paired tests against the full method."""
    from rich.console import Console

    from fairvlm_core.experiments.grid import CHAIN, changed
    from fairvlm_core.experiments.runner import run_experiment
    from fairvlm_core.experiments.tables import terminal

    assert name  # or the command has said which there are
    grid = load_experiment(name)
    if together:
        grid = dataclasses.replace(grid, apart=False)
    given = {step: read_params(params, step, STEPS) if params else {} for step in CHAIN}
    found = run_experiment(grid, changed(given, grid.toy if toy else {}, where=name), out, seeds=seeds, root=root)
    Console().print(terminal(found))
    typer.echo(f"The tables are at {out / name}.md, .json and .png.")
    typer.echo("Reports of the first seed: " + ", ".join(str(out / report) for report in found["reports"]))
