"""Fair-MoE, Table 5: mixtures in the encoders (embedding) against mixtures behind them (feature).

fairvlm experiment fairmoe_table5 --params params.yaml --out results/experiments

With a mixture goes its term F; L_distance stays.
"""

from __future__ import annotations

from experiments.fairmoe import COLUMNS, FULL, TOY, without
from fairvlm_core.experiments.grid import Experiment

EXPERIMENT = Experiment(
    name="fairmoe_table5",
    title="Ablations of Fair-MoE: the kind of mixture",
    recipes=(
        FULL,
        FULL.derive("no_embedding", "Without embedding mixtures", without("embedding")),
        FULL.derive("no_feature", "Without feature mixtures", without("feature")),
    ),
    reference=FULL.name,
    trained="fair_moe",
    apart=True,
    toy=TOY,
    layout=COLUMNS,
)
