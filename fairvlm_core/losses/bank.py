"""Memory bank: embeddings of earlier batches that stand in where a batch has no positives (FairMed-VLM, stage 2).

    bank = empty_bank(512, dim=4096, attributes=2)
    loss = cross_group_contrast(z, labels, groups, bank=bank)
    remember(bank, z, labels, groups)  # after the step

With several ranks, remember the gathered batch: then the banks stay equal.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fairvlm_core.losses.pairs import check_samples


@dataclass
class MemoryBank:
    """A ring of at most `capacity` samples. Slots that were never filled have unknown labels and groups.

    Attributes:
        embeddings: float32 [capacity, d], as they came, not normalised.
        labels: float32 [capacity] classes (-1 unknown), or [capacity, L] with 1 carried, 0 not carried, NaN unknown.
        groups: int64 [capacity, K]; -1 unknown.
        seen: how many samples were ever stored; the next goes to slot seen % capacity.
    """

    embeddings: Tensor
    labels: Tensor
    groups: Tensor
    seen: int = 0


def empty_bank(
    capacity: int, *, dim: int, attributes: int, labels: int | None = None, device: torch.device | str = "cpu"
) -> MemoryBank:
    """A bank with nothing in it.

    Args:
        capacity: samples it holds, at least 1.
        dim: d.
        attributes: K.
        labels: L of a multi-label task; None for classes.
        device: where the tensors live, that of the embeddings.

    Raises:
        ValueError: a capacity or dim below 1.
    """
    if capacity < 1 or dim < 1:
        raise ValueError(f"capacity and dim must be at least 1, not {capacity} and {dim}.")
    unknown = torch.full((capacity,), -1.0) if labels is None else torch.full((capacity, labels), torch.nan)
    groups = torch.full((capacity, attributes), -1)
    return MemoryBank(torch.zeros(capacity, dim, device=device), unknown.to(device), groups.to(device))


@torch.no_grad()
def remember(bank: MemoryBank, embeddings: Tensor, labels: Tensor, groups: Tensor) -> None:
    """Store a batch in the bank, in place; the oldest samples make room.

    Samples that could never be a positive (no label that is known and carried, or no known attribute) are left out.

    Args:
        embeddings: [n, d].
        labels: [n] or [n, L], as the losses take them.
        groups: [n, K].

    Raises:
        ValueError: shapes that do not fit together or do not fit the bank.
    """
    check_samples(embeddings, labels, groups)
    check_bank(bank, embeddings, labels, groups)
    useful = (labels >= 0) if labels.ndim == 1 else (labels == 1).any(-1)
    useful = useful.to(embeddings.device) & (groups >= 0).any(-1).to(embeddings.device)
    count, capacity = int(useful.sum()), len(bank.embeddings)
    # Of more samples than the bank holds, the last remain.
    rows = useful.nonzero().squeeze(1)[-capacity:]
    slots = (torch.arange(count - len(rows), count) + bank.seen) % capacity
    for held, given in ((bank.embeddings, embeddings), (bank.labels, labels), (bank.groups, groups)):
        held[slots.to(held.device)] = given[rows.to(given.device)].to(held)
    bank.seen += count


def bank_tensors(bank: MemoryBank) -> dict[str, Tensor]:
    """The bank as named tensors, for `safetensors.torch.save_file`."""
    return {
        "embeddings": bank.embeddings,
        "labels": bank.labels,
        "groups": bank.groups,
        "seen": torch.tensor(bank.seen),
    }


def bank_from_tensors(tensors: Mapping[str, Tensor]) -> MemoryBank:
    """The bank that `bank_tensors` took apart.

    Raises:
        ValueError: a tensor is missing, or the shapes do not fit together.
    """
    missing = {"embeddings", "labels", "groups", "seen"} - set(tensors)
    if missing:
        raise ValueError(f"The bank lacks {', '.join(sorted(missing))}.")
    embeddings, labels, groups = (tensors[name] for name in ("embeddings", "labels", "groups"))
    check_samples(embeddings, labels, groups)
    return MemoryBank(embeddings, labels, groups, int(tensors["seen"]))


def check_bank(bank: MemoryBank, embeddings: Tensor, labels: Tensor, groups: Tensor) -> None:
    """Raise ValueError unless the samples have the bank's dimensions, form of labels and attributes."""
    for name, held, given in (
        ("embeddings", bank.embeddings, embeddings),
        ("labels", bank.labels, labels),
        ("groups", bank.groups, groups),
    ):
        if held.shape[1:] != given.shape[1:]:
            raise ValueError(f"The bank holds {name} {list(held.shape)}, which {list(given.shape)} does not fit.")
