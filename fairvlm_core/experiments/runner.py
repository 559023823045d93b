"""Run a grid: tune, train every seed, and write the table with all that one needs to believe it or not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fairvlm_core.errors import ConfigError
from fairvlm_core.experiments.baselines import with_baselines
from fairvlm_core.experiments.chain import Run, plan
from fairvlm_core.experiments.grid import Experiment, Params, Suite, changed, resolved
from fairvlm_core.experiments.heads import READS_GROUPS
from fairvlm_core.experiments.schedule import STEPS_FOLDER, carry_out, place
from fairvlm_core.experiments.tuning import TUNING_SEED, choose, trials
from fairvlm_core.files import read_json, write_json

# Setting -> experiment -> the content of its table.
Found = dict[str, dict[str, dict[str, Any]]]


def run_experiment(
    experiment: Experiment,
    params: Params,
    out: Path,
    *,
    seeds: int = 5,
    root: Path | None = None,
    jobs: int = 1,
    command: str = "",
) -> dict[str, Any]:
    """Run what is missing, then write the table as Markdown, JSON and PNG and the reports of one seed into `out`.

    A second picture, NAME-front.png, has accuracy against the gaps. Published numbers stand beside ours where
    `ingest.dataset` is the data set of the paper. Baselines are added to the recipes.

    There is one report of all the recipes, or where each attribute has its own models, one for each attribute.

    Args:
        jobs: processes side by side; see `schedule.carry_out`.
        command: what was called, to stand in the table.

    Returns:
        The content of the table, with the folders of every run and the names of the reports.

    Raises:
        ConfigError: for wrong parameters, before anything runs, or an `out` that holds other things.
    """
    whole = with_baselines(resolved(experiment, params), params)
    check(whole, params, out, seeds=seeds, root=root)
    tried = trials(whole, params, root)
    grid, tuning = choose(whole, tried, out, carry_out(flat(tried), out, jobs=jobs, tolerant=True))
    runs = plan(grid, params, seeds=seeds, root=root)
    carry_out(runs, out, jobs=jobs)
    return write_tables(whole, grid, tuning, [*flat(tried), *runs], runs, out, command=command)


def write_tables(
    whole: Experiment,
    grid: Experiment,
    tuning: list[dict[str, Any]],
    all_runs: Sequence[Run],
    runs: Sequence[Run],
    out: Path,
    *,
    command: str,
) -> dict[str, Any]:
    """Write all files of one experiment, whose work is done; returns the content of the table.

    Args:
        whole: with its candidates; `grid` with what was chosen, as `tuning` says.
        all_runs: those of the candidates, too.
    """
    from fairvlm_core.experiments.diagnostics import diagnostics
    from fairvlm_core.experiments.picture import draw, draw_front
    from fairvlm_core.experiments.provenance import provenance
    from fairvlm_core.experiments.summary import summarise
    from fairvlm_core.experiments.tables import markdown
    from fairvlm_core.files import written

    first = runs[0].work
    min_cell, dataset = first["evaluate"].config.min_cell, first["ingest"].config.dataset
    summary = summarise(grid, evaluations(runs, out), min_cell=min_cell, dataset=dataset)
    summary["tuning"] = tuning
    summary["follows"] = {recipe.name: recipe.follows for recipe in whole.recipes if recipe.follows}
    summary["diagnostics"] = diagnostics(runs, out, trained=grid.trained)
    summary["provenance"] = provenance(all_runs, out, command=command)
    summary["runs"] = {
        recipe.name: [_described_run(run) for run in runs if run.recipe.name == recipe.name] for recipe in grid.recipes
    }
    summary["reports"] = _write_reports(grid, runs, out, min_cell=min_cell)
    write_json(out / f"{grid.name}.json", summary)
    with written(out / f"{grid.name}.md") as partial:
        partial.write_text(markdown(summary), encoding="utf-8")
    draw(summary, out / f"{grid.name}.png")
    draw_front(summary, out / f"{grid.name}-front.png")
    return summary


def run_suite(
    suite: Suite,
    params: Params,
    out: Path,
    *,
    seeds: int = 5,
    root: Path | None = None,
    jobs: int = 1,
    command: str = "",
) -> dict[str, Any]:
    """Run every experiment of a suite in the same `out`, then write its own table and picture over all of them.

    All work of all experiments is in one plan, so that several processes are never out of work between two tables.

    Returns:
        The content of the table; see `suite.summarise_suite`.

    Raises:
        ConfigError: for wrong parameters of any experiment, before anything runs.
    """
    from fairvlm_core.experiments.provenance import provenance
    from fairvlm_core.experiments.suite import draw_suite, suite_markdown, summarise_suite
    from fairvlm_core.files import written

    names = {grid.name: setting for setting, each in suite.experiments.items() for grid in each}
    grids = [with_baselines(resolved(grid, params), params) for each in suite.experiments.values() for grid in each]
    for grid in grids:
        check(grid, params, out, seeds=seeds, root=root)
    tried = {grid.name: trials(grid, params, root) for grid in grids}
    failed = carry_out([run for each in tried.values() for run in flat(each)], out, jobs=jobs, tolerant=True)
    chosen = {grid.name: choose(grid, tried[grid.name], out, failed) for grid in grids}
    runs = {name: plan(grid, params, seeds=seeds, root=root) for name, (grid, _) in chosen.items()}
    # Seed by seed over all tables: what a night is too short for can be shown with fewer --seeds.
    carry_out(sorted((run for each in runs.values() for run in each), key=lambda run: run.seed), out, jobs=jobs)
    found: Found = {}
    everything: list[Run] = []
    for grid in grids:
        settled, tuning = chosen[grid.name]
        every = [*flat(tried[grid.name]), *runs[grid.name]]
        table = write_tables(grid, settled, tuning, every, runs[grid.name], out, command=command)
        found.setdefault(names[grid.name], {})[grid.name] = table
        everything += every
    summary = summarise_suite(suite, found, made=provenance(everything, out, command=command))
    write_json(out / f"{suite.name}.json", summary)
    with written(out / f"{suite.name}.md") as partial:
        partial.write_text(suite_markdown(summary), encoding="utf-8")
    draw_suite(summary, out / f"{suite.name}.png")
    return summary


def flat(tried: Mapping[str, Sequence[Sequence[Run]]]) -> list[Run]:
    """All runs of all candidates."""
    return [run for candidates in tried.values() for candidate in candidates for run in candidate]


def check(experiment: Experiment, params: Params, out: Path, *, seeds: int, root: Path | None) -> None:
    """Tell everything that is wrong with the parameters and the folder before anything runs.

    Raises:
        ConfigError: for a recipe or a candidate whose parameters are wrong, too many seeds, or an `out` that holds
            other things.
    """
    plan(experiment, params, seeds=seeds, root=root)
    trials(experiment, params, root)
    if experiment.budget > 1 and seeds > TUNING_SEED:
        raise ConfigError(
            f"The seed {TUNING_SEED} chooses among the candidates, so that no table can report it.",
            where="--seeds",
            mend=f"Give a number of at most {TUNING_SEED}.",
        )
    if out.exists() and not (out / STEPS_FOLDER).is_dir() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(
            "This exists already and was not written by an experiment.",
            where=str(out),
            mend="Pass a new or an empty folder to --out.",
        )


def sized(grid: Experiment | Suite, params: Params, *, toy: bool) -> dict[str, dict[str, Any]]:
    """The parameters that a grid is run with: those given, and with `toy` the grid's small ones in their place."""
    return changed(params, grid.toy if toy else {}, where=grid.name)


