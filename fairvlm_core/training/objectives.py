"""What is minimised: L_task and the fairness terms of FairMed-VLM, and Fair-MoE's contrastive loss with FOL."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from fairvlm_core.cohort.conversations import Rounds
from fairvlm_core.cohort.prompts import DESCRIBE, NO, YES, caption, chat, demographic_prompt, questions
from fairvlm_core.losses import (
    concept_alignment,
    gate_dispersion,
    sinkhorn_distance,
    transport_distances,
)
from fairvlm_core.losses.answers import answer_bce, instruction_loss, option_cross_entropy
from fairvlm_core.models.dual import DualEncoder
from fairvlm_core.models.fair_moe import Encoded
from fairvlm_core.models.packing import Turn, pack
from fairvlm_core.models.vlm import VLM
from fairvlm_core.training.batches import Samples

NOTE_TOKENS = 48  # a longer note is cut: the answers, not the notes, are what is scored

Terms = dict[str, "Tensor | float"]
Distances = Callable[[Tensor, Sequence[Tensor]], Tensor]


@dataclass(frozen=True)
class Batch:
    """Samples of one step: their indices, and which of them are repetitions to be augmented."""

    indices: np.ndarray
    repeated: np.ndarray


def concept_targets(vlm: VLM, labels: Tensor) -> tuple[list[str], Tensor]:
    """The controlled vocabulary and which phrases hold for each image: C phrases, bool [n, C] (FairMed-VLM, Stage 1).

    A binary task has its absence as the second concept; with a single phrase there would be nothing to tell apart.
    """
    task = vlm.task
    if task.kind == "binary":
        return [*task.negatives, *task.concepts], torch.cat([labels == 0, labels == 1], 1)
    return list(task.concepts), labels == 1


def concept_loss(vlm: VLM, z: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """L_concept: the pooled image tokens [n, d] against the phrases' embeddings."""
    phrases, positives = concept_targets(vlm, labels)
    concepts = vlm.concept_embeddings(phrases).float()
    return concept_alignment(z.float(), concepts, positives, temperature=temperature)


def conversation(
    vlm: VLM, labels: np.ndarray, note: str | None, told: Sequence[Rounds], demographics: str
) -> tuple[list[Turn], list[bool]]:
    """The sequences asked of one image, and which of them the model must learn to say.

    Multiclass: one per option, the right one is learnt. Otherwise: one per label, learnt where the label is known.
    A note, where there is one, is the answer to a request to describe. Conversations about the image come last.
    """
    task = vlm.task
    if task.kind == "multiclass":
        prompt = chat(task.question, demographics)
        turns = [vlm.sequence(prompt, option) for option in task.concepts]
        learnt = [bool(value == 1) for value in labels]
    else:
        turns = [
            vlm.sequence(chat(question, demographics), NO if value == 0 else YES)
            for question, value in zip(questions(task), labels, strict=True)
        ]
        learnt = [not np.isnan(value) for value in labels]
    if note:
        turns.append(vlm.sequence(chat(DESCRIBE, demographics), note, NOTE_TOKENS))
        learnt.append(True)
    for rounds in told:
        turns.append(vlm.conversation_turn(rounds, demographics))
        learnt.append(True)
    return turns, learnt


@dataclass(frozen=True)
class Conversations:
    """What a batch of n images is asked, and how much each image counts.

    Attributes:
        turns: per image, its sequences: those of the L questions or options first.
        learnt: per image and sequence, whether the model must learn to say the answer.
        weights: float32 [n].
    """

    turns: list[list[Turn]]
    learnt: list[list[bool]]
    weights: Tensor

    def __getitem__(self, rows: np.ndarray) -> Conversations:
        return Conversations([self.turns[i] for i in rows], [self.learnt[i] for i in rows], self.weights[rows])


def converse(
    vlm: VLM,
    labels: np.ndarray,
    notes: Sequence[str | None],
    told: Sequence[Sequence[Rounds]],
    demographics: Sequence[str],
    weights: Tensor | None = None,
) -> Conversations:
    """The conversations of a batch; each image counts 1 where no weights are given."""
    asked = [conversation(vlm, *one) for one in zip(labels, notes, told, demographics, strict=True)]
    weights = torch.ones(len(labels)) if weights is None else weights
    return Conversations([turns for turns, _ in asked], [learnt for _, learnt in asked], weights)


