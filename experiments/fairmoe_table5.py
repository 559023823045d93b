"""Fair-MoE, Table 5: mixtures on the image's side against mixtures on the text's.

fairvlm experiment fairmoe_table5 --params params.yaml --out results/experiments

With a mixture goes its term F; L_distance stays.
"""

from __future__ import annotations

from experiments.fairmoe import FULL, TOY, only
from fairvlm_core.experiments.grid import Experiment

EXPERIMENT = Experiment(
    name="fairmoe_table5",
    title="Ablations of Fair-MoE: the side of the mixtures",
    recipes=(
        FULL,
        FULL.derive("image_only", "Image side only", only("image")),
        FULL.derive("text_only", "Text side only", only("text")),
    ),
    reference=FULL.name,
    trained="fair_moe",
    apart=True,
    toy=TOY,
)
