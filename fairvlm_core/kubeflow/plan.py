"""What a run from a form will do: every parameter is checked, and every pool chosen, before anything is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fairvlm_core.config import build
from fairvlm_core.errors import ConfigError, nearest
from fairvlm_core.kubeflow.call import whole
from fairvlm_core.steps import STEPS, step_module

Sections = dict[str, dict[str, Any]]
# Presets of base models that a CPU can train.
SMALL = ("tiny", "small")


def sections(defaults: Mapping[str, Any], params: Mapping[str, Any], form: Mapping[str, Any]) -> Sections:
    """The section of parameters of every step.

    Args:
        defaults: step -> field -> value, as params.yaml was when the pipeline was compiled.
        params: the same, what the run changes; numbers may have come through JSON as doubles.
        form: "step.field" -> value, what has a field of its own in the form.

    Raises:
        ConfigError: for a step or field that does not exist, a value out of range, a field that is given in both
            places, or a start of Fair-MoE that this pipeline is not wired for.
    """
    found: Sections = {step: dict(defaults.get(step) or {}) for step in STEPS}
    for step, fields in params.items():
        if step not in found:
            raise ConfigError(f'There is no step "{step}".', where="params", mend=nearest(step, STEPS))
        if not isinstance(fields, Mapping):
            raise ConfigError(
                f"The section {step} is not a mapping.", where="params", mend=f'Write {{"{step}": {{"field": value}}}}.'
            )
        for name in fields:
            if f"{step}.{name}" in form:
                raise ConfigError(
                    f"{step}.{name} has a field of its own in the form.",
                    where=f"params, section {step}",
                    mend=f"Give it there, as {step}_{name}.",
                )
        found[step] |= fields
    for key, value in form.items():
        step, _, name = key.partition(".")
        found[step][name] = value
    found = {step: whole(section) for step, section in found.items()}
    for step, section in found.items():
        build(step_module(step).Config, section, where=f"params, section {step}")
    wired, asked = ((given.get("fair_moe") or {}).get("init_from", "base") for given in (defaults, found))
    if wired != asked:
        raise ConfigError(
            f"This pipeline was compiled for a Fair-MoE that starts from {wired}, not from {asked}.",
            where="params, section fair_moe",
            mend="Set fair_moe.init_from in params.yaml and compile the pipeline again.",
        )
    return found


def asked_for(pools: Mapping[str, Mapping[str, Any]], name: str, *, step: str, preset: str) -> dict[str, Any]:
    """What a pod of a step asks for in the named pool.

    Args:
        pools: name -> fields of `pipelines.pools.Pool`.
        name: the pool that the form names for the step.
        preset: of the base models: the published ones need a GPU.

    Returns:
        `gpus`, `cpu` and `memory` as Kubernetes writes them, `selector` (mapping) and `tolerations` (list).

    Raises:
        ConfigError: for a pool that does not exist or has no GPU where the step needs one.
    """
    if name not in pools:
        raise ConfigError(f'There is no pool "{name}".', where=f"{step}_pool", mend=nearest(name, list(pools)))
    given = pools[name]
    if not int(given["gpus"]) and preset not in SMALL:
        able = [known for known, fields in pools.items() if int(fields["gpus"])]
        raise ConfigError(
            f"The pool {name} has no GPU, and {step} needs one for the base models {preset}.",
            where=f"{step}_pool",
            mend=f"Choose {' or '.join(able)}, or base_models_preset {' or '.join(SMALL)}.",
        )
    return {
        "gpus": str(int(given["gpus"])),
        "cpu": given["cpu"],
        "memory": given["memory"],
        "selector": dict(given["selector"]),
        "tolerations": [{"key": key, "operator": "Exists", "effect": "NoSchedule"} for key in given["taints"]],
    }
