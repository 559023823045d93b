"""Fair-MoE and its ablations beside CLIP and FairCLIP, with one model for all attributes, in one table.

fairvlm experiment fairmoe_methods --params experiments/ham10000.yaml --root datasets/ham10000 --out results/ham10000
"""

from __future__ import annotations

from experiments.fairmoe import CLIP, FAIRCLIP, FULL, NO_DISTANCE, TOY, UNDISPERSED, without
from fairvlm_core.experiments.grid import Experiment

EXPERIMENT = Experiment(
    name="fairmoe_methods",
    title="Fair-MoE, its ablations, CLIP and FairCLIP",
    recipes=(
        CLIP,
        FAIRCLIP,
        FULL.derive("no_dispersion", "Fair-MoE without dispersion (FairCLIP + FO-MoE)", UNDISPERSED),
        FULL.derive("no_distance", "Fair-MoE without L_distance", NO_DISTANCE),
        *(
            FULL.derive(f"no_{part}_mixtures", f"Fair-MoE without {part} mixtures", without(part))
            for part in ("embedding", "feature", "text", "image")
        ),
        FULL,
    ),
    reference=FULL.name,
    trained="fair_moe",
    toy=TOY,
)
