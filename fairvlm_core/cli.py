"""`fairvlm <step>`: one command per step, generated from the steps' configs, inputs and outputs."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import os
import sys
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from fairvlm_core.config import build, read_params, type_name
from fairvlm_core.errors import ConfigError, FairVLMError
from fairvlm_core.experiments import EXPERIMENTS, load_experiment
from fairvlm_core.export import export
from fairvlm_core.steps import STEPS, execute, step_module

# Nothing phones home: set before any of these libraries is imported, and only where the user has not decided otherwise.
QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "GX_ANALYTICS_ENABLED": "false",
    "DVC_NO_ANALYTICS": "true",
    "TOKENIZERS_PARALLELISM": "false",
}

app = typer.Typer(
    name="fairvlm",
    help="Fairness-aware training of medical vision-language models: each command is one step of the pipeline.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    add_completion=False,
)


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _command(name: str) -> Callable[..., None]:
    """A function whose signature is the step's inputs, outputs and config, which typer turns into flags."""
    module = step_module(name)
    hints = typing.get_type_hints(module.Config)
    parameters, defaults = [], module.Config()

    def add(key: str, kind: Any, help: str, panel: str, required: bool = False) -> None:
        flags = f"{_flag(key)}/--no-{_flag(key)[2:]}" if bool in typing.get_args(kind) else _flag(key)
        annotation = Annotated[kind, typer.Option(flags, help=help, rich_help_panel=panel, show_default=False)]
        default = inspect.Parameter.empty if required else None
        parameters.append(
            inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
        )

    for key, port in module.INPUTS.items():
        add(key, Path if not port.optional else Path | None, port.help, "Inputs", required=not port.optional)
    for key, port in module.OUTPUTS.items():
        add(key, Path, port.help, "Outputs", required=True)
    add(
        "params",
        Path | None,
        f"YAML file whose section `{name}` gives the parameters; flags win over it.",
        "Parameters",
    )
    for field in dataclasses.fields(module.Config):
        value = getattr(defaults, field.name)
        kind = {bool: bool, int: int, float: float}.get(hints[field.name], str)
        shown = f" [{type_name(hints[field.name])}; default: {_shown(value)}]"
        add(field.name, kind | None, field.metadata.get("help", "") + shown, "Parameters")

    def command(**given: Any) -> None:
        values = read_params(given["params"], name, STEPS) if given["params"] else {}
        for field in dataclasses.fields(module.Config):
            if given[field.name] is not None:
                values[field.name] = _parsed(given[field.name], hints[field.name], _flag(field.name))
        where = f"{given['params']}, section {name}" if given["params"] else f"fairvlm {name}"
        config = build(module.Config, values, where=where)
        execute(
            name,
            config,
            {key: given[key] for key in module.INPUTS},
            {key: given[key] for key in module.OUTPUTS},
        )

    command.__doc__ = inspect.getdoc(module)
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in parameters}
    return command


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return ", ".join(map(str, value)) or "none"
    return "none" if value is None or value == {} else str(value)


def _parsed(value: Any, hint: Any, flag: str) -> Any:
    """Lists are written with commas, mappings as inline YAML; what is typed otherwise arrives as it is."""
    if not isinstance(value, str):
        return value
    if typing.get_origin(hint) is dict or hint is dict:
        import yaml

        try:
            parsed = yaml.safe_load(value)
        except yaml.YAMLError:
            parsed = None
        if not isinstance(parsed, dict):
            raise ConfigError(f"{flag} is not a mapping.", mend=f"Write it like {flag} '{{name: value}}'.")
        return parsed
    members, none = typing.get_args(hint), value.lower() in ("none", "null")
    try:
        if typing.get_origin(hint) is tuple:
            return tuple(members[0](item.strip()) for item in value.split(",") if item.strip() and not none)
        if type(None) in members:
            return None if none else next(m for m in members if m is not type(None))(value)
    except ValueError:
        mend = f"Give a value of the type {type_name(hint)}."
        raise ConfigError(f"{flag} cannot be {value!r}.", where=flag, mend=mend) from None
    return value


