"""Fair-MoE, Table 4: mixtures in the encoders (embedding) against mixtures behind them (feature).

fairvlm experiment fairmoe_table4 --params params.yaml --out results/experiments

With a mixture goes its term F; L_distance stays.
"""

from __future__ import annotations

from experiments.fairmoe import FULL, TOY, only
from fairvlm_core.experiments.grid import Experiment

EXPERIMENT = Experiment(
    name="fairmoe_table4",
    title="Ablations of Fair-MoE: the kind of mixture",
    recipes=(
        FULL,
        FULL.derive("embedding_only", "Embedding mixtures only", only("embedding")),
        FULL.derive("feature_only", "Feature mixtures only", only("feature")),
    ),
    reference=FULL.name,
    trained="fair_moe",
    apart=True,
    toy=TOY,
)
