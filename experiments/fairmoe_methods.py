"""Fair-MoE, its ablations, CLIP and FairCLIP, one model for all attributes, in one table, tuned within the same budget.

fairvlm experiment fairmoe_methods --params experiments/ham10000.yaml --root datasets/ham10000 --out results/ham10000

CLIP is tuned between two learning rates, a fairness loss between two weights; an ablation of Fair-MoE has what was
chosen for the full method, less one part.
"""

from __future__ import annotations

from experiments.fairmoe import CLIP, FAIRCLIP, FULL, NO_DISTANCE, TOY, UNDISPERSED, without
from fairvlm_core.experiments.grid import Experiment, Times, tuned
from fairvlm_core.steps.fair_moe import PLACES

# The second weights are such that the loss can be felt: the distance is 2e-3 and a dispersion 7e-6 to 3e-4, beside a
# contrastive loss of 2.5 to 4.
CANDIDATES = {
    CLIP.name: tuple({"fair_moe.learning_rate": Times(factor)} for factor in (0.5, 1.0)),
    FAIRCLIP.name: tuple({"fair_moe.distance_weight": weight} for weight in (1.0, 100.0)),
    FULL.name: tuple(
        {"fair_moe.distance_weight": distance, **{f"fair_moe.{place}_weight": dispersion for place in PLACES}}
        for distance, dispersion in ((1.0, 1.0), (100.0, 1000.0))
    ),
}
ABLATIONS = (
    FULL.derive("no_dispersion", "Fair-MoE without dispersion (FairCLIP + FO-MoE)", UNDISPERSED),
    FULL.derive("no_distance", "Fair-MoE without L_distance", NO_DISTANCE),
    *(
        FULL.derive(f"no_{part}_mixtures", f"Fair-MoE without {part} mixtures", without(part))
        for part in ("embedding", "feature", "text", "image")
    ),
)

EXPERIMENT = Experiment(
    name="fairmoe_methods",
    title="Fair-MoE, its ablations, CLIP and FairCLIP",
    recipes=tuned((CLIP, FAIRCLIP, *ABLATIONS, FULL), CANDIDATES, follows={}, otherwise=FULL.name),
    reference=FULL.name,
    trained="fair_moe",
    toy=TOY,
)
