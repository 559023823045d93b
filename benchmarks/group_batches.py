"""A training step of FairCLIP and of Fair-MoE whose batch also serves as the groups' batches, beside the usual way.

python benchmarks/group_batches.py            # prints the table; about ten minutes, 6 GB, one thread
python benchmarks/group_batches.py --write    # also writes it to benchmarks/group_batches.md

A step is a forward and a backward pass of CLIP ViT-B/16 with random weights, in the proportions of FairCLIP's code: a
batch of 32 and three groups of 64, a quarter of each. Usually each group goes through the model by itself, without
gradient. Before anything is timed, ours must give the losses and gradients that come of encoding its groups separately.
What the rows mean is in benchmarks/README.md.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from side_by_side import command, machine, one_thread, speedups, spread, take_turns
from torch import Tensor
from transformers import CLIPConfig, CLIPTextConfig, CLIPVisionConfig

from fairvlm_core.models.fair_moe import Encoded, Experts, FairMoEConfig, FairMoEModel
from fairvlm_core.training.objectives import (
    Distances,
    GroupBatches,
    Terms,
    fairness_oriented_loss,
    image_text_loss,
    shared_groups,
    sinkhorn_distances,
)

GROUPS = 3
TOLERANCE = 1e-4  # of each loss, and of the norm of the gradient
EXACT = None  # the distance that the pipeline takes

Pairs = tuple[Tensor, Tensor]  # pixels [n, 3, S, S] and ids [n, T]
Step = Callable[[], list[Tensor]]


@dataclass(frozen=True)
class Race:
    """Two ways to a training step; a call gives the contrastive loss, the fairness terms and the gradients.

    Attributes:
        separate: as ours, but each group is encoded by itself, with gradient: what ours must equal.
        encoded: pairs that each side encodes in a step.
    """

    name: str
    peer: str
    ours: Step
    theirs: Step
    separate: Step
    encoded: tuple[int, int]


@dataclass(frozen=True)
class Result:
    """Milliseconds per step (medians over the rounds), theirs / ours of each round."""

    race: Race
    ours: float
    theirs: float
    ratios: list[float]
    differ: float


def model_of(experts: int, *, width: int, layers: int, image: int) -> FairMoEModel:
    """CLIP with random weights; the text encoder has two thirds of the width, as in ViT-B/16."""
    text = 2 * width // 3
    torch.manual_seed(0)
    heads = {"num_hidden_layers": layers, "projection_dim": text}
    encoders = CLIPConfig(
        text_config=CLIPTextConfig(
            hidden_size=text, intermediate_size=4 * text, num_attention_heads=max(text // 64, 1), **heads
        ),
        vision_config=CLIPVisionConfig(
            hidden_size=width,
            intermediate_size=4 * width,
            num_attention_heads=max(width // 64, 1),
            patch_size=16,
            image_size=image,
            **heads,
        ),
        projection_dim=text,
    )
    return FairMoEModel(FairMoEConfig(encoders=encoders, experts={**vars(Experts()), "count": experts})).train()


def encode(model: FairMoEModel, pairs: Pairs) -> tuple[Encoded, Encoded]:
    """Both sides of some pairs in one forward pass."""
    images, ids = pairs
    return model.head(model.trunk(images, 1), 1), model.encode_text(ids, torch.ones_like(ids))


def joined(parts: Sequence[Encoded]) -> Encoded:
    """Several passes as if they had been one."""
    kinds = parts[0].routing
    routing = {
        kind: type(found)(*(torch.cat(pieces) for pieces in zip(*(part.routing[kind] for part in parts), strict=True)))
        for kind, found in kinds.items()
    }
    masks = [part.mask for part in parts if part.mask is not None]
    return Encoded(torch.cat([part.features for part in parts]), routing, torch.cat(masks) if masks else None)


def step(
    model: FairMoEModel, forward: Callable[[], tuple[Encoded, Encoded, GroupBatches]], distances: Distances | None
) -> Step:
    """A call of one training step without the optimiser's."""

    def call() -> list[Tensor]:
        model.zero_grad()
        image, text, layout = forward()
        first = slice(0, layout.batch)
        same = torch.eye(layout.batch, dtype=torch.bool)
        scale = model.encoders.logit_scale.exp()
        contrast = image_text_loss(image.features[first], text.features[first], same, scale)
        more = {} if distances is None else {"distances": distances}
        terms: Terms = fairness_oriented_loss(image, text, layout, **more)
        (contrast + sum(terms.values())).backward()
        grown = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        return [contrast.detach(), *(torch.as_tensor(term).detach() for term in terms.values()), *grown]

    return call


