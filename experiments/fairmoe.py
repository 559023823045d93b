"""What the tables of Fair-MoE share: the full method, and a size at which they take a minute."""

from __future__ import annotations

from experiments.fairmed import TOY_COHORT
from fairvlm_core.experiments.grid import Recipe

FULL = Recipe("fair_moe", "Fair-MoE")
TOY = {
    **TOY_COHORT,
    "fair_moe.epochs": 1,
    "fair_moe.batch_size": 32,
    "fair_moe.learning_rate": 0.0005,
    "fair_moe.group_batch": 4,
}