for _step in STEPS:
    app.command(_step)(_command(_step))


@app.command()
def report(
    predictions: Annotated[
        Path, typer.Argument(help="Predictions as Parquet or CSV, or the folder that holds predictions.parquet.")
    ],
    out: Annotated[Path, typer.Option(help="The file to write: .html, or .md for the short report in Markdown.")],
    min_cell: Annotated[int, typer.Option(help="Groups with fewer images than this are suppressed.")] = 10,
) -> None:
    """Write a fairness report from anybody's predictions file: a self-contained page, or a short one in Markdown."""
    from fairvlm_core.evaluation.report import write_report

    write_report(predictions, out, min_cell=min_cell)
    typer.echo(f"The report is at {out}.")


@app.command()
def summary(comparison: Annotated[Path, typer.Argument(help="Folder that `fairvlm compare` wrote.")]) -> None:
    """Print the table of all models, and where the report is."""
    from fairvlm_core.evaluation.report import print_summary

    print_summary(comparison)


def _named(name: str | None) -> str:
    """The name of an experiment; without one, say which there are and what they compare, before anything is asked."""
    if name:
        return name
    width = max(map(len, EXPERIMENTS))
    for known in EXPERIMENTS:
        typer.echo(f"{known:{width}}  {load_experiment(known).title}")
    typer.echo("Run one of them: fairvlm experiment NAME --out FOLDER. More: fairvlm experiment --help.")
    raise typer.Exit(2)


@app.command()
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


app.command()(export)


@app.command()
def submit(
    pipeline: Annotated[
        Path | None, typer.Argument(help="The compiled pipeline; without one, pipelines/fairvlm.yaml.")
    ] = None,
    *,
    host: Annotated[
        str, typer.Option(envvar="KF_PIPELINES_ENDPOINT", help="Address of the UI of Kubeflow Pipelines.")
    ] = "",
    namespace: Annotated[str, typer.Option(help="Your profile's; none where Kubeflow has no profiles.")] = "",
    experiment: Annotated[
        str, typer.Option(help="Under which the UI lists the run; made if it is not there.")
    ] = "fairvlm",
    params: Annotated[
        Path | None, typer.Option(help="A params.yaml for this run; what it leaves out has the step's default.")
    ] = None,
    set: Annotated[
        list[str] | None,
        typer.Option("--set", help="field=value of the form, or step.field=value; wins over --params."),
    ] = None,
    service_account: Annotated[
        str, typer.Option(help="Account of the pods, as deploy/ makes it; an empty one: the cluster's own.")
    ] = "fairvlm",
    schedule: Annotated[
        str, typer.Option(help='Instead of once, whenever this says: "0 3 * * 1" is Mondays at 3, in UTC mostly.')
    ] = "",
    upload_only: Annotated[bool, typer.Option("--upload-only", help="Start nothing.")] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Until the run has ended; exit status 1 if it failed.")] = False,
) -> None:
    """Upload the compiled pipeline to Kubeflow and start a run there, now or on a schedule.

    A token is read from KFP_TOKEN in the environment, or from the file that KF_PIPELINES_SA_TOKEN_PATH names.
    """
    code = importlib.import_module("pipelines.submit")  # by name: nothing here may import kfp
    succeeded = code.submit(
        pipeline,
        host=host,
        namespace=namespace,
        experiment=experiment,
        params=params,
        changes=set or (),
        service_account=service_account,
        schedule=schedule,
        upload_only=upload_only,
        until_ended=wait,
        say=typer.echo,
    )
    if not succeeded:
        raise typer.Exit(1)


def main() -> None:
    """Entry point: a mistake of the user's is printed as what, where and mend, with exit status 2."""
    for key, value in QUIET.items():
        os.environ.setdefault(key, value)
    try:
        app()
    except FairVLMError as error:
        typer.secho(str(error), err=True, fg="red" if sys.stderr.isatty() else None)
        sys.exit(2)


if __name__ == "__main__":
    main()