def races(
    *, batch: int = 8, group: int = 16, width: int = 768, layers: int = 12, image: int = 224, words: int = 77
) -> list[Race]:
    """Both models; other sizes than the defaults serve the tests."""
    made = []
    for name, experts in (("FairCLIP", 0), ("Fair-MoE, 4 experts", 4)):
        model = model_of(experts, width=width, layers=layers, image=image)
        random = torch.Generator().manual_seed(1)

        def drawn(count: int, random: torch.Generator = random) -> Pairs:
            ids = torch.randint(1000, 40000, (count, words), generator=random)
            ids[:, -1] = 49407  # the end of text, which is what is pooled
            return torch.randn(count, 3, image, image, generator=random), ids

        pairs, groups = drawn(batch), [drawn(group) for _ in range(GROUPS)]
        places = shared_groups((torch.arange(batch) % GROUPS)[:, None].numpy())

        def shared(model=model, pairs=pairs, places=places):
            return *encode(model, pairs), GroupBatches(batch, places)

        def apart(parts: Sequence[Pairs], *, gradient: bool, model=model, pairs=pairs):
            images, texts = ([side] for side in encode(model, pairs))
            for part in parts:
                with torch.set_grad_enabled(gradient):
                    image_side, text_side = encode(model, part)
                images.append(image_side)
                texts.append(text_side)
            ends = torch.tensor([batch, *(len(part[1]) for part in parts)]).cumsum(0).tolist()
            layout = GroupBatches(batch, tuple(map(slice, ends[:-1], ends[1:])))
            return joined(images), joined(texts), layout

        members = [(pairs[0][place], pairs[1][place]) for place in places]
        made.append(
            Race(
                name,
                "groups encoded separately, without gradient; Sinkhorn",
                ours=step(model, shared, EXACT),
                theirs=step(
                    model, lambda groups=groups, apart=apart: apart(groups, gradient=False), sinkhorn_distances(1e-4)
                ),
                separate=step(model, lambda members=members, apart=apart: apart(members, gradient=True), EXACT),
                encoded=(batch, batch + GROUPS * group),
            )
        )
    return made


def difference(race: Race) -> float:
    """The largest difference from groups that are encoded by themselves: of a loss, or of the whole gradient."""
    mine, theirs = (
        [value for value in found if not value.ndim] + [torch.cat([part.flatten() for part in found if part.ndim])]
        for found in (race.ours(), race.separate())
    )
    return max(((a - b).norm() / b.norm()).item() for a, b in zip(mine, theirs, strict=True))


def run(race: Race, rounds: int) -> Result:
    """Let both work in turn; who begins alternates."""
    differ = difference(race)
    if not differ <= TOLERANCE:
        raise RuntimeError(f"{race.name}: groups in the batch and groups by themselves differ by {differ:.1e}.")
    ours, theirs = take_turns(lambda _: race.ours(), lambda _: race.theirs(), rounds=rounds, seconds=0.3)
    milliseconds = [1e3 * statistics.median(times) for times in (ours, theirs)]
    return Result(race, *milliseconds, speedups(ours, theirs), differ)


def table(results: Sequence[Result]) -> str:
    """The results as Markdown, with what they were measured on."""
    lines = ["| | pairs | ms | peer | its pairs | its ms | ratio (lowest to highest) | differ by at most |"]
    lines.append("| --- | ---: | ---: | --- | ---: | ---: | ---: | ---: |")
    for result in results:
        race, (mine, its) = result.race, result.race.encoded
        lines.append(
            f"| {race.name} | {mine} | {result.ours:,.0f} | {race.peer} | {its} | {result.theirs:,.0f} "
            f"| {spread(result.ratios, 2)} | {result.differ:.0e} |"
        )
    return "\n".join([*lines, "", f"{machine('torch', 'transformers')} Rounds: {len(results[0].ratios)}."]) + "\n"


def measure(rounds: int) -> str:
    with one_thread():
        return table([run(race, rounds) for race in races()])


if __name__ == "__main__":
    command(__file__, __doc__, "Group batches", measure)
