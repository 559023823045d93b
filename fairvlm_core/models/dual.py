"""The CLIP family (CLIP, FairCLIP, Fair-MoE): a `FairMoEModel` with its tokenizer and task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from fairvlm_core.cohort.prompts import zero_shot_prompts
from fairvlm_core.cohort.table import Task
from fairvlm_core.errors import CheckpointError, ConfigError
from fairvlm_core.models import checkpoint_config, device, pixel_statistics, pixels, write_description
from fairvlm_core.models.fair_moe import Encoded, Experts, FairMoEModel, block_number
from fairvlm_core.models.published import load_weights
from fairvlm_core.models.trunk import Trunk, blocks, modules_below, settings_of

SCORE_BATCH = 128
WEIGHTS_FILE = "trained.safetensors"
IMAGE_ENCODER = "encoders.vision_model."
MODEL_TYPES = ("clip", "vision-text-dual-encoder")


class DualEncoder:
    """A dual encoder with its tokenizer and task.

    Attributes:
        model: the encoders with their experts.
        brought: whether its image encoder is not that of the base, so that what is frozen of it must be saved, too.
        frozen: the modules that are not trained.
        base_trunk: the blocks of the image encoder that are the base's; None where none is known to be.
    """

    def __init__(
        self, model: FairMoEModel, checkpoint: str, task: Task, image_size: int, *, brought: bool = False
    ) -> None:
        from transformers import AutoTokenizer

        self.task, self.image_size, self.brought = task, image_size, brought
        self.tokenizer = AutoTokenizer.from_pretrained(checkpoint)
        mean, std = pixel_statistics(checkpoint)
        self.mean, self.std = mean.to(device()), std.to(device())
        self.shorten = lru_cache(maxsize=2**17)(self._shorten)
        self.frozen: list[nn.Module] = []
        self.base_trunk: Trunk | None = None
        self.model = cast(Any, model).to(device())

    def train(self, mode: bool = True) -> None:
        """Training mode for what is trained; what is frozen has no dropout, or each step would see other features."""
        self.model.train(mode)
        for frozen in self.frozen:
            frozen.eval()

    def freeze(self, train_blocks: int) -> None:
        """Freeze what lies below the last `train_blocks` blocks of each encoder; 0 freezes nothing.

        Raises:
            ConfigError: when the block with the experts would be frozen.
        """
        if not train_blocks:
            return
        for side, tower in self.towers.items():
            layers = blocks(tower)
            if side in self.model.slots and block_number(tower, self.model.experts.layer) < len(layers) - train_blocks:
                raise ConfigError(
                    f"The experts of the {side} encoder are in a block that is not trained.",
                    where="fair_moe.layer, fair_moe.train_blocks",
                    mend="Raise train_blocks, or let a later block have the experts.",
                )
            self.frozen += modules_below(tower, max(0, len(layers) - train_blocks))
        for module in self.frozen:
            module.requires_grad_(False)

    @property
    def towers(self) -> dict[str, Any]:
        """The encoders by side."""
        return {"image": self.model.encoders.vision_model, "text": self.model.encoders.text_model}

    def trunk(self, images: np.ndarray | Tensor, train_blocks: int) -> Tensor:
        """Tokens [n, T, D] that enter the last `train_blocks` blocks of the image encoder."""
        return self.model.trunk(pixels(images, self.mean, self.std), train_blocks)

    def head(self, tokens: Tensor, train_blocks: int) -> Encoded:
        """The last blocks, the pooling, the feature mixture and the projection."""
        return self.model.head(tokens, train_blocks)

    def trunk_below(self, train_blocks: int) -> Trunk:
        """The image encoder without its last `train_blocks` blocks (without any, where that is 0), and the rest."""
        tower = self.towers["image"]
        count = len(blocks(tower))
        depth = train_blocks or count
        return Trunk(
            lower=lambda images: self.trunk(images, depth),
            upper=lambda tokens: self.head(tokens, depth).features,
            modules=tuple(modules_below(tower, max(0, count - depth))),
            dtype=next(tower.parameters()).dtype,
            settings=settings_of(
                tower, block=count - depth, mean=self.mean.tolist(), std=self.std.tolist(), size=self.image_size
            ),
            shared=not self.brought,
        )

    @property
    def longest(self) -> int:
        """Tokens that the text encoder takes, the special ones included."""
        return min(self.tokenizer.model_max_length, self.towers["text"].config.max_position_embeddings)

    def _shorten(self, text: str) -> str:
        """A text that the encoder can take whole: one that is too long is cut behind the last word that fits."""
        told = self.tokenizer(text, return_offsets_mapping=True)
        if len(told["input_ids"]) <= self.longest:
            return text
        last = self.longest - 1 - (len(told["input_ids"]) > 0 and told["offset_mapping"][-1] == (0, 0))
        end = told["offset_mapping"][last][1]
        kept = text[:end]
        if text[end : end + 1].strip():  # within a word
            kept = kept[: kept.rfind(" ") + 1] or kept
        return kept.rstrip()

    def encode_text(self, texts: Sequence[str]) -> Encoded:
        """Features of texts; padding is masked out of the experts' capacity."""
        tokens = self.tokenizer(
            [self.shorten(text) for text in texts], padding=True, return_tensors="pt", return_token_type_ids=False
        ).to(device())
        return self.model.encode_text(tokens["input_ids"], tokens["attention_mask"])

    def embed(self, images: np.ndarray) -> Tensor:
        """Unit-length image features [n, d]."""
        self.train(False)
        with torch.inference_mode():
            batches = [images[start : start + SCORE_BATCH] for start in range(0, len(images), SCORE_BATCH)]
            return torch.cat([self.head(self.trunk(batch, 1), 1).features for batch in batches])

    def score(self, images: np.ndarray) -> np.ndarray:
        """Zero-shot probabilities float32 [n, L], at the learnt logit scale (Fair-MoE, evaluation)."""
        return self.score_features(self.embed(images)).cpu().numpy()

    def score_features(self, features: Tensor) -> Tensor:
        """Probabilities [n, L] of unit-length image features: softmax over captions, or absence against presence."""
        prompts = zero_shot_prompts(self.task)
        with torch.inference_mode():
            scale = self.model.encoders.logit_scale.exp()
            captions = self.encode_text([prompt for group in prompts for prompt in group]).features
            chance = (scale * features @ captions.T).view(len(features), len(prompts), -1).softmax(-1)
        return chance[:, 0] if self.task.kind == "multiclass" else chance[:, :, 1]

    def save(self, folder: Path) -> None:
        """Write the parameters that were trained or brought, and no others."""
        from safetensors.torch import save_file

        trained = {
            name: parameter.detach().cpu().contiguous()
            for name, parameter in self.model.named_parameters()
            if parameter.requires_grad or (self.brought and name.startswith(IMAGE_ENCODER))
        }
        save_file(trained, folder / WEIGHTS_FILE)


