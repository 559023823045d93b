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
    """Token ids of prompt and answer, and where the answer begins.

    Attributes:
        ids: all tokens.
        answer: where the first answer begins; all that follows it is learnt, except `asked`.
        asked: (start, end) of each later question of a conversation.
    """

    ids: tuple[int, ...]
    answer: int
    asked: tuple[tuple[int, int], ...] = ()

    @property
    def learnt(self) -> list[int]:
        """Places of the answer tokens, in order."""
        silent = {place for start, end in self.asked for place in range(start, end)}
        return [place for place in range(self.answer, len(self.ids)) if place not in silent]


@dataclass(frozen=True)
class Packed:
    """A batch of B images, their sequences packed in rows of length T; S sequences and A answer tokens in all.

    Attributes:
        ids: int64 [B, T], padded with 0.
        positions: int64 [B, T].
        branch: int64 [B, T], 0 in the shared prefix, from 1 in the branches, -1 in padding.
        row, source, target: int64 [A]: the answer token `target` of batch row `row` is predicted at position `source`.
        sequence: int64 [A]: which sequence the answer token belongs to, counted over the whole batch.
        lengths: int64 [S]: answer tokens of each sequence.
    """

    ids: Tensor
    positions: Tensor
    branch: Tensor
    row: Tensor
    source: Tensor
    target: Tensor
    sequence: Tensor
    lengths: Tensor

    def to(self, device: torch.device) -> Packed:
        return Packed(**{name: value.to(device) for name, value in vars(self).items()})

    def attention_mask(self, dtype: torch.dtype) -> Tensor:
        """What is added to the attention's scores, [B, 1, T, T]: 0 where a token sees another, else the lowest number.

        It is made where the branches are: of a batch of long rows it is a hundred megabytes, which need not travel.
        """
        length = self.branch.shape[1]
        place = torch.arange(length, device=self.branch.device)
        of, to = self.branch[:, :, None], self.branch[:, None, :]
        visible = (place <= place[:, None]) & (to >= 0) & ((to == 0) | (to == of))
        # A padding token sees itself, so that its softmax is defined; nothing reads it.
        visible |= place == place[:, None]
        mask = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
        return mask.masked_fill_(~visible, torch.finfo(dtype).min)[:, None]


def shared_prefix(sequences: Sequence[Turn]) -> int:
    """Length of the longest beginning that all sequences share, leaving each at least its last token."""
    longest = min(len(s.ids) for s in sequences) - 1
    # What the first and the last in lexicographic order share, all share.
    least, most = min(s.ids for s in sequences), max(s.ids for s in sequences)
    return next((place for place in range(longest) if least[place] != most[place]), longest)


def packed_length(sequences: Sequence[Turn]) -> int:
    """Tokens of the row that `pack` makes of one image's sequences."""
    prefix = shared_prefix(sequences)
    return prefix + sum(len(sequence.ids) - prefix for sequence in sequences)


def micro_batches(lengths: Sequence[int], size: int, *, waste: float = 0.05) -> list[list[int]]:
    """Split a batch into micro-batches of rows of similar length, so that little of what is computed is padding.

    Args:
        lengths: the packed length of each image, see `packed_length`.
        size: images per micro-batch at most.
        waste: share of padding that a micro-batch may have. Where lengths differ so much that a full micro-batch would
            have more, it gets fewer images; one image alone has none.

    Returns:
        Indices into `lengths`, each exactly once, the longest first: what does not fit into memory fails at once.
    """
    if size < 1:
        raise ValueError(f"size must be at least 1, not {size}.")
    groups: list[list[int]] = []
    tokens = 0
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        group = groups[-1] if groups else []
        area = (len(group) + 1) * lengths[group[0]] if group else 0
        if group and len(group) < size and area - (tokens + lengths[index]) <= waste * area:
            group.append(index)
            tokens += lengths[index]
        else:
            groups.append([index])
            tokens = lengths[index]
    return groups


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
            learnt = sequence.learnt
            for place in learnt:
                before = place - 1
                source = before if before < prefix else start + before - prefix
                answers.append((b, source, sequence.ids[place], len(lengths)))
            lengths.append(len(learnt))
        rows.append((ids, positions, branches))

    length = max(len(ids) for ids, _, _ in rows)

    def padded(which: int, fill: int) -> Tensor:
        return torch.tensor([row[which] + [fill] * (length - len(row[which])) for row in rows])

    columns = torch.tensor(answers).reshape(-1, 4).unbind(1)
    return Packed(
        ids=padded(0, 0),
        positions=padded(1, 0),
        branch=padded(2, -1),
        row=columns[0],
        source=columns[1],
        target=columns[2],
        sequence=columns[3],
        lengths=torch.tensor(lengths),
    )
