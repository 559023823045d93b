"""Fair-MoE, Table 6: mixtures on the image's side against mixtures on the text's.

fairvlm experiment fairmoe_table6 --params params.yaml --out results/experiments

With a mixture goes its term F; L_distance, which is about image and text together, stays.
"""

from __future__ import annotations

from experiments.fairmoe import COLUMNS, FULL, TOY, without
from fairvlm_core.experiments.grid import Experiment

EXPERIMENT = Experiment(
    name="fairmoe_table6",
    title="Ablations of Fair-MoE: the side of the mixtures",
    recipes=(
        FULL,
        FULL.derive("no_text", "Without text mixtures", without("text")),
        FULL.derive("no_image", "Without image mixtures", without("image")),
    ),
    reference=FULL.name,
    trained="fair_moe",
    apart=True,
    toy=TOY,
    layout=COLUMNS,
)
