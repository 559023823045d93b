"""Configs of steps: one frozen dataclass each; the same fields are the params.yaml section and the CLI flags."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from fairvlm_core.errors import ConfigError, nearest

C = TypeVar("C")


@dataclass(frozen=True)
class Port:
    """A path that a step reads or writes: what it is, and whether the step can do without it."""

    help: str
    optional: bool = False


def option(
    default: Any, help: str, *, choices: tuple[str, ...] = (), low: float | None = None, high: float | None = None
) -> Any:
    """A config field with its help text and the values it can have (inclusive bounds), checked by `check`."""
    metadata = {"help": help, "choices": choices, "low": low, "high": high}
    if isinstance(default, (list, dict)):
        return dataclasses.field(default_factory=lambda: type(default)(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def check(config: Any) -> None:
    """Check a config's fields against their types, choices and bounds; lists become tuples.

    Called from `__post_init__` of each config.

    Raises:
        ConfigError: naming the field, its value and what it can be.
    """
    hints = typing.get_type_hints(type(config))
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if isinstance(value, list):
            value = tuple(value)
        if float in _members(hints[field.name]) and str not in _members(hints[field.name]):
            value = _number(value)
        object.__setattr__(config, field.name, value)
        where = f"{_section(type(config))}.{field.name}"
        if not _fits(value, hints[field.name]):
            raise ConfigError(
                f"{where} cannot be {value!r}.",
                where=where,
                mend=f"Give a value of the type {type_name(hints[field.name])}.",
            )
        choices, low, high = (field.metadata.get(key) for key in ("choices", "low", "high"))
        for item in value if isinstance(value, tuple) else (value,):
            if choices and item is not None and item not in choices:
                raise ConfigError(f"{where} cannot be {item!r}.", where=where, mend=nearest(str(item), choices))
            if item != item:
                raise ConfigError(f"{where} cannot be {item!r}.", where=where, mend="Give a number.")
            if isinstance(item, (int, float)) and (
                (low is not None and item < low) or (high is not None and item > high)
            ):
                bounds = (
                    f"at least {low}"
                    if high is None
                    else f"at most {high}"
                    if low is None
                    else f"between {low} and {high}"
                )
                raise ConfigError(f"{where} cannot be {item!r}.", where=where, mend=f"Give a number {bounds}.")


def build(config_type: type[C], values: Mapping[str, Any], *, where: str) -> C:
    """Make a config from a mapping; an unknown key is an error that names the nearest valid one."""
    names = [field.name for field in dataclasses.fields(config_type)]  # type: ignore[arg-type]
    for key in values:
        if key not in names:
            raise ConfigError(
                f'There is no parameter "{key}".', where=f"{where}, key {key}", mend=nearest(str(key), names)
            )
    return config_type(**values)


def read_params(path: Path, section: str, sections: typing.Iterable[str]) -> dict[str, Any]:
    """Read one step's section of a params file; every section is checked for its name, so that no typing error hides.

    Raises:
        ConfigError: when the file is missing or not YAML, or a section does not exist.
    """
    import yaml

    try:
        content = yaml.safe_load(path.read_text()) or {}
    except FileNotFoundError:
        raise ConfigError(
            "The params file is missing.", where=str(path), mend="Pass another path to --params."
        ) from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}, line {mark.line + 1}" if mark else str(path)
        raise ConfigError(
            "The params file is not valid YAML.", where=where, mend="Mend the indentation or quotes there."
        ) from None
    if not isinstance(content, dict):
        raise ConfigError("The params file has no sections.", where=str(path), mend="Write one section per step.")
    known = list(sections)
    for key in content:
        if key not in known:
            raise ConfigError(
                f'There is no section "{key}".', where=f"{path}, key {key}", mend=nearest(str(key), known)
            )
    values = content.get(section) or {}
    if not isinstance(values, dict):
        raise ConfigError(
            "The section holds no parameters.", where=f"{path}, key {section}", mend="Write one `name: value` per line."
        )
    return values


def type_name(hint: Any) -> str:
    """A type as a user would read it: `int`, `list of str`, `number or nothing`."""
    members = _members(hint)
    if len(members) > 1:
        return " or ".join("nothing" if m is type(None) else type_name(m) for m in members)
    if typing.get_origin(hint) is tuple:
        return f"list of {type_name(typing.get_args(hint)[0])}"
    if typing.get_origin(hint) is dict or hint is dict:
        return "mapping"
    return {float: "number", bool: "true or false", str: "text"}.get(hint, getattr(hint, "__name__", str(hint)))


def _number(value: Any) -> Any:
    """Integers become floats, and so does "2e-5": YAML 1.1 reads that, without a point, as text."""
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        return value
    try:
        return float(value)
    except ValueError:
        return value


def _members(hint: Any) -> tuple[Any, ...]:
    return (
        typing.get_args(hint)
        if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union
        else (hint,)
    )


def _fits(value: Any, hint: Any) -> bool:
    for member in _members(hint):
        origin = typing.get_origin(member)
        if origin is tuple:
            if isinstance(value, tuple) and all(_fits(item, typing.get_args(member)[0]) for item in value):
                return True
        elif origin is dict or member is dict:
            if isinstance(value, dict):
                return True
        elif member is float:
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                return True
        elif member is int:
            if isinstance(value, int) and not isinstance(value, bool):
                return True
        elif isinstance(value, member):
            return True
    return False


def _section(config_type: type) -> str:
    """Where a user finds the fields: under the config's own `section`, the step's name, or the name of its type."""
    if hasattr(config_type, "section"):
        return str(config_type.section)
    module = config_type.__module__.rsplit(".", 1)[-1]
    return module if config_type.__name__ == "Config" else config_type.__name__
