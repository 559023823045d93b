"""Fair-MoE, Table 2: what the mixtures and the two parts of the fairness-oriented loss are worth.

fairvlm experiment fairmoe_table2 --params params.yaml --out results/experiments

Without mixtures there is no F either, which is FairCLIP. "Without dispersion" is what the paper calls without FOL:
there, too, L_distance stays. Without mixtures and L_distance it would be CLIP, which is in Table 1.
"""

from __future__ import annotations

from experiments.fairmoe import FAIRCLIP, FULL, NO_DISTANCE, TOY, UNDISPERSED
from fairvlm_core.experiments.grid import Experiment

EXPERIMENT = Experiment(
    name="fairmoe_table2",
    title="Ablations of Fair-MoE: mixtures and loss",
    recipes=(
        FULL,
        FAIRCLIP.derive("no_experts", "Without FO-MoE (FairCLIP)"),
        FULL.derive("no_dispersion", "Without dispersion (all F)", UNDISPERSED),
        FULL.derive("no_distance", "Without L_distance", NO_DISTANCE),
    ),
    reference=FULL.name,
    trained="fair_moe",
    apart=True,
    toy=TOY,
)
