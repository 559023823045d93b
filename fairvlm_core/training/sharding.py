"""A model whose weights are spread over the ranks (FSDP2), for one that does not fit on a single GPU.

Each block is gathered when it runs and let go afterwards; the optimiser holds this rank's part of what is trained. This
is torch's own `fully_shard`, which works on CPUs too; accelerate, which wraps it, offers it on accelerators alone.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from fairvlm_core.errors import ConfigError
from fairvlm_core.models.vlm import VLM
from fairvlm_core.training import ranks

# What is called from outside. Each gathers what belongs to no block: embeddings, head, projector and norms.
ENTRANCES = ("features", "lower", "upper", "project", "concept_embeddings", "answer_logits", "read")


class _Root(nn.Module):
    """The model as one module that has every entrance as a method, which is what FSDP2 hooks into."""

    def __init__(self, vlm: VLM) -> None:
        super().__init__()
        self.llava = vlm.llava
        for name in ENTRANCES:
            setattr(self, name, getattr(vlm, name))


def shard(vlm: VLM) -> None:
    """Spread the weights over the ranks, in place; call it when the adapters are there.

    Raises:
        ConfigError: when there is a single process.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    if ranks.size() == 1:
        raise ConfigError(
            "A model is sharded over several processes, and there is one.",
            where="shard",
            mend="Start the step with torchrun, or set shard to false.",
        )
    # Of what an entrance returns, nothing is changed in place.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    mesh = init_device_mesh("cuda" if torch.cuda.is_available() else "cpu", (ranks.size(),))
    for block in blocks(vlm.parts):
        fully_shard(block, mesh=mesh)
    root = _Root(vlm)
    # In place. Let go after every entrance: what is gathered hides the parts that the optimiser and a file must see.
    fully_shard(root, mesh=mesh, reshard_after_forward=True)
    for name in ENTRANCES:
        register_fsdp_forward_method(root, name)
        setattr(vlm, name, getattr(root, name))


def blocks(llava: nn.Module) -> list[nn.Module]:
    """The transformer blocks of tower and language model: the members of every list of equal modules."""
    lists = [module for module in llava.modules() if isinstance(module, nn.ModuleList) and len(module) > 0]
    return [block for found in lists if any(True for _ in found[0].parameters()) for block in found]


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor, on every rank; every rank must ask for it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def part_like(value: Tensor, parameter: Tensor) -> Tensor:
    """This rank's part of a value, cut as the parameter is."""
    if not isinstance(parameter, DTensor) or isinstance(value, DTensor):
        return value
    return distribute_tensor(value.to(parameter.device), parameter.device_mesh, parameter.placements)


def summed_gradients(parameters: list[nn.Parameter]) -> list[Tensor]:
    """The sums of the gradients over all ranks: FSDP2 leaves their mean, otherwise each rank holds its own."""
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    if any(isinstance(p, DTensor) for p in parameters):
        return [gradient * ranks.size() for gradient in gradients]
    return ranks.added(gradients)
