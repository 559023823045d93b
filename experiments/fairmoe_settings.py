"""Fair-MoE, settings that the paper does not give: the number of experts M, how many a token has, k, and C.

fairvlm experiment fairmoe_settings --params params.yaml --out results/experiments

No table of the paper. With two experts every token still has k = 2, so all of them. The last recipe is what can be read
in the code that the authors have published since
(github.com/LinjieT/Fair-MoE-Medical-Fairness-Oriented-Mixture-of-Experts-in-Vision-Language-Models): M = 10, k = 3,
C = 0.8, a weight of 1e-4 for L_distance and for each F, and mixtures behind the encoders whose output replaces the
feature. There, those mixtures are also dense and have as many experts as the attribute has groups. That is not
mirrored: here they have the same M and k as those in the encoders.
"""

from __future__ import annotations

from experiments.fairmoe import FULL, TOY
from fairvlm_core.experiments.grid import Experiment
from fairvlm_core.steps.fair_moe import PLACES

AUTHORS = {
    "fair_moe.experts": 10,
    "fair_moe.top_k": 3,
    "fair_moe.capacity": 0.8,
    "fair_moe.residual": False,
    "fair_moe.distance_weight": 1e-4,
    **{f"fair_moe.{place}_weight": 1e-4 for place in PLACES},
}

EXPERIMENT = Experiment(
    name="fairmoe_settings",
    title="Fair-MoE: experts, experts per token and capacity",
    recipes=(
        FULL,
        FULL.derive("m2", "Two experts", {"fair_moe.experts": 2}),
        FULL.derive("m8", "Eight experts", {"fair_moe.experts": 8}),
        FULL.derive("half_capacity", "Capacity 0.5", {"fair_moe.capacity": 0.5}),
        FULL.derive("k1", "One expert per token", {"fair_moe.top_k": 1}),
        FULL.derive("authors", "As in the authors' code", AUTHORS),
    ),
    reference=FULL.name,
    trained="fair_moe",
    apart=True,
    toy=TOY,
)
