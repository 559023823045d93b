"""The training loop: AdamW, one schedule, selection on validation, checkpoints that resume to the same weights.

Everything random is drawn from (seed, step), never from a running state, so a run that was killed and resumed ends with
the same weights as one that was not.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fairvlm_core.errors import FairVLMError
from fairvlm_core.files import written
from fairvlm_core.training import ranks
from fairvlm_core.training.sharding import part_like, whole

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
    gradients: Callable[[Any, torch.Generator], dict[str, Tensor | float]],
    validate: Callable[[], dict[str, float]] | None,
    checkpoint: Path,
    key: str,
    seed: int,
    label: str,
    buffers: dict[str, Tensor] | None = None,
    faster: Mapping[str, float] | None = None,
) -> list[dict[str, float]]:
    """Train in place; the parameters end at the epoch with the best validation score, without validation at the last.

    Args:
        parameters: what is trained, by name.
        batches: epoch -> the epoch's batches; the same epoch must give the same batches, and all epochs equally many.
        gradients: batch, generator -> terms by name, all of which are logged; it leaves the gradient of "loss" in the
            parameters (see `one_pass`).
        validate: -> figures by name; "score" (higher is better) selects the epoch.
        checkpoint: file to resume from; it is replaced every few steps.
        key: fingerprint of config and inputs; a checkpoint of another run is not resumed.
        faster: by name, how many times the schedule's rate a parameter is trained with.
        buffers: tensors that `gradients` changes in place and that a resumed run must find as they were.

    Returns:
        One mapping per epoch: mean of each loss term, and the validation figures.

    Raises:
        FairVLMError: when a term or the gradient is not finite; the last checkpoint stays.
    """
    from fairvlm_core.progress import track

    named = {name: parameter for name, parameter in parameters.items() if parameter.requires_grad}
    factors = {name: (faster or {}).get(name, 1.0) for name in named}
    groups = [
        {"params": [p for name, p in named.items() if factors[name] == factor], "factor": factor}
        for factor in dict.fromkeys(factors.values())
    ]
    optimizer = torch.optim.AdamW(groups, lr=schedule.learning_rate, weight_decay=schedule.weight_decay)
    per_epoch = len(batches(0))
    steps = per_epoch * schedule.epochs
    buffers = buffers or {}
    state = _resume(checkpoint, key, named, buffers, optimizer)
    best: dict[str, Tensor] = state.pop("best")
    ranks.wait()  # or the first rank could replace the file that another is about to read
    if state["step"] and ranks.rank() == 0:
        print(f"{label}: resuming at step {state['step']} of {steps}.", flush=True)

    current: Sequence[Any] = []
    remaining = range(state["step"], steps)
    for step in track(remaining, label, total=len(remaining)):
        epoch, place = divmod(step, per_epoch)
        if not current or place == 0:
            current = batches(epoch)
        torch.manual_seed(seed * 1_000_003 + step)
        generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
        optimizer.zero_grad(set_to_none=True)
        terms = gradients(current[place], generator)
        terms["gradient_norm"] = whole(nn.utils.clip_grad_norm_(named.values(), schedule.clip))
        figures = {name: float(value.detach() if isinstance(value, Tensor) else value) for name, value in terms.items()}
        wrong = [name for name, value in figures.items() if not math.isfinite(value)]
        if wrong:
            # The sum and the gradient go wrong with any term; the term itself is what one wants to know.
            cause = min(wrong, key=("gradient_norm", "loss").__contains__)
            raise FairVLMError(
                f"{label} stops: the term {cause} is not finite in epoch {epoch + 1}, batch {place + 1}.",
                where=f"the checkpoint before it is {checkpoint}" if checkpoint.exists() else "",
                mend="Lower the learning rate, or raise the temperature, and run the step again.",
            )
        for group in optimizer.param_groups:
            group["lr"] = schedule.rate(step, steps) * group["factor"]
        optimizer.step()
        sums = state["sums"]
        for name, value in figures.items():
            sums[name] = sums.get(name, 0.0) + value
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
            _save(checkpoint, key, state, named, buffers, optimizer, best)
    with torch.no_grad():
        for name, chosen in best.items():
            named[name].copy_(part_like(chosen, named[name]))
    return state["history"]


def one_pass(
    losses: Callable[[Any, torch.Generator], dict[str, Tensor | float]],
) -> Callable[[Any, torch.Generator], dict[str, Tensor | float]]:
    """The gradients of a loss that is computed at once: `losses` gives the terms, "loss" among them with its graph."""

    def gradients(batch: Any, generator: torch.Generator) -> dict[str, Tensor | float]:
        terms = losses(batch, generator)
        loss = terms["loss"]
        assert isinstance(loss, Tensor)
        loss.backward()
        return terms

    return gradients


def _save(
    path: Path,
    key: str,
    state: dict[str, Any],
    named: dict[str, nn.Parameter],
    buffers: dict[str, Tensor],
    optimizer: torch.optim.Optimizer,
    best: dict[str, Tensor],
) -> None:
    """One safetensors file holds it all, so that it is replaced as a whole or not at all; the first rank writes it."""
    from safetensors.torch import save_file

    tensors = {f"now/{name}": parameter.detach() for name, parameter in named.items()}
    tensors |= {f"best/{name}": value for name, value in best.items()}
    tensors |= {f"buffer/{name}": value for name, value in buffers.items()}
    for name, parameter in named.items():
        tensors |= {f"adam/{name}/{part}": value for part, value in optimizer.state[parameter].items()}
    tensors = {name: whole(value).cpu().contiguous() for name, value in tensors.items()}
    if ranks.rank() > 0:
        return
    with written(path) as partial:
        save_file(tensors, partial, metadata={"key": key, "state": json.dumps(state)})


def _resume(
    path: Path,
    key: str,
    named: dict[str, nn.Parameter],
    buffers: dict[str, Tensor],
    optimizer: torch.optim.Optimizer,
) -> dict[str, Any]:
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
            parameter.copy_(part_like(tensors[f"now/{name}"], parameter))
            prefix = f"adam/{name}/"
            optimizer.state[parameter] = {
                full.removeprefix(prefix): _as_stored(value, parameter)
                for full, value in tensors.items()
                if full.startswith(prefix)
            }
        for name, value in buffers.items():
            value.copy_(tensors[f"buffer/{name}"])
    best = {name.removeprefix("best/"): value for name, value in tensors.items() if name.startswith("best/")}
    return {**json.loads(metadata["state"]), "best": best}


def _as_stored(value: Tensor, parameter: nn.Parameter) -> Tensor:
    """Moments live beside their parameter; the step count, a scalar, stays on the CPU as AdamW keeps it."""
    return part_like(value.to(parameter.device), parameter) if value.ndim else value
