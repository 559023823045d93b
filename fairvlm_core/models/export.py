"""A trained model as a checkpoint in a transformers layout, for serving with any software that reads it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fairvlm_core.cohort.prompts import zero_shot_prompts
from fairvlm_core.errors import ConfigError
from fairvlm_core.files import folder_written, write_json
from fairvlm_core.models import base_path, describe, dual, vlm
from fairvlm_core.models.published import (
    CLASS_TOKENS,
    FIXED_POSITIONS,
    image_tokens,
    prepare_processor,
    square_processor,
)

DESCRIPTION_FILE = "fairvlm.json"


def export_model(model: Path, base: Path, out: Path, *, dtype: torch.dtype | None = None) -> None:
    """Write a model whole: weights (safetensors), configuration, tokenizer, processor.

    A model of the LLaVA family becomes one that `LlavaForConditionalGeneration` and `AutoProcessor` load, with its
    adapters folded in and a chat template. Of the CLIP family, one without experts becomes what its base was, and one
    with experts a `FairMoEModel`, which `fairvlm_core.models.fair_moe` defines. What the model was trained to answer,
    and for the CLIP family the captions to compare an image with, is in `fairvlm.json`.

    Args:
        model: folder that a training step wrote.
        base: folder that `base_models` wrote.
        out: folder to write; it must not exist, or be empty.
        dtype: of the weights; by default the one in which the model is scored here: float32, and for the LLaVA family
            on a GPU bfloat16. Another one rounds, and the scores change a little.

    Raises:
        CheckpointError: the model or its base is missing, or they do not belong together.
        ConfigError: there is something in `out` already.
    """
    described = describe(model)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(
            "The folder to write is not empty.", where=str(out), mend="Pass a new or an empty folder to --out."
        )
    checkpoint = base_path(base, described["family"])
    write = {"vlm": _write_vlm, "dual": _write_dual}[described["family"]]
    with folder_written(out.absolute()) as partial:
        more = write(model, checkpoint, described, partial, dtype)
        shown = {name: value for name, value in described.items() if name not in ("adapters", "experts")}
        write_json(partial / DESCRIPTION_FILE, {**shown, "task": asdict(described["task"]), **more})


def _write_vlm(
    model: Path, checkpoint: str, described: dict[str, Any], out: Path, dtype: torch.dtype | None
) -> Mapping[str, Any]:
    trained = vlm.load(model, checkpoint, described)
    config = trained.llava.config
    processor, _ = prepare_processor(checkpoint, config, trained.image_size)
    resize_positions(trained.llava.model.vision_tower, trained.image_size)
    config.image_seq_length = image_tokens(config, trained.image_size)
    trained.llava.to(dtype or trained.llava.dtype).save_pretrained(out)
    processor.save_pretrained(out)
    # Older servers look for the image processor in a file of its own.
    processor.image_processor.save_pretrained(out)
    return {}


def _write_dual(
    model: Path, checkpoint: str, described: dict[str, Any], out: Path, dtype: torch.dtype | None
) -> Mapping[str, Any]:
    from transformers.image_processing_base import ImageProcessingMixin

    trained = dual.load(model, checkpoint, described)
    resize_positions(trained.towers["image"], trained.image_size)
    experts = trained.model.experts
    # Without experts, and where the checkpoint's own token is read, transformers' own class says the same.
    plain = not experts.count and experts.pooling == "cls"
    whole = trained.model.encoders if plain else trained.model
    whole.to(dtype or whole.dtype).save_pretrained(out)
    trained.tokenizer.save_pretrained(out)
    pictures, _ = ImageProcessingMixin.get_image_processor_dict(checkpoint)
    square_processor(checkpoint, pictures, trained.image_size).save_pretrained(out)
    return {"prompts": zero_shot_prompts(trained.task)}


def resize_positions(tower: Any, image_size: int) -> None:
    """Give a CLIP or SigLIP tower the position embeddings of another image size, in place.

    Here they are interpolated in each pass, which plain `transformers` code would not ask for. Towers that interpolate
    on their own stay as they are.
    """
    config = tower.config
    if config.model_type not in FIXED_POSITIONS or config.image_size == image_size:
        return
    embeddings = tower.embeddings
    with torch.no_grad():
        # A sequence of another length than the table's, so that it is interpolated; nothing else is read of it.
        other = torch.empty(1, 1, embeddings.embed_dim)
        table = embeddings.interpolate_pos_encoding(other, image_size, image_size)[0]
    embeddings.position_embedding = nn.Embedding.from_pretrained(table.clone(), freeze=False)
    embeddings.position_ids = torch.arange(len(table), device=table.device)[None]
    embeddings.image_size, embeddings.num_positions = image_size, len(table)
    embeddings.num_patches = len(table) - CLASS_TOKENS[config.model_type]
    config.image_size = image_size