def answer_totals(asked: Conversations, labels: np.ndarray, kind: str) -> tuple[float, float]:
    """What L_inst and L_qa of a whole batch are divided by: weighted answer tokens, and weighted known answers."""
    tokens = [
        sum(len(turn.learnt) for turn, told in zip(turns, learnt, strict=True) if told)
        for turns, learnt in zip(asked.turns, asked.learnt, strict=True)
    ]
    unknown = np.isnan(labels)
    known = ~unknown.any(1) if kind == "multiclass" else (~unknown).sum(1)
    weights = asked.weights.double()
    return float(weights @ torch.tensor(tokens).double()), float(weights @ torch.from_numpy(known).double())


def answer_losses(
    vlm: VLM,
    image_tokens: Tensor,
    labels: np.ndarray,
    asked: Conversations,
    totals: tuple[float, float] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """L_inst and L_qa, and what L_qa was computed from, in a single forward pass (FairMed-VLM, Stage 1).

    Args:
        totals: `answer_totals` of the batch of which these images are a part; by default they are all of it.

    Returns:
        L_inst, L_qa, and [n, L]: log-odds of yes per label, or log-likelihoods per token of the options (multiclass).
    """
    packed = pack(asked.turns).to(image_tokens.device)
    learnt = torch.tensor([flag for flags in asked.learnt for flag in flags], device=image_tokens.device)
    logits = vlm.answer_logits(image_tokens, packed)
    by_tokens, by_answers = totals if totals is not None else answer_totals(asked, labels, vlm.task.kind)
    weights = asked.weights.to(logits)

    told = learnt[packed.sequence]
    instruction = instruction_loss(
        logits[told], packed.target[told], weights=weights[packed.row[told]], total=by_tokens
    )

    # Sequences of each image begin with its L questions or options; a note comes after them.
    width = labels.shape[1]
    counts = torch.tensor([len(turns) for turns in asked.turns])
    first = torch.cumsum(counts, 0) - counts
    scored = (first[:, None] + torch.arange(width)).to(image_tokens.device)
    known = torch.from_numpy(labels).to(image_tokens.device)
    if vlm.task.kind == "multiclass":
        chosen = logits.log_softmax(-1).gather(1, packed.target[:, None])[:, 0]
        likelihood = torch.zeros(len(packed.lengths), device=logits.device).index_add(0, packed.sequence, chosen)
        right = torch.where(known.isnan().any(1), -1, known.nan_to_num().argmax(1))
        options, lengths = likelihood[scored], packed.lengths[scored]
        answers = option_cross_entropy(options, lengths, right, weights=weights, total=by_answers)
        return instruction, answers, options / lengths
    starts = (torch.cumsum(packed.lengths, 0) - packed.lengths)[scored]
    yes, no = vlm.yes_no
    log_odds = logits[starts, yes] - logits[starts, no]
    return instruction, answer_bce(log_odds, known, weights=weights, total=by_answers), log_odds


def demographics_of(samples: Samples, indices: np.ndarray, dropout: float, generator: torch.Generator) -> list[str]:
    """Demographic prompts with dropout: the model also sees the form it is used in, which has none."""
    drop = torch.rand(len(indices), generator=generator) < dropout
    return [
        "" if hidden else demographic_prompt(samples.sexes[i], samples.ages[i])
        for i, hidden in zip(indices, drop.tolist(), strict=True)
    ]


def texts_for(
    samples: Samples, indices: np.ndarray, prompt_share: float, generator: torch.Generator
) -> list[str | None]:
    """The text of each pair: its note, or the caption of its labels (without a note, and for a share of the pairs).

    Zero-shot evaluation reads captions of that form, so training must have seen them beside the notes.
    """
    captioned = torch.rand(len(indices), generator=generator) < prompt_share
    return [
        caption(samples.task, samples.labels[i]) if prompt or not samples.notes[i] else samples.notes[i]
        for i, prompt in zip(indices, captioned.tolist(), strict=True)
    ]


def image_text_loss(image: Tensor, text: Tensor, same: Tensor, scale: Tensor) -> Tensor:
    """Symmetric contrastive loss of CLIP on unit-length features [n, d]; pairs with the same text are all positives.

    Args:
        same: bool [n, n], true where two pairs have the same text; the identity is CLIP's own loss.
    """
    logits = scale * image @ text.T
    target = same.to(logits) / same.sum(1, keepdim=True)
    by_image = -(target * F.log_softmax(logits, 1)).sum(1).mean()
    by_text = -(target * F.log_softmax(logits.T, 1)).sum(1).mean()
    return (by_image + by_text) / 2


def same_text(texts: Sequence[str]) -> Tensor:
    """bool [n, n]: which texts are equal."""
    numbers = {text: number for number, text in enumerate(dict.fromkeys(texts))}
    codes = torch.tensor([numbers[text] for text in texts])
    return codes[:, None] == codes[None, :]


@dataclass(frozen=True)
class GroupBatches:
    """Where the pairs of one step lie in the single forward pass: the batch first, then what is drawn for the groups.

    Attributes:
        batch: number of pairs of the batch.
        groups: per attribute and group, its pairs: a slice behind the batch, or places in the batch.
    """

    batch: int
    groups: tuple[slice | Tensor, ...]


def sinkhorn_distances(blur: float) -> Distances:
    """The distances that FairCLIP and the paper of Fair-MoE take, with the smoothing `blur` in units of a cosine."""

    def distances(x: Tensor, ys: Sequence[Tensor]) -> Tensor:
        return torch.stack([sinkhorn_distance(x, y, blur=blur) for y in ys]) if ys else x[:0]

    return distances


def fairness_oriented_loss(
    image: Encoded,
    text: Encoded,
    layout: GroupBatches,
    *,
    distances: Distances = transport_distances,
) -> Terms:
    """FOL: L_distance and the four dispersion terms F_EI, F_ET, F_FI, F_FT (Fair-MoE).

    Args:
        distances: from the batch's cosines to those of each group; see `sinkhorn_distances` for the paper's.
            Padding enters no variance: an encoded side knows which of its tokens count.
    """
    cosines = (image.features * text.features).sum(1)
    batch = slice(0, layout.batch)
    parts = layout.groups
    terms: Terms = {"distance": distances(cosines[batch], [cosines[part] for part in parts]).sum()}
    for side, encoded in (("image", image), ("text", text)):
        for kind, routing in encoded.routing.items():

            def chosen(
                part: slice | Tensor, gates: Tensor = routing.gates, mask: Tensor | None = encoded.mask
            ) -> Tensor:
                return gates[part][mask[part]] if mask is not None and gates.ndim == 3 else gates[part]

            terms[f"dispersion_{kind}_{side}"] = gate_dispersion(chosen(batch), [chosen(part) for part in parts])
    return terms


def draw_groups(samples: Samples, size: int, generator: torch.Generator) -> list[np.ndarray]:
    """For each attribute and group, `size` samples of that group at random (Fair-MoE, group batches).

    A group without a sample in the training split has no batch.
    """
    drawn = []
    for k in range(samples.groups.shape[1]):
        for group in range(samples.groups[:, k].max() + 1):
            members = np.flatnonzero(samples.groups[:, k] == group)
            if len(members):
                drawn.append(members[torch.randint(len(members), (size,), generator=generator).numpy()])
    return drawn


def shared_groups(groups: np.ndarray) -> tuple[Tensor, ...]:
    """For each attribute and group, its places in the batch, from two on: one pair has no spread.

    A batch that is stratified by group holds the groups' distributions already, so nothing has to be drawn for them.

    Args:
        groups: int [n, K] of the batch, -1 unknown.
    """
    found = [np.flatnonzero(column == group) for column in groups.T for group in range(column.max(initial=-1) + 1)]
    return tuple(torch.from_numpy(places) for places in found if len(places) > 1)


def encode_unique(dual: DualEncoder, texts: Sequence[str]) -> Encoded:
    """Encode each different text once and spread the result over the n texts."""
    unique = list(dict.fromkeys(texts))
    place = {text: number for number, text in enumerate(unique)}
    encoded = dual.encode_text(unique)
    return encoded.select(torch.tensor([place[text] for text in texts], device=encoded.features.device))