def evaluations(runs: Sequence[Run], out: Path) -> dict[str, dict[str | None, list[dict[str, Any]]]]:
    """What evaluate found for each recipe and attribute (see `Run`), one per seed in the order of the seeds."""
    found: dict[str, dict[str | None, list[dict[str, Any]]]] = {}
    for run in runs:
        by_attribute = found.setdefault(run.recipe.name, {})
        judged = read_json(place(run.work["evaluate"], out) / "evaluation.json", made_by="experiment")
        by_attribute.setdefault(run.attribute, []).append(judged)
    return found


def _described_run(run: Run) -> dict[str, Any]:
    folders = {step: f"{STEPS_FOLDER}/{work.folder}" for step, work in run.work.items()}
    return {"seed": run.seed, "attribute": run.attribute, "steps": folders}


def _write_reports(experiment: Experiment, runs: Sequence[Run], out: Path, *, min_cell: int) -> list[str]:
    """All recipes side by side with the first seed, by attribute where each has its own models; the files' names."""
    from fairvlm_core.evaluation.report import write_side_by_side
    from fairvlm_core.evaluation.report.words import attribute_name
    from fairvlm_core.experiments.tables import READS

    names = []
    mark: Mapping[str, str] = {recipe.name: f" {READS}" for recipe in experiment.recipes if recipe.head in READS_GROUPS}
    said = f"; {READS} needs the patient's demographics at inference" if mark else ""
    for attribute in dict.fromkeys(run.attribute for run in runs):
        name, title = experiment.name, experiment.title
        if attribute is not None:
            name, title = f"{name}-{attribute}", f"{title}: the models for {attribute_name(attribute)}"
        names.append(f"{name}.html")
        first = {
            run.recipe.title + mark.get(run.recipe.name, ""): place(run.work["evaluate"], out)
            for run in runs
            if (run.seed, run.attribute) == (0, attribute)
        }
        write_side_by_side(first, out / names[-1], title=f"{title}, the first seed{said}", min_cell=min_cell)
    return names