def load_base(
    checkpoint: str, task: Task, image_size: int, *, experts: Experts, seed: int, tower: nn.Module | None = None
) -> DualEncoder:
    """Load a CLIP or dual-encoder checkpoint from a folder or the hub, in float32, and add fresh experts.

    Args:
        tower: an image encoder of the same architecture, whose weights take the place of the checkpoint's.

    Raises:
        CheckpointError: when it cannot be found, is of another model type, holds no safetensors or lacks weights, or
            the tower is of another architecture.
    """
    from transformers import CLIPModel, VisionTextDualEncoderModel

    architectures = dict(zip(MODEL_TYPES, (CLIPModel, VisionTextDualEncoderModel), strict=True))
    config = checkpoint_config(checkpoint, MODEL_TYPES)
    encoders = load_weights(architectures[config.model_type], checkpoint, dtype=torch.float32)
    if tower is not None:
        _take_tower(encoders.vision_model, tower, checkpoint)
    model = FairMoEModel.from_encoders(encoders, experts, seed=seed)
    return DualEncoder(model, checkpoint, task, image_size, brought=tower is not None)


def _take_tower(encoder: nn.Module, tower: nn.Module, checkpoint: str) -> None:
    """Copy the weights of an image encoder of the same architecture, in place.

    Raises:
        CheckpointError: it is of another architecture.
    """
    wanted, given = encoder.state_dict(), tower.state_dict()
    other = [
        name
        for name in sorted(wanted.keys() | given.keys())
        if name not in wanted or name not in given or wanted[name].shape != given[name].shape
    ]
    if other:
        shapes = [list(found[other[0]].shape) if other[0] in found else "missing" for found in (given, wanted)]
        raise CheckpointError(
            f"The vision tower of Stage 2 is not of the architecture of the dual encoder's: {len(other)} tensors "
            f"differ; of the first the shapes are {shapes[0]} and {shapes[1]}.",
            where=f"{checkpoint}, {other[0]}",
            mend="Set base_models.dual to the CLIP that the LLaVA's tower was taken from, or init_from to base.",
        )
    encoder.load_state_dict(given)


def load(folder: Path, checkpoint: str, described: dict[str, Any]) -> DualEncoder:
    """Load a trained model: the base with its experts, then the parameters that were trained.

    Raises:
        CheckpointError: they are missing, or do not belong to this base or to these experts.
    """
    from safetensors.torch import load_file

    experts = Experts(**described["experts"])
    dual = load_base(checkpoint, described["task"], described["image_size"], experts=experts, seed=described["seed"])
    weights = folder / WEIGHTS_FILE
    if not weights.is_file():
        raise CheckpointError("The trained weights are missing.", where=str(weights), mend="Run fair_moe again.")
    trained, named = load_file(weights), dict(dual.model.named_parameters())
    _check_experts(trained, experts, weights)
    with torch.no_grad():
        for name, value in trained.items():
            if name not in named or named[name].shape != value.shape:
                raise CheckpointError(
                    "The trained weights do not fit the base model.",
                    where=f"{weights}, tensor {name}",
                    mend="Pass the base_models folder it was trained from.",
                )
            named[name].copy_(value)
    dual.train(False)
    # Models of an earlier release do not say so.
    if described.get("base_below"):
        dual.base_trunk = dual.trunk_below(described["base_below"])
    return dual


def _check_experts(trained: dict[str, Tensor], experts: Experts, weights: Path) -> None:
    """Refuse weights of mixtures with another number of experts than `model.json` says."""
    for name, value in trained.items():
        # The last layer of a gate has a row per expert.
        gate = name.endswith((".gate.2.bias", ".gate.bias"))
        if gate and len(value) != experts.count:
            raise CheckpointError(
                f"The trained weights are of mixtures with {len(value)} experts, and model.json says {experts.count}.",
                where=f"{weights}, tensor {name}",
                mend="Take both files from the same run of fair_moe, or run it again.",
            )


def save(dual: DualEncoder, folder: Path, *, name: str, seed: int, train_blocks: int = 0) -> None:
    """Write a trained model: what was trained, and `model.json`.

    Args:
        train_blocks: as it was frozen for training.
    """
    dual.save(folder)
    write_description(
        folder,
        name=name,
        family="dual",
        task=dual.task,
        image_size=dual.image_size,
        seed=seed,
        experts=asdict(dual.model.experts),
        base_below=None if dual.brought else train_blocks or None,
    )
