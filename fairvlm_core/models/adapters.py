"""Adapters belong to the base they were trained on: which one it was is recorded beside them and checked on loading."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from torch import nn

from fairvlm_core.errors import CheckpointError
from fairvlm_core.files import read_json, write_json

WEIGHTS_FILE = "adapter_model.safetensors"
BASE_FILE = "base.json"
SAMPLE = 64  # values of each tensor that a fingerprint reads
OTHER_BASE = "Pass the base model that the adapter was trained on, or train it again on this one."


def fingerprint(model: nn.Module) -> str:
    """Hash a model's weights by a sample of each tensor; it costs no time worth mentioning for billions of them.

    Values are rounded to bfloat16 first: a checkpoint gives the same hash in float32 on a CPU and in bfloat16 on a GPU.
    Names take no part, for they change with the libraries.
    """
    digests = []
    for parameter in model.parameters():
        step = max(1, parameter.numel() // SAMPLE)
        sample = parameter.detach().reshape(-1)[::step][:SAMPLE].to(torch.bfloat16).view(torch.int16).cpu()
        digests.append(hashlib.sha256(repr(tuple(parameter.shape)).encode() + sample.numpy().tobytes()).digest())
    return hashlib.sha256(b"".join(sorted(digests))).hexdigest()


def record_base(folder: Path, base: str) -> None:
    """Write beside an adapter which base it was trained on."""
    write_json(folder / BASE_FILE, {"fingerprint": base})


def check_adapter(model: nn.Module, folder: Path, base: str) -> None:
    """Refuse an adapter that is missing, or was trained on another base than `model`.

    Args:
        model: the base, without any adapter around it.
        folder: the adapter.
        base: fingerprint of the base as it was published, before any adapter was folded into it.

    Raises:
        CheckpointError: the adapter is missing; its recorded base is another; a tensor fits no module of the base.
    """
    from safetensors import SafetensorError, safe_open

    if not (folder / WEIGHTS_FILE).is_file():
        raise CheckpointError(
            "The adapter is missing.", where=str(folder), mend="Run the training step that makes it again."
        )
    try:
        with safe_open(folder / WEIGHTS_FILE, framework="pt") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except SafetensorError:
        raise CheckpointError(
            "The adapter cannot be read: it is no safetensors file, or damaged.",
            where=str(folder / WEIGHTS_FILE),
            mend="Run the training step that makes it again.",
        ) from None
    # Shapes first: they say more about what went wrong.
    for name, shape in shapes.items():
        expected = _expected(model, name, shape)
        if shape != expected:
            raise CheckpointError(
                f"The adapter has a tensor of the shape {list(shape)}, the base "
                + (f"takes {list(expected)}." if expected else "has nothing of that name."),
                where=f"{folder / WEIGHTS_FILE}, {name}",
                mend=OTHER_BASE,
            )
    recorded = folder / BASE_FILE
    if recorded.is_file() and read_json(recorded, made_by="stage1")["fingerprint"] != base:
        raise CheckpointError("The adapter was trained on another base model.", where=str(recorded), mend=OTHER_BASE)


def _expected(model: nn.Module, name: str, shape: tuple[int, ...]) -> tuple[int, ...] | None:
    """The shape that a tensor of an adapter must have for this base; None where the base has no such module."""
    path = name.removeprefix("base_model.model.")
    module, _, part = path.partition(".lora_")
    try:
        width = tuple(model.get_parameter(f"{module}.weight" if part else path).shape)
    except AttributeError:
        return None
    if not part:
        return width
    if len(width) != 2 or len(shape) != 2:
        return None
    return (shape[0], width[1]) if part.startswith("A") else (width[0], shape[1])
