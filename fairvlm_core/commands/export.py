"""`fairvlm export`: a trained model as a transformers checkpoint, for serving."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Precision(StrEnum):
    """Precision of the weights that are written."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


def export(
    model: Annotated[Path, typer.Option(help="Folder that stage1, stage2 or fair_moe wrote.")],
    base: Annotated[Path, typer.Option(help="Folder that base_models wrote.")],
    out: Annotated[Path, typer.Option(help="Folder to write; it must be new or empty.")],
    dtype: Annotated[
        Precision | None,
        typer.Option(
            help="Precision of the weights. By default that in which the model is scored here: bfloat16 for a LLaVA on "
            "a GPU, else float32."
        ),
    ] = None,
) -> None:
    """Write a trained model whole, as a transformers checkpoint: a Llava with its adapters folded in, or a CLIP."""
    import torch

    from fairvlm_core.models.export import export_model

    export_model(model, base, out, dtype=getattr(torch, dtype.value) if dtype else None)
    typer.echo(f"The checkpoint is at {out}.")
