"""`fairvlm <step>`: one command per step, generated from the steps' configs, inputs and outputs."""

from __future__ import annotations

import dataclasses
import inspect
import os
import sys
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from fairvlm_core.commands import COMMANDS, command
from fairvlm_core.config import build, read_params, type_name
from fairvlm_core.errors import ConfigError, FairVLMError
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


for _name in COMMANDS:
    app.command(_name)(command(_name))


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
