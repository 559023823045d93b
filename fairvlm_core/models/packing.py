"""Several questions about one image in a single forward pass.

All sequences of one image (one per question, or one per answer option) share their beginning: the image tokens and the
first words of the prompt. They are laid out as that shared prefix followed by one branch each; a branch sees the prefix
and itself, never another branch, and its positions continue the prefix. The result equals separate passes, while the
prefix, which holds nearly all tokens, is computed once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Turn:
    """Token ids of prompt and answer, and where the answer begins."""

    ids: tuple[int, ...]
    answer: int


@dataclass(frozen=True)
class Packed:
    """A batch of B images, their sequences packed in rows of length T; S sequences and A answer tokens in all.

    Attributes:
        ids: int64 [B, T], padded with 0.
        positions: int64 [B, T].
        mask: float32 [B, 1, T, T], 0 where a token sees another, the lowest float elsewhere.
        row, source, target: int64 [A]: the answer token `target` of batch row `row` is predicted at position `source`.
        sequence: int64 [A]: which sequence the answer token belongs to, counted over the whole batch.
        lengths: int64 [S]: answer tokens of each sequence.
    """

    ids: Tensor
    positions: Tensor
    mask: Tensor
    row: Tensor
    source: Tensor
    target: Tensor
    sequence: Tensor
    lengths: Tensor

    def to(self, device: torch.device) -> Packed:
        return Packed(**{name: value.to(device) for name, value in vars(self).items()})


def shared_prefix(sequences: Sequence[Turn]) -> int:
    """Length of the longest beginning that all sequences share, leaving each at least its last token."""
    longest = min(len(s.ids) for s in sequences) - 1
    first = sequences[0].ids
    for place in range(longest):
        if any(s.ids[place] != first[place] for s in sequences[1:]):
            return place
    return longest


def pack(images: Sequence[Sequence[Turn]]) -> Packed:
    """Pack the sequences of each image into one row."""
    rows: list[tuple[list[int], list[int], list[int]]] = []
    answers: list[tuple[int, int, int, int]] = []
    lengths: list[int] = []
    for b, sequences in enumerate(images):
        prefix = shared_prefix(sequences)
        ids, positions = list(sequences[0].ids[:prefix]), list(range(prefix))
        branches = [0] * prefix
        for j, sequence in enumerate(sequences, start=1):
            start = len(ids)
            ids += sequence.ids[prefix:]
            positions += range(prefix, len(sequence.ids))
            branches += [j] * (len(sequence.ids) - prefix)
            for place in range(sequence.answer, len(sequence.ids)):
                before = place - 1
                source = before if before < prefix else start + before - prefix
                answers.append((b, source, sequence.ids[place], len(lengths)))
            lengths.append(len(sequence.ids) - sequence.answer)
        rows.append((ids, positions, branches))

    length = max(len(ids) for ids, _, _ in rows)

    def padded(which: int, fill: int) -> Tensor:
        return torch.tensor([row[which] + [fill] * (length - len(row[which])) for row in rows])

    branch = padded(2, -1)
    earlier = torch.ones(length, length, dtype=torch.bool).tril()
    visible = earlier & ((branch[:, None, :] == 0) | (branch[:, None, :] == branch[:, :, None]))
    # A padding token sees itself, so that its softmax is defined; nothing reads it.
    visible = visible & (branch[:, None, :] >= 0) | torch.eye(length, dtype=torch.bool)
    mask = torch.zeros(visible.shape).masked_fill(~visible, torch.finfo(torch.float32).min)
    columns = torch.tensor(answers).reshape(-1, 4).unbind(1)
    return Packed(
        ids=padded(0, 0),
        positions=padded(1, 0),
        mask=mask[:, None],
        row=columns[0],
        source=columns[1],
        target=columns[2],
        sequence=columns[3],
        lengths=torch.tensor(lengths),
    )
