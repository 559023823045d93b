"""Fair-MoE, Table 1: the method beside CLIP and FairCLIP, fine-tuned alike.

fairvlm experiment fairmoe_table1 --params params.yaml --out results/experiments

`fair_moe.attributes` of the parameters says for which attributes the models are made fair; the paper trains one model
for each, so name one there for its form.
"""

from __future__ import annotations

from experiments.fairmoe import FULL, TOY
from fairvlm_core.experiments.grid import Experiment

# F, the dispersion of the gates, is what Fair-MoE's loss adds to FairCLIP's.
UNDISPERSED = {f"fair_moe.{kind}_{side}_weight": 0.0 for kind in ("embedding", "feature") for side in ("image", "text")}
FAIRCLIP = FULL.derive("fairclip", "FairCLIP", {**UNDISPERSED, "fair_moe.experts": 0})

EXPERIMENT = Experiment(
    name="fairmoe_table1",
    title="Fair-MoE, CLIP and FairCLIP",
    recipes=(
        FAIRCLIP.derive("clip", "CLIP, fine-tuned", {"fair_moe.distance_weight": 0.0}),
        FAIRCLIP,
        FULL.derive("fairclip_experts", "FairCLIP + FO-MoE", UNDISPERSED),
        FULL,
    ),
    reference=FULL.name,
    trained="fair_moe",
    toy=TOY,
)
