"""The training loop: AdamW, one schedule, selection on validation, checkpoints that resume to the same weights.

Everything random is drawn from (seed, step), never from a running state, so a run that was killed and resumed ends with
the same weights as one that was not.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fairvlm_core.errors import FairVLMError
from fairvlm_core.files import written

CHECKPOINT_EVERY = 25  # optimiser steps


@dataclass(frozen=True)
class Schedule:
    """How long and how fast: AdamW with a linear warm-up and a cosine decay to a tenth."""

    epochs: int
    learning_rate: float
    weight_decay: float = 0.01
    warmup: float = 0.05
    clip: float = 1.0

    def rate(self, step: int, steps: int) -> float:
        """Learning rate at a step."""
        warm = max(1, int(self.warmup * steps))
        if step < warm:
            return self.learning_rate * (step + 1) / warm
        done = (step - warm) / max(1, steps - warm)
        return self.learning_rate * (0.1 + 0.45 * (1 + math.cos(math.pi * done)))


def fit(
    parameters: dict[str, nn.Parameter],
    *,
    schedule: Schedule,
    batches: Callable[[int], Sequence[Any]],
    losses: Callable[[Any, torch.Generator], dict[str, Tensor | float]],
    validate: Callable[[], dict[str, float]] | None,
    checkpoint: Path,
    key: str,
    seed: int,
    label: str,
) -> list[dict[str, float]]:
    """Train in place; the parameters end at the epoch with the best validation score, without validation at the last.

    Args:
        parameters: what is trained, by name.
        batches: epoch -> the epoch's batches; the same epoch must give the same batches, and all epochs equally many.
        losses: batch, generator -> terms by name; "loss" is the one that is minimised, all are logged.
        validate: -> figures by name; "score" (higher is better) selects the epoch.
        checkpoint: file to resume from; it is replaced every few steps.
        key: fingerprint of config and inputs; a checkpoint of another run is not resumed.

    Returns:
        One mapping per epoch: mean of each loss term, and the validation figures.

    Raises:
        FairVLMError: when the loss is not finite.
    """
    from fairvlm_core.progress import track

    named = {name: parameter for name, parameter in parameters.items() if parameter.requires_grad}
    optimizer = torch.optim.AdamW(named.values(), lr=schedule.learning_rate, weight_decay=schedule.weight_decay)
    per_epoch = len(batches(0))
    steps = per_epoch * schedule.epochs
    state = _resume(checkpoint, key, named, optimizer)
    best: dict[str, Tensor] = state.pop("best")
    if state["step"]:
        print(f"{label}: resuming at step {state['step']} of {steps}.", flush=True)

    current: Sequence[Any] = []
    remaining = range(state["step"], steps)
    for step in track(remaining, label, total=len(remaining)):
        epoch, place = divmod(step, per_epoch)
        if not current or place == 0:
            current = batches(epoch)
        torch.manual_seed(seed * 1_000_003 + step)
        generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
        terms = losses(current[place], generator)
        loss = terms["loss"]
        assert isinstance(loss, Tensor)
        if not torch.isfinite(loss):
            raise FairVLMError(
                f"The loss is not finite at step {step} of {label}.",
                mend="Lower the learning rate, or raise the temperature.",
            )
        for group in optimizer.param_groups:
            group["lr"] = schedule.rate(step, steps)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(named.values(), schedule.clip)
        optimizer.step()
        sums = state["sums"]
        for name, value in {**terms, "gradient_norm": norm}.items():
            sums[name] = sums.get(name, 0.0) + float(value.detach() if isinstance(value, Tensor) else value)
        state["step"] = step + 1
        ends = place == per_epoch - 1
        if ends:
            figures = {name: total / per_epoch for name, total in sums.items()} | (validate() if validate else {})
            state["history"].append({"epoch": epoch + 1, **figures})
            state["sums"] = {}
            if "score" not in figures or figures["score"] > state["best_score"]:
                state["best_score"] = figures.get("score", 0.0)
                best = {name: parameter.detach().clone() for name, parameter in named.items()}
        if ends or state["step"] % CHECKPOINT_EVERY == 0:
            _save(checkpoint, key, state, named, optimizer, best)
    with torch.no_grad():
        for name, value in best.items():
            named[name].copy_(value)
    return state["history"]


def _save(
    path: Path, key: str, state: dict[str, Any], named: dict[str, nn.Parameter], optimizer, best: dict[str, Tensor]
) -> None:
    """One safetensors file holds it all, so that it is replaced as a whole or not at all."""
    from safetensors.torch import save_file

    tensors = {f"now/{name}": parameter.detach() for name, parameter in named.items()}
    tensors |= {f"best/{name}": value for name, value in best.items()}
    for name, parameter in named.items():
        tensors |= {f"adam/{name}/{part}": value for part, value in optimizer.state[parameter].items()}
    tensors = {name: value.cpu().contiguous() for name, value in tensors.items()}
    with written(path) as partial:
        save_file(tensors, partial, metadata={"key": key, "state": json.dumps(state)})


def _resume(path: Path, key: str, named: dict[str, nn.Parameter], optimizer) -> dict[str, Any]:
    from safetensors import safe_open

    fresh: dict[str, Any] = {"step": 0, "history": [], "sums": {}, "best_score": -math.inf, "best": {}}
    if not path.is_file():
        return fresh
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
        if metadata["key"] != key:
            return fresh
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    with torch.no_grad():
        for name, parameter in named.items():
            parameter.copy_(tensors[f"now/{name}"])
            prefix = f"adam/{name}/"
            optimizer.state[parameter] = {
                full.removeprefix(prefix): _as_stored(value, parameter)
                for full, value in tensors.items()
                if full.startswith(prefix)
            }
    best = {name.removeprefix("best/"): value for name, value in tensors.items() if name.startswith("best/")}
    return {**json.loads(metadata["state"]), "best": best}


def _as_stored(value: Tensor, parameter: nn.Parameter) -> Tensor:
    """Moments live beside their parameter; the step count, a scalar, stays on the CPU as AdamW keeps it."""
    return value.to(parameter.device) if value.ndim else value
