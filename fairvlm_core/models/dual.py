"""The CLIP family (Fair-MoE): two encoders in one space, with experts in the last block of each and after it.

Works on transformers' CLIPModel and VisionTextDualEncoderModel (DINOv2, ViT or CLIP vision; BERT or CLIP text).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fairvlm_core.cohort.prompts import zero_shot_prompts
from fairvlm_core.cohort.table import Task
from fairvlm_core.errors import CheckpointError, ConfigError
from fairvlm_core.models import checkpoint_config, device, pixel_statistics, pixels, write_description
from fairvlm_core.models.moe import EmbeddingMoE, FeatureMoE

SCORE_BATCH = 128
WEIGHTS_FILE = "trained.safetensors"
PLACES = ("embedding_image", "embedding_text", "feature_image", "feature_text")
POOLINGS = ("cls", "mean")


@dataclass(frozen=True)
class Experts:
    """Shape of the mixtures of experts (Fair-MoE, FO-MoE).

    Attributes:
        count: M; 0 leaves the encoders as they are (CLIP fine-tuning, FairCLIP).
        top_k: experts per token.
        capacity: C of the embedding mixtures.
        gate: mlp or linear.
        places: where there is a mixture, of `PLACES`: in a block of an encoder (embedding) and after it (feature).
        layer: which block of each encoder has the embedding mixture in place of its MLP; -1 is the last.
        pooling: what of an encoder's last hidden state is the feature: "cls", the token that the checkpoint reads, or
            "mean", the mean of the patches or of the words. After the last attention only the former hears nothing of
            the patches that lose their experts there.
        protect_pooled: whether the token that the checkpoint reads (CLS, EOT) keeps its experts, whatever the capacity.
        renormalise: whether the weights that a token keeps are scaled to sum 1.
        residual: whether a feature mixture adds to the feature or replaces it (literal).
    """

    count: int = 4
    top_k: int = 2
    capacity: float = 1.0
    gate: str = "mlp"
    places: tuple[str, ...] = PLACES
    layer: int = -1
    pooling: str = "cls"
    protect_pooled: bool = False
    renormalise: bool = False
    residual: bool = True


class MoESlot(nn.Module):
    """An EmbeddingMoE where a block expects its MLP: it is told beforehand what a block does not tell it, the padding
    mask and the token that is pooled (by default the first), and remembers its gates.

    Attributes:
        alone: whether nothing but the pooled token is read of what this block gives.
        protected: whether the pooled token keeps its experts, whatever the capacity.
    """

    def __init__(self, moe: EmbeddingMoE, *, alone: bool, protected: bool) -> None:
        super().__init__()
        self.moe, self.alone, self.protected = moe, alone, protected
        self.mask: Tensor | None = None
        self.read: Tensor | None = None
        self.gates: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        pooled = torch.zeros(len(x), dtype=torch.long) if self.read is None else self.read
        out, self.gates = self.moe(x, self.mask, pooled if self.alone else None, pooled if self.protected else None)
        return out


@dataclass(frozen=True)
class Encoded:
    """Unit-length features [n, d] and the sparse gate weights by name (`embedding` [n, T, M], `feature` [n, M])."""

    features: Tensor
    gates: dict[str, Tensor]


class DualEncoder:
    """A dual encoder with its tokenizer and task.

    The image side runs in parts (`trunk`, `head`), so that frozen lower blocks are computed once.
    """

    def __init__(self, model: Any, checkpoint: str, task: Task, image_size: int, experts: Experts, seed: int) -> None:
        from transformers import AutoTokenizer

        self.task, self.image_size, self.experts = task, image_size, experts
        self.tokenizer = AutoTokenizer.from_pretrained(checkpoint)
        mean, std = pixel_statistics(checkpoint)
        self.mean, self.std = mean.to(device()), std.to(device())
        self.shorten = lru_cache(maxsize=2**17)(self._shorten)
        self.slots: dict[str, MoESlot] = {}
        self.frozen: list[nn.Module] = []
        self.feature_moes = nn.ModuleDict()
        if experts.count:
            with torch.random.fork_rng():
                torch.manual_seed(seed)
                self.slots, self.feature_moes = add_experts(model, experts)
        self.model = model.to(device())
        self.feature_moes.to(device())

    def train(self, mode: bool = True) -> None:
        """Training mode for what is trained; what is frozen has no dropout, or each step would see other features."""
        self.model.train(mode)
        self.feature_moes.train(mode)
        for frozen in self.frozen:
            frozen.eval()

    def named_parameters(self) -> dict[str, nn.Parameter]:
        """All parameters by name, those of the model and those of the feature mixtures."""
        return dict(self.model.named_parameters()) | {
            f"feature_moes.{name}": parameter for name, parameter in self.feature_moes.named_parameters()
        }

    def freeze(self, train_blocks: int) -> None:
        """Freeze what lies below the last `train_blocks` blocks of each encoder; 0 freezes nothing.

        Raises:
            ConfigError: when the block with the experts would be frozen.
        """
        if not train_blocks:
            return
        for side, tower in (("image", self.model.vision_model), ("text", self.model.text_model)):
            layers = blocks(tower)
            if side in self.slots and block_number(tower, self.experts.layer) < len(layers) - train_blocks:
                raise ConfigError(
                    f"The experts of the {side} encoder are in a block that is not trained.",
                    where="fair_moe.layer, fair_moe.train_blocks",
                    mend="Raise train_blocks, or let a later block have the experts.",
                )
            self.frozen += [tower.embeddings, *layers[:-train_blocks]]
            if hasattr(tower, "pre_layrnorm"):
                self.frozen.append(tower.pre_layrnorm)
        for module in self.frozen:
            module.requires_grad_(False)

    def trunk(self, images: np.ndarray | Tensor, train_blocks: int) -> Tensor:
        """Tokens [n, T, D] that enter the last `train_blocks` blocks of the image encoder."""
        tower = self.model.vision_model
        prepared = pixels(images, self.mean, self.std)
        if tower.config.model_type == "dinov2":
            tokens = tower.embeddings(prepared)
        else:
            other = tower.config.image_size != self.image_size
            tokens = tower.embeddings(prepared, interpolate_pos_encoding=other)
            if hasattr(tower, "pre_layrnorm"):
                tokens = tower.pre_layrnorm(tokens)
        for layer in blocks(tower)[: -train_blocks or None]:
            tokens = layer(tokens, attention_mask=None)
        return tokens

    def head(self, tokens: Tensor, train_blocks: int) -> Encoded:
        """The last blocks, the pooling, the feature mixture and the projection."""
        tower = self.model.vision_model
        for layer in blocks(tower)[-train_blocks:]:
            tokens = layer(tokens, attention_mask=None)
        norm = tower.post_layernorm if hasattr(tower, "post_layernorm") else tower.layernorm
        pooled = norm(tokens[:, 0]) if self.experts.pooling == "cls" else norm(tokens[:, 1:]).mean(1)
        return self._project("image", pooled, self.model.visual_projection)

    @property
    def longest(self) -> int:
        """Tokens that the text encoder takes, the special ones included."""
        return min(self.tokenizer.model_max_length, self.model.text_model.config.max_position_embeddings)

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
        if "text" in self.slots:
            self.slots["text"].mask = tokens["attention_mask"].bool()
            self.slots["text"].read = _pooled_token(self.model.text_model.config, tokens["input_ids"])
        said = self.model.text_model(**tokens)
        pooled = said.pooler_output
        if self.experts.pooling == "mean":
            counted = tokens["attention_mask"][..., None]
            pooled = (said.last_hidden_state * counted).sum(1) / counted.sum(1)
        return self._project("text", pooled, self.model.text_projection)

    def _project(self, side: str, pooled: Tensor, projection: nn.Module) -> Encoded:
        gates: dict[str, Tensor] = {}
        if side in self.slots:
            gathered = self.slots[side].gates
            assert gathered is not None  # the block has just run
            gates["embedding"] = gathered
        if side in self.feature_moes:
            pooled, gates["feature"] = self.feature_moes[side](pooled)
        return Encoded(F.normalize(projection(pooled).float(), dim=-1), gates)

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
            scale = self.model.logit_scale.exp()
            captions = self.encode_text([prompt for group in prompts for prompt in group]).features
            chance = (scale * features @ captions.T).view(len(features), len(prompts), -1).softmax(-1)
        return chance[:, 0] if self.task.kind == "multiclass" else chance[:, :, 1]

    def save(self, folder: Path) -> None:
        """Write the parameters that were trained, and no others."""
        from safetensors.torch import save_file

        trained = {
            name: parameter.detach().cpu().contiguous()
            for name, parameter in self.named_parameters().items()
            if parameter.requires_grad
        }
        save_file(trained, folder / WEIGHTS_FILE)


def add_experts(model: Any, experts: Experts) -> tuple[dict[str, MoESlot], nn.ModuleDict]:
    """Put fresh mixtures of experts into both encoders of a CLIPModel or VisionTextDualEncoderModel.

    Returns:
        By side: the embedding mixtures, which now stand in the blocks, and the feature mixtures, for the caller to run.
    """
    slots: dict[str, MoESlot] = {}
    behind = nn.ModuleDict()
    shape: dict[str, Any] = {"num_experts": experts.count, "top_k": experts.top_k}
    for side, tower in (("image", model.vision_model), ("text", model.text_model)):
        width = tower.config.hidden_size
        if f"embedding_{side}" in experts.places:
            place = block_number(tower, experts.layer)
            alone = experts.pooling == "cls" and place == len(blocks(tower)) - 1
            block: Any = blocks(tower)[place]
            # BERT splits its MLP over two modules; the second keeps dropout, residual and norm.
            whole = hasattr(block, "mlp")
            mlp = block.mlp if whole else nn.Sequential(block.intermediate, block.output.dense)
            moe = EmbeddingMoE.from_mlp(
                mlp,
                width,
                **shape,
                capacity=experts.capacity,
                gate=experts.gate,
                renormalise=experts.renormalise,
            )
            slots[side] = MoESlot(moe, alone=alone, protected=experts.protect_pooled)
            if whole:
                block.mlp = slots[side]
            else:
                block.intermediate, block.output.dense = slots[side], nn.Identity()
        if f"feature_{side}" in experts.places:
            behind[side] = FeatureMoE(width, **shape, residual=experts.residual)
    return slots, behind


def blocks(tower: Any) -> nn.ModuleList:
    """The transformer blocks of an encoder, whatever its family calls them."""
    return tower.encoder.layers if hasattr(tower.encoder, "layers") else tower.encoder.layer


def block_number(tower: Any, layer: int) -> int:
    """The place, from 0, of a block that may be counted from the end.

    Raises:
        ConfigError: when the encoder has no such block.
    """
    count = len(blocks(tower))
    if not -count <= layer < count:
        raise ConfigError(
            f"The encoder has {count} blocks, and none is number {layer}.",
            where="fair_moe.layer",
            mend=f"Give a number from {-count} to {count - 1}; -1 is the last block.",
        )
    return layer % count


def _pooled_token(config: Any, ids: Tensor) -> Tensor:
    """Place [n] of the token that a text encoder pools: BERT's first, CLIP's end of text."""
    if config.model_type != "clip_text_model":
        return torch.zeros(len(ids), dtype=torch.long)
    # OpenAI's checkpoints name a wrong end of text, 2; transformers then takes the largest id, and so must we.
    ends = ids if config.eos_token_id == 2 else ids == config.eos_token_id
    return ends.int().argmax(-1)


def load_base(checkpoint: str, task: Task, image_size: int, *, experts: Experts, seed: int) -> DualEncoder:
    """Load a CLIP or dual-encoder checkpoint from a folder or the hub, in float32, and add fresh experts.

    Raises:
        CheckpointError: when it cannot be found or is of another model type.
    """
    from transformers import CLIPModel, VisionTextDualEncoderModel

    families: dict[str, Any] = {"clip": CLIPModel, "vision-text-dual-encoder": VisionTextDualEncoderModel}
    config = checkpoint_config(checkpoint, tuple(families))
    model = families[config.model_type].from_pretrained(checkpoint, dtype=torch.float32)
    return DualEncoder(model, checkpoint, task, image_size, experts, seed)


def load(folder: Path, checkpoint: str, described: dict[str, Any]) -> DualEncoder:
    """Load a trained model: the base with its experts, then the parameters that were trained."""
    from safetensors.torch import load_file

    experts = Experts(**described["experts"])
    dual = load_base(checkpoint, described["task"], described["image_size"], experts=experts, seed=described["seed"])
    weights = folder / WEIGHTS_FILE
    if not weights.is_file():
        raise CheckpointError("The trained weights are missing.", where=str(weights), mend="Run fair_moe again.")
    named = dual.named_parameters()
    with torch.no_grad():
        for name, value in load_file(weights).items():
            if name not in named or named[name].shape != value.shape:
                raise CheckpointError(
                    "The trained weights do not fit the base model.",
                    where=f"{weights}, tensor {name}",
                    mend="Pass the base_models folder it was trained from.",
                )
            named[name].copy_(value)
    dual.train(False)
    return dual


def save(dual: DualEncoder, folder: Path, *, name: str, seed: int) -> None:
    """Write a trained model: what was trained, and `model.json`."""
    dual.save(folder)
    write_description(
        folder,
        name=name,
        family="dual",
        task=dual.task,
        image_size=dual.image_size,
        seed=seed,
        experts=vars(dual.experts),
    )
