"""A trained model as a plain `transformers` Llava checkpoint, for serving with any software that reads that layout."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fairvlm_core.errors import CheckpointError, ConfigError
from fairvlm_core.files import folder_written, write_json
from fairvlm_core.models import base_path, describe
from fairvlm_core.models.published import CLASS_TOKENS, FIXED_POSITIONS, image_tokens, prepare_processor
from fairvlm_core.models.vlm import load

DESCRIPTION_FILE = "fairvlm.json"


def export_model(model: Path, base: Path, out: Path, *, dtype: torch.dtype | None = None) -> None:
    """Write a model with its adapters folded in: weights (safetensors), tokenizer, processor, chat template.

    `LlavaForConditionalGeneration` and `AutoProcessor` load it, and it gives the logits that it gives here. What the
    model was trained to answer is in `fairvlm.json`.

    Args:
        model: folder that a training step wrote.
        base: folder that `base_models` wrote.
        out: folder to write; it must not exist, or be empty.
        dtype: of the weights; by default the one in which the model is scored here, bfloat16 on a GPU and float32 on a
            CPU. Another one rounds, and the scores change a little.

    Raises:
        CheckpointError: the model is of another family, it or its base is missing, or they do not belong together.
        ConfigError: there is something in `out` already.
    """
    described = describe(model)
    if described["family"] != "vlm":
        raise CheckpointError(
            "Only models of the LLaVA family can be exported: a dual encoder with experts has no plain layout in "
            "transformers.",
            where=f"{model / 'model.json'}, family {described['family']}",
            mend="Serve it from the registry, which loads it with this package.",
        )
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(
            "The folder to write is not empty.", where=str(out), mend="Pass a new or an empty folder to --out."
        )
    checkpoint = base_path(base, "vlm")
    vlm = load(model, checkpoint, described)
    config = vlm.llava.config
    processor, _ = prepare_processor(checkpoint, config, vlm.image_size)
    resize_positions(vlm.llava, vlm.image_size)
    config.image_seq_length = image_tokens(config, vlm.image_size)
    with folder_written(out.absolute()) as partial:
        vlm.llava.to(dtype or vlm.llava.dtype).save_pretrained(partial)
        processor.save_pretrained(partial)
        # Older servers look for the image processor in a file of its own.
        processor.image_processor.save_pretrained(partial)
        shown = {name: value for name, value in described.items() if name != "adapters"}
        write_json(partial / DESCRIPTION_FILE, {**shown, "task": asdict(described["task"])})


def resize_positions(llava: Any, image_size: int) -> None:
    """Give a CLIP or SigLIP tower the position embeddings of another image size, in place.

    Here they are interpolated in each pass, which plain `transformers` code would not ask for. Towers that interpolate
    on their own stay as they are.
    """
    config = llava.config.vision_config
    if config.model_type not in FIXED_POSITIONS or config.image_size == image_size:
        return
    embeddings = llava.model.vision_tower.embeddings
    with torch.no_grad():
        # A sequence of another length than the table's, so that it is interpolated; nothing else is read of it.
        other = torch.empty(1, 1, embeddings.embed_dim)
        table = embeddings.interpolate_pos_encoding(other, image_size, image_size)[0]
    embeddings.position_embedding = nn.Embedding.from_pretrained(table.clone(), freeze=False)
    embeddings.position_ids = torch.arange(len(table), device=table.device)[None]
    embeddings.image_size, embeddings.num_positions = image_size, len(table)
    embeddings.num_patches = len(table) - CLASS_TOKENS[config.model_type]
    config.image_size = image_size
