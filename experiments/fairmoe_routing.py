"""Fair-MoE, where dropped patches can be noticed: no table of the paper, but a limit of its design in numbers.

fairvlm experiment fairmoe_routing --params params.yaml --out results/experiments

After the last attention tokens no longer mix and only CLS is read, so a patch that loses its experts in the last block
cannot change the feature; only CLS losing its own can.
"""

from __future__ import annotations

from experiments.fairmoe import FULL, TOY
from fairvlm_core.experiments.grid import Experiment

EXPERIMENT = Experiment(
    name="fairmoe_routing",
    title="Fair-MoE: which dropped tokens reach the feature",
    recipes=(
        FULL,
        FULL.derive("protected", "CLS and EOT keep their experts", {"fair_moe.protect_pooled": True}),
        FULL.derive("earlier", "Experts in the block before", {"fair_moe.layer": -2}),
        FULL.derive("mean", "The mean is read, not CLS and EOT", {"fair_moe.pooling": "mean"}),
    ),
    reference=FULL.name,
    trained="fair_moe",
    toy=TOY,
)
