"""What a run from the command line asks for: the fields of the compiled form, checked as `plan` checks them."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from fairvlm_core.config import build, read_params
from fairvlm_core.errors import ConfigError, nearest
from fairvlm_core.kubeflow import monitor
from fairvlm_core.kubeflow.call import whole
from fairvlm_core.kubeflow.fetch import resolve
from fairvlm_core.kubeflow.plan import asked_for, sections
from fairvlm_core.steps import STEPS, step_module
from pipelines.compile import compiled
from pipelines.fairvlm import FORM
from pipelines.pools import STEP_POOLS

MONITOR = "fairvlm-monitor"  # the pipeline without steps, and so without a plan
MONITOR_MEND = "Write --set monitor.FIELD=VALUE, such as --set monitor.dpd_rise=0.2."
CRON_FIELD = re.compile(r"[\w*/,?-]+")


@dataclass(frozen=True)
class Pipeline:
    """What a compiled file says.

    Attributes:
        name: of the pipeline.
        version: begins the hash of the content; the order of keys and the comments do not count.
        form: field -> its definition, with `defaultValue` and maybe `literals`.
        defaults: step -> field -> value, as compiled.
        pools: name -> what a pool is.
        tasks: name that the server knows a task by -> name that the page of a run shows.
    """

    path: Path
    name: str
    version: str
    form: Mapping[str, Mapping[str, Any]]
    defaults: Mapping[str, Mapping[str, Any]]
    pools: Mapping[str, Mapping[str, Any]]
    tasks: Mapping[str, str]


def read_pipeline(path: Path) -> Pipeline:
    """Read a compiled pipeline.

    Raises:
        ConfigError: when the file is missing, or is not what `python -m pipelines.compile` writes.
    """
    try:
        documents = compiled(path)
        spec = documents[0]
        graphs = [spec["root"], *spec["components"].values()]
        tasks = {name: task for graph in graphs for name, task in graph.get("dag", {}).get("tasks", {}).items()}
        constants: dict[str, dict[str, Any]] = {"defaults": {}, "pools": {}}
        if spec["pipelineInfo"]["name"] != MONITOR:
            fixed = tasks["plan"]["inputs"]["parameters"]
            constants = {name: fixed[name]["runtimeValue"]["constant"] for name in constants}
        return Pipeline(
            path=path,
            name=spec["pipelineInfo"]["name"],
            version=hashlib.sha256(json.dumps(documents, sort_keys=True).encode()).hexdigest()[:12],
            form=spec["root"]["inputDefinitions"]["parameters"],
            defaults={step: whole(section) for step, section in constants["defaults"].items()},
            pools=constants["pools"],
            tasks={name: task["taskInfo"]["name"] for name, task in tasks.items()},
        )
    except OSError:
        raise ConfigError("The compiled pipeline cannot be read.", where=str(path), mend="Run make pipeline.") from None
    except (yaml.YAMLError, UnicodeDecodeError, KeyError, IndexError, TypeError, AttributeError):
        raise ConfigError(
            "This is not the compiled pipeline of fairvlm.",
            where=str(path),
            mend="Give a file that python -m pipelines.compile wrote.",
        ) from None


def arguments(pipeline: Pipeline, params: Path | None, changes: Sequence[str]) -> dict[str, Any]:
    """The fields of the form for one run.

    Args:
        params: a params.yaml, read as the steps read it: what it leaves out has the step's own default, not what was
            compiled. So a run has the parameters that `dvc repro` has with the same file.
        changes: "field=value" or "step.field=value"; they win over the file.

    Raises:
        ConfigError: for whatever `plan` would refuse, and for an address with a password in it.
    """
    form = {name: field["defaultValue"] for name, field in pipeline.form.items()}
    if pipeline.name == MONITOR and params:
        raise ConfigError("The monitor has no steps, and takes no params.yaml.", where="--params", mend=MONITOR_MEND)
    more: dict[str, dict[str, Any]] = {}
    alone = () if pipeline.name == MONITOR else FORM

    def put(key: str, value: Any) -> None:
        step, _, name = key.partition(".")
        if key in alone:
            form[f"{step}_{name}"] = value
        else:
            more.setdefault(step, {})[name] = value

    for step in STEPS if params else ():
        config = step_module(step).Config
        asked = build(config, read_params(params, step, STEPS), where=f"{params}, section {step}")
        usual = build(config, pipeline.defaults.get(step) or {}, where=f"{pipeline.path}, section {step}")
        for field in dataclasses.fields(config):
            value = getattr(asked, field.name)
            if value != getattr(usual, field.name):
                put(f"{step}.{field.name}", list(value) if isinstance(value, tuple) else value)
    for change in changes:
        key, equals, value = change.partition("=")
        if not equals:
            raise ConfigError("There is no value.", where=f"--set {key}", mend=f"Write --set {key}=VALUE.")
        if "." in key:
            put(key, value if key in alone else _typed(key, value))
        elif key in pipeline.form and key != "params":
            form[key] = value
        else:
            fields = [*sorted(set(pipeline.form) - {"params"}), *(f"{step}.FIELD" for step in STEPS)]
            mend = (
                "Give a file to --params, or write --set step.field=VALUE." if key == "params" else nearest(key, fields)
            )
            raise ConfigError(f'The form has no single field "{key}".', where=f"--set {key}", mend=mend)
    form["params"] = more
    _check(pipeline, form)
    return form


def _typed(key: str, value: str) -> Any:
    try:
        return yaml.safe_load(value)
    except yaml.YAMLError:
        raise ConfigError(
            "The value is not valid YAML.", where=f"--set {key}", mend="Put what has brackets or colons in quotes."
        ) from None


def _check(pipeline: Pipeline, form: Mapping[str, Any]) -> None:
    """What the task `plan` checks, as far as no repository is needed for it; or the task `monitor`."""
    if pipeline.name == MONITOR:
        monitor.asked_for(form["params"])
        for name in ("reference", "current"):
            if not form[name]:
                raise ConfigError("There is no address.", where=f"form, {name}", mend=f"Write --set {name}=s3://...")
        return
    for name, value in form.items():
        offered = pipeline.form[name].get("literals")
        if offered and value not in offered:
            raise ConfigError(f'{name} cannot be "{value}".', where=f"form, {name}", mend=nearest(str(value), offered))
    sections(pipeline.defaults, form["params"], {key: form[key.replace(".", "_")] for key in FORM})
    for step in STEP_POOLS:
        asked_for(pipeline.pools, form[f"{step}_pool"], step=step, preset=form["base_models_preset"])
    release = [form[f"fetch_dataset_{name}"] for name in ("repo", "revision", "path")]
    if any(release) and not all(release):
        resolve(*release)  # refuses this before it looks at any repository
    if re.search(r"//[^/@\s]*:[^/@\s]*@", release[0]):
        raise ConfigError(
            "The address holds a password, and whoever sees a run sees its parameters.",
            where="form, fetch_dataset_repo",
            mend="Take it out, and put the token under GIT_TOKEN into the secret fairvlm-dvc.",
        )


def cron(schedule: str) -> str:
    """A schedule as Kubeflow takes it: six fields, of which the first is the second.

    Raises:
        ConfigError: when it has neither five nor six fields.

    >>> cron("0 3 * * 1")
    '0 0 3 * * 1'
    """
    fields = schedule.split()
    if len(fields) not in (5, 6) or not all(CRON_FIELD.fullmatch(field) for field in fields):
        raise ConfigError(
            "This is no schedule.",
            where="--schedule",
            mend='Give minute, hour, day of the month, month, day of the week: "0 3 * * 1" is Mondays at 3.',
        )
    return " ".join(fields if len(fields) == 6 else ["0", *fields])
