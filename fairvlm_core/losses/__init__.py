"""The losses of FairMed-VLM and Fair-MoE: pure functions of tensors that return a scalar with gradient.

All of them compute in float32 at least (half precision is raised, float64 stays), and where nothing in a batch is valid
they return a zero that is still connected to the graph, so that a training step never needs a special case.
"""

from fairvlm_core.losses.answers import (
    answer_bce,
    instruction_loss,
    option_cross_entropy,
    option_scores,
    yes_no_log_odds,
    yes_no_scores,
)
from fairvlm_core.losses.balance import importance_loss, load_loss, router_z_loss
from fairvlm_core.losses.bank import MemoryBank, bank_from_tensors, bank_tensors, empty_bank, remember
from fairvlm_core.losses.concept import concept_alignment
from fairvlm_core.losses.contrast import contrast_statistics, cross_group_contrast
from fairvlm_core.losses.dispersion import gate_dispersion
from fairvlm_core.losses.fairness import fairness_terms
from fairvlm_core.losses.moments import moment_alignment
from fairvlm_core.losses.transport import sinkhorn_distance, transport_distance, transport_distances

__all__ = [
    "MemoryBank",
    "answer_bce",
    "bank_from_tensors",
    "bank_tensors",
    "concept_alignment",
    "contrast_statistics",
    "cross_group_contrast",
    "empty_bank",
    "fairness_terms",
    "gate_dispersion",
    "importance_loss",
    "instruction_loss",
    "load_loss",
    "moment_alignment",
    "option_cross_entropy",
    "option_scores",
    "remember",
    "router_z_loss",
    "sinkhorn_distance",
    "transport_distance",
    "transport_distances",
    "yes_no_log_odds",
    "yes_no_scores",
]
