"""Fair-MoE, Table 3: what the two parts of the fairness-oriented loss (FOL) are worth; the mixtures stay.

fairvlm experiment fairmoe_table3 --params params.yaml --out results/experiments

"Without dispersion" is what the paper calls without FOL: there, too, L_distance stays, for its numbers are those of
FairCLIP + FO-MoE in Table 2. The recipe without L_distance is ours.
"""

from __future__ import annotations

from experiments.fairmoe import BLOCKS, FULL, NO_DISTANCE, TOY, UNDISPERSED
from fairvlm_core.experiments.grid import Experiment

EXPERIMENT = Experiment(
    name="fairmoe_table3",
    title="Ablations of Fair-MoE: the loss",
    recipes=(
        FULL.derive("no_dispersion", "Without dispersion (all F)", UNDISPERSED),
        FULL.derive("no_distance", "Without L_distance", NO_DISTANCE),
        FULL,
    ),
    reference=FULL.name,
    trained="fair_moe",
    apart=True,
    toy=TOY,
    layout=BLOCKS,
)
