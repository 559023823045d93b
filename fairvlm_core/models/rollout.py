"""Where a LLaVA looks when it begins to answer: a map over the image's patches (FairMed-VLM, Figure 1).

Two parts are put together. The language model's attention from the answer's position to the image tokens says which
tokens count; the vision tower's attention rollout (Abnar and Zuidema, 2020) says which patches each token is made of.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fairvlm_core.models.generation import prompts
from fairvlm_core.models.vlm import VLM

RESIDUAL = 0.5  # share of a block's output that the residual stream carries past its attention


def attention_rollout(attentions: Sequence[Tensor], *, residual: float = RESIDUAL) -> Tensor:
    """Which input tokens each output token is made of, through all blocks: [T, T], rows sum to 1.

    Each block mixes the tokens by its attention, averaged over the heads, and passes them on by its residual
    connection; the mixtures of all blocks are multiplied.

    Args:
        attentions: per block, from the first to the last, [H, T, T], rows sum to 1.
        residual: share of the residual connection.

    Raises:
        ValueError: when there is no block.
    """
    if not attentions:
        raise ValueError("A rollout needs the attention of at least one block.")
    width = attentions[0].shape[-1]
    same = torch.eye(width, dtype=torch.float64, device=attentions[0].device)
    rolled = same
    for attention in attentions:
        rolled = (residual * same + (1 - residual) * attention.double().mean(0)) @ rolled
    return rolled / rolled.sum(-1, keepdim=True)


def patch_map(
    tower: Sequence[Tensor], language: Sequence[Tensor], *, image: slice, position: int, patches: int
) -> Tensor:
    """How much each patch of the image counts for the answer: float64 [patches], sums to 1.

    Args:
        tower: attention [H, T, T] of the blocks up to the layer that the projector reads; the last `patches` of its T
            tokens are the patches (a class token or registers, where there are any, stand before them).
        language: attention [H, S, S] of all layers of the language model; averaged over heads and layers.
        image: where the P image tokens stand in its sequence. They are the last P tokens of the tower.
        position: where the first word of the answer is predicted.
        patches: number of patches.

    What flows to a class token or a register has no place in the image and is left out before the map is scaled.
    """
    looked = torch.stack([attention[:, position, image].double().mean(0) for attention in language]).mean(0)
    rolled = attention_rollout(tower)[-len(looked) :]
    found = (looked @ rolled)[-patches:]
    return found / found.sum()


def attention_map(vlm: VLM, image: np.ndarray, question: int = 0) -> np.ndarray:
    """The map of one image and one of the task's questions.

    Args:
        image: uint8 [S, S, 3].
        question: the label's place (binary, multilabel); a multiclass task has the one question 0.

    Returns:
        float64 [h, w], the patches from top to bottom and left to right; sums to 1.
    """
    prompt = prompts(vlm)[question]
    config = vlm.llava.config
    vlm.llava.eval()
    with torch.inference_mode(), eager_attention(vlm.llava), recorded(vlm.parts.vision_tower) as caught:
        image_tokens = vlm.project(vlm.features(image[None]))
        ids = torch.tensor([prompt], device=image_tokens.device)
        embedded = vlm.embedded(ids, image_tokens)
        language = vlm.parts.language_model(inputs_embeds=embedded, use_cache=False, output_attentions=True).attentions
    tower = [attention[0] for attention in caught[0][: _blocks_read(config.vision_feature_layer, len(caught[0]))]]
    side = vlm.image_size // config.vision_config.patch_size
    start = prompt.index(vlm.image_token)
    found = patch_map(
        tower,
        [attention[0] for attention in language],
        image=slice(start, start + image_tokens.shape[1]),
        position=len(prompt) - 1,
        patches=side * side,
    )
    return found.reshape(side, side).cpu().numpy()


@contextmanager
def eager_attention(llava: Any) -> Iterator[None]:
    """Compute attention so that its weights can be read: of the fused kernels they come silently empty."""
    config = llava.config
    before = {
        "": config._attn_implementation,
        "vision_config": config.vision_config._attn_implementation,
        "text_config": config.text_config._attn_implementation,
    }
    llava.set_attn_implementation("eager")
    try:
        yield
    finally:
        llava.set_attn_implementation(before)


@contextmanager
def recorded(tower: Any) -> Iterator[list[tuple[Tensor, ...]]]:
    """The attention weights of each pass through a tower, whoever calls it: per pass, [n, H, T, T] per block."""
    caught: list[tuple[Tensor, ...]] = []

    def ask(_: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return args, {**kwargs, "output_attentions": True}

    handles = [
        tower.register_forward_pre_hook(ask, with_kwargs=True),
        tower.register_forward_hook(lambda _, args, output: caught.append(output.attentions)),
    ]
    try:
        yield caught
    finally:
        for handle in handles:
            handle.remove()


def _blocks_read(layer: int | Sequence[int], blocks: int) -> int:
    """How many blocks lie below the deepest layer that the projector reads; hidden state 0 enters the first block."""
    layers = [layer] if isinstance(layer, int) else layer
    return max(number % (blocks + 1) for number in layers)
