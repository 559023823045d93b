"""`fairvlm experiment`: a table of the papers, run."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import typer

from fairvlm_core.config import read_params
from fairvlm_core.errors import ConfigError
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
    jobs: Annotated[
        int, typer.Option(min=1, help="Processes side by side, each with one thread; what they print is in OUT/logs.")
    ] = 1,
    document: Annotated[
        Path | None, typer.Option(help="Markdown file in which the table stands between marks: it is written anew.")
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(help="Of an experiment with several settings (controlled), this one alone; may be repeated."),
    ] = None,
) -> None:
    """Run a table of the papers: every recipe over several seeds, with paired tests against the full method."""
    from fairvlm_core.experiments.grid import CHAIN, Suite
    from fairvlm_core.experiments.runner import run_experiment, run_suite, sized

    assert name  # or the command has said which there are
    grid = load_experiment(name)
    given = sized(grid, {step: read_params(params, step, STEPS) if params else {} for step in CHAIN}, toy=toy)
    flags = {"params": params, "root": root, "out": out, "seeds": seeds}
    said = [f"--{flag} {value}" for flag, value in flags.items() if value is not None]
    said += [f"--only {setting}" for setting in only or []]
    said += [f"--{flag}" for flag, asked in (("together", together), ("toy", toy)) if asked]
    command = " ".join([f"fairvlm experiment {name}", *said])
    if isinstance(grid, Suite):
        if together:
            raise ConfigError(
                f"{name} has one model for all attributes already.", where="--together", mend="Leave it out."
            )
        grid = grid.only(only) if only else grid
        grid = grid.small() if toy else grid
        run_suite(grid, given, out, seeds=seeds, root=root, jobs=jobs, command=command)
        typer.echo(f"The table over all settings is at {out / name}.md, .json and .png; it names the others.")
        _write(document, out)
        return
    if only:
        raise ConfigError(f"{name} has no settings to choose from.", where="--only", mend="Leave it out.")
    if together:
        grid = dataclasses.replace(grid, apart=False)
    found = run_experiment(grid, given, out, seeds=seeds, root=root, jobs=jobs, command=command)
    _show(found)
    typer.echo(f"The tables are at {out / name}.md, .json and .png.")
    typer.echo("Reports of the first seed: " + ", ".join(str(out / report) for report in found["reports"]))
    _write(document, out)


def _write(document: Path | None, out: Path) -> None:
    """Write the tables of a document anew whose marks name the folder that was written and a table in it."""
    from fairvlm_core.experiments.document import update

    if document is not None:
        done = update(document, out.absolute().parent)
        typer.echo(f"Written anew in {document}: {', '.join(done) or f'nothing, for it has no mark for {out.name}'}.")


def _show(found: dict[str, Any]) -> None:
    from rich.console import Console

    from fairvlm_core.experiments.tables import terminal

    Console().print(terminal(found))
