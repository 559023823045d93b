"""Fair-MoE as a transformers model: two encoders in one space, with experts in a block of each and after it.

Works on CLIPModel and on VisionTextDualEncoderModel (DINOv2, ViT or CLIP vision; BERT or CLIP text). Import this module
and `AutoModel.from_pretrained` knows what `save_pretrained` wrote.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput

from fairvlm_core.errors import ConfigError
from fairvlm_core.models.moe import EmbeddingMoE, FeatureMoE, Routing
from fairvlm_core.models.trunk import blocks, enter

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
    mask and the token that is pooled (by default the first), and remembers where it sent the tokens.

    Attributes:
        alone: whether nothing but the pooled token is read of what this block gives.
        protected: whether the pooled token keeps its experts, whatever the capacity.
    """

    def __init__(self, moe: EmbeddingMoE, *, alone: bool, protected: bool) -> None:
        super().__init__()
        self.moe, self.alone, self.protected = moe, alone, protected
        self.mask: Tensor | None = None
        self.read: Tensor | None = None
        self.routing: Routing | None = None

    def forward(self, x: Tensor) -> Tensor:
        pooled = torch.zeros(len(x), dtype=torch.long) if self.read is None else self.read
        self.routing = self.moe.route(x, self.mask, pooled if self.protected else None)
        return self.moe.mix(x, self.routing, pooled if self.alone else None)


@dataclass(frozen=True)
class Encoded:
    """What one side gives for n samples.

    Attributes:
        features: unit-length [n, d].
        routing: by kind of mixture, `embedding` ([n, T, M]) and `feature` ([n, M]), where there is one.
        mask: bool [n, T], the tokens that count in the embedding mixture; None where all do.
    """

    features: Tensor
    routing: dict[str, Routing]
    mask: Tensor | None = None

    def select(self, rows: Tensor) -> Encoded:
        """Some of the samples, in the order of `rows`."""
        routing = {kind: found.select(rows) for kind, found in self.routing.items()}
        return Encoded(self.features[rows], routing, None if self.mask is None else self.mask[rows])


@strict(accept_kwargs=True)
class FairMoEConfig(PreTrainedConfig):
    """The configuration of the encoders and, as a mapping, `Experts`."""

    model_type = "fair_moe"

    encoders: Any = None
    experts: Any = None

    def __post_init__(self, **kwargs: Any) -> None:
        if isinstance(self.encoders, dict):
            told = dict(self.encoders)
            self.encoders = AutoConfig.for_model(told.pop("model_type"), **told)
        self.experts = dict(self.experts or asdict(Experts()))
        self.experts["places"] = list(self.experts["places"])
        super().__post_init__(**kwargs)


@dataclass
class FairMoEOutput(ModelOutput):
    """What a call gives.

    Attributes:
        logits_per_image: [images, texts], cosines times the logit scale; `logits_per_text` is its transpose.
        image_embeds: unit-length [images, d]; `text_embeds` likewise.
    """

    logits_per_image: Tensor | None = None
    logits_per_text: Tensor | None = None
    image_embeds: Tensor | None = None
    text_embeds: Tensor | None = None


