"""The training of Fair-MoE, put together from batches, objectives and the engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fairvlm_core.losses import importance_loss, load_loss, router_z_loss, transport_distances
from fairvlm_core.models.dual import DualEncoder
from fairvlm_core.models.fair_moe import Encoded
from fairvlm_core.models.moe import Routing, routing_statistics
from fairvlm_core.models.trunk import blocks
from fairvlm_core.training.engine import Schedule, one_pass
from fairvlm_core.training.job import Job, Tower
from fairvlm_core.training.objectives import (
    Batch,
    GroupBatches,
    draw_groups,
    encode_unique,
    fairness_oriented_loss,
    image_text_loss,
    same_text,
    shared_groups,
    sinkhorn_distances,
    texts_for,
)


def train_fair_moe(dual: DualEncoder, job: Job, config: Any) -> dict[str, list]:
    """The contrastive loss plus FOL, all group batches in the forward pass of the batch (Fair-MoE)."""
    dual.freeze(config.train_blocks)
    depth = config.train_blocks or len(blocks(dual.towers["image"]))
    trunk = dual.trunk_below(depth)
    dual.train(False)
    frozen = bool(config.train_blocks)
    train = Tower(job.train, trunk, cache=frozen and not job.augment, label="training")
    validation = Tower(job.validation, trunk, cache=frozen, label="validation")
    dual.train()

    distances = transport_distances if config.distance == "exact" else sinkhorn_distances(config.blur)
    weights = {
        "distance": config.distance_weight,
        "dispersion_embedding_image": config.embedding_image_weight,
        "dispersion_embedding_text": config.embedding_text_weight,
        "dispersion_feature_image": config.feature_image_weight,
        "dispersion_feature_text": config.feature_text_weight,
    }

    balance = {"importance": config.importance_weight, "load": config.load_weight, "z": config.z_weight}

    # CLIP's own loss needs no groups: encoding them would cost more than the batch.
    draws = config.group_batches == "drawn" and any(weights.values())

    def losses(batch: Batch, generator: torch.Generator) -> dict[str, Tensor | float]:
        drawn = draw_groups(job.train, config.group_batch, generator) if draws else []
        indices = np.concatenate([batch.indices, *drawn])
        repeated = np.concatenate([batch.repeated, np.zeros(len(indices) - len(batch.indices), dtype=bool)])
        texts = texts_for(job.train, indices, config.prompt_share, generator)
        # A pair whose label is unknown and that has no note says nothing.
        said = np.array([text is not None for text in texts])
        sizes = [int(part.sum()) for part in np.split(said, np.cumsum([len(batch.indices), *map(len, drawn)])[:-1])]
        ends = np.cumsum(sizes)
        groups: tuple[slice | Tensor, ...] = tuple(map(slice, ends[:-1].tolist(), ends[1:].tolist()))
        if config.group_batches == "shared":
            groups = shared_groups(job.train.groups[indices[said]])
        layout = GroupBatches(sizes[0], groups)
        batch = Batch(indices[said], repeated[said])
        tokens = train.tokens(train.inputs(batch, generator if job.augment else None))
        image = dual.head(tokens, depth)
        spoken = [text for text in texts if text is not None]
        text = encode_unique(dual, spoken)
        first = slice(0, layout.batch)
        same = same_text(spoken[: layout.batch]).to(tokens.device)
        scale = dual.model.encoders.logit_scale.exp().clamp(max=100)
        contrast = image_text_loss(image.features[first], text.features[first], same, scale)
        fol = fairness_oriented_loss(image, text, layout, distances=distances)
        loss = contrast + sum(weights[name] * value for name, value in fol.items())
        even = _balance((image, text), balance)
        return {
            "loss": loss + sum(balance[name] * value for name, value in even.items()),
            "contrast": contrast.detach(),
            **_detached(fol),
            **_detached(even),
            **_routing(dual, {"image": image, "text": text}),
        }

    def score() -> np.ndarray:
        dual.train(False)
        with torch.no_grad():
            features = torch.cat(validation.in_order())
        found = dual.score_features(features).cpu().numpy()
        dual.train()
        return found

    schedule = Schedule(config.epochs, config.learning_rate, weight_decay=config.weight_decay)
    return {"training": job.fit(dict(dual.model.named_parameters()), schedule, one_pass(losses), score, "fair_moe")}


def _detached(terms: dict[str, Any]) -> dict[str, Any]:
    return {name: value.detach() if isinstance(value, Tensor) else value for name, value in terms.items()}


def _balance(sides: Sequence[Encoded], weights: Mapping[str, float]) -> dict[str, Tensor]:
    """The auxiliary losses that have a weight, each summed over the mixtures."""
    found: dict[str, Tensor] = {}
    mixtures = [_counted(routing, encoded.mask) for encoded in sides for routing in encoded.routing.values()]
    for routing in mixtures if any(weights.values()) else ():
        each = {
            "importance": importance_loss(routing.gates),
            "load": load_loss(routing.logits, routing.routed),
            "z": router_z_loss(routing.logits),
        }
        for name, value in each.items():
            if weights[name]:
                found[name] = found[name] + value if name in found else value
    return found


def _counted(routing: Routing, mask: Tensor | None) -> Routing:
    """The routing of the tokens alone, padding left out: [N, M]."""
    return routing.select(mask) if mask is not None and routing.gates.ndim == 3 else routing


def _routing(dual: DualEncoder, encoded: dict[str, Encoded]) -> dict[str, float]:
    """Whether experts idle, and whether the token that is read loses its own: `routing.<side>.<kind>.<statistic>`.

    Behind an encoder no token can be dropped, so of those mixtures load and entropy are all there is to tell.
    """
    found = {}
    for side, one in encoded.items():
        if "feature" in one.routing:
            figures = routing_statistics(one.routing["feature"].gates)
            found[f"{side}.feature"] = {name: value for name, value in figures.items() if "drop" not in name}
        if side in dual.model.slots:
            slot = dual.model.slots[side]
            token = 0 if slot.read is None else slot.read
            found[f"{side}.embedding"] = routing_statistics(slot.routing.gates, slot.mask, token)
    return {f"routing.{place}.{name}": value for place, figures in found.items() for name, value in figures.items()}