class FairMoEModel(PreTrainedModel):
    """A dual encoder with mixtures of experts (Fair-MoE, FO-MoE).

    The image side runs in parts (`trunk`, `head`), so that frozen lower blocks are computed once.

    Args:
        config: of the encoders and of the experts.
        encoders: a pretrained model to put the experts into; by default an untrained one is made. The experts of the
            embedding mixtures are copies of its MLPs.

    Raises:
        ConfigError: an encoder has no such block.
    """

    config_class = FairMoEConfig
    base_model_prefix = "fair_moe"
    input_modalities = ["image", "text"]  # noqa: RUF012 (transformers reads a list)
    main_input_name = "pixel_values"
    _supports_sdpa = True
    _supports_flash_attn = True

    def __init__(self, config: FairMoEConfig, encoders: PreTrainedModel | None = None) -> None:
        super().__init__(config)
        self.experts = Experts(**{**config.experts, "places": tuple(config.experts["places"])})
        self.encoders: Any = AutoModel.from_config(config.encoders) if encoders is None else encoders
        self.slots: dict[str, MoESlot] = {}
        self.feature_moes = nn.ModuleDict()
        if self.experts.count:
            self.slots, self.feature_moes = add_experts(self.encoders, self.experts)
        if encoders is not None:
            # Trained, or a copy of what was, or as torch made it: transformers has nothing left to initialise.
            parts: list[Any] = [*self.modules(), *self.parameters()]
            for part in parts:
                part._is_hf_initialized = True
        self.post_init()

    @classmethod
    def from_encoders(cls, encoders: Any, experts: Experts, *, seed: int) -> FairMoEModel:
        """Put fresh experts into a pretrained CLIPModel or VisionTextDualEncoderModel, which becomes part of it."""
        told = encoders.config
        for part in (told, told.text_config, told.vision_config):
            part.name_or_path = ""  # a path of this machine, or the name of what the model no longer is
        config = FairMoEConfig(encoders=told, experts=asdict(experts))
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return cls(config, encoders)

    @torch.no_grad()
    def initialize_weights(self) -> None:
        """For a model that was made of its configuration, and for what a checkpoint lacks.

        Within an encoder transformers asks the encoder, which knows nothing of gates; and the experts of an embedding
        mixture begin as copies of one MLP. Both are mended when all else is initialised.
        """
        super().initialize_weights()
        for mixture in self.modules():
            if isinstance(mixture, (EmbeddingMoE, FeatureMoE)):
                _init_mixture(mixture)

    def trunk(self, pixel_values: Tensor, blocks_after: int) -> Tensor:
        """Tokens [n, T, D] that enter the last `blocks_after` blocks of the image encoder, of pixels [n, 3, S, S]."""
        tower = self.encoders.vision_model
        tokens = enter(tower, pixel_values)
        for layer in blocks(tower)[: -blocks_after or None]:
            tokens = layer(tokens, attention_mask=None)
        return tokens

    def head(self, tokens: Tensor, blocks_after: int) -> Encoded:
        """The last blocks, the pooling, the feature mixture and the projection."""
        tower = self.encoders.vision_model
        for layer in blocks(tower)[-blocks_after:]:
            tokens = layer(tokens, attention_mask=None)
        norm = tower.post_layernorm if hasattr(tower, "post_layernorm") else tower.layernorm
        pooled = norm(tokens[:, 0]) if self.experts.pooling == "cls" else norm(tokens[:, 1:]).mean(1)
        return self._project("image", pooled, self.encoders.visual_projection)

    def encode_text(self, input_ids: Tensor, attention_mask: Tensor) -> Encoded:
        """Texts as ids [n, T]; padding is masked out of the experts' capacity."""
        if "text" in self.slots:
            self.slots["text"].mask = attention_mask.bool()
            self.slots["text"].read = _pooled_token(self.encoders.text_model.config, input_ids)
        said = self.encoders.text_model(input_ids=input_ids, attention_mask=attention_mask)
        pooled = said.pooler_output
        if self.experts.pooling == "mean":
            counted = attention_mask[..., None]
            pooled = (said.last_hidden_state * counted).sum(1) / counted.sum(1)
        return self._project("text", pooled, self.encoders.text_projection)

    def _project(self, side: str, pooled: Tensor, projection: nn.Module) -> Encoded:
        routing: dict[str, Routing] = {}
        mask = None
        if side in self.slots:
            gathered = self.slots[side].routing
            assert gathered is not None  # the block has just run
            routing["embedding"], mask = gathered, self.slots[side].mask
        if side in self.feature_moes:
            mixture: Any = self.feature_moes[side]
            routing["feature"] = mixture.route(pooled)
            pooled = mixture.mix(pooled, routing["feature"])
        return Encoded(F.normalize(projection(pooled).float(), dim=-1), routing, mask)

    def get_image_features(self, pixel_values: Tensor) -> Tensor:
        """Unit-length features [n, d] of pixels [n, 3, S, S]."""
        return self.head(self.trunk(pixel_values, 1), 1).features

    def get_text_features(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Unit-length features [n, d] of ids [n, T]."""
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        return self.encode_text(input_ids, mask).features

    def forward(self, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor | None = None) -> FairMoEOutput:
        """Every image against every text, as transformers' CLIPModel does."""
        image = self.get_image_features(pixel_values)
        text = self.get_text_features(input_ids, attention_mask)
        logits = self.encoders.logit_scale.exp() * image @ text.T
        return FairMoEOutput(logits_per_image=logits, logits_per_text=logits.T, image_embeds=image, text_embeds=text)


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


def _init_mixture(mixture: EmbeddingMoE | FeatureMoE) -> None:
    """As the modules themselves begin, but leaving alone what a checkpoint gave."""
    behind = isinstance(mixture, FeatureMoE)
    for part in (*mixture.gate.modules(), *(mixture.experts.modules() if behind else ())):
        if isinstance(part, nn.Linear):
            bound = 1 / math.sqrt(part.in_features)
            init.uniform_(part.weight, -bound, bound)
            init.uniform_(part.bias, -bound, bound)
    if behind:
        for expert in mixture.experts if mixture.residual else ():
            for parameter in list(expert.children())[-1].parameters():
                init.zeros_(parameter)
        return
    first, *others = mixture.experts
    for other in others:
        for mine, its in zip(other.parameters(), first.parameters(), strict=True):
            init.copy_(mine, its)


AutoConfig.register(FairMoEConfig.model_type, FairMoEConfig)
AutoModel.register(FairMoEConfig, FairMoEModel)
