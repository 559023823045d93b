"""Fair-MoE, Table 2: what the mixtures of experts (FO-MoE) add to FairCLIP, the loss being the same.

fairvlm experiment fairmoe_table2 --params params.yaml --out results/experiments
"""

from __future__ import annotations

from experiments.fairmoe import BLOCKS, FAIRCLIP, FAIRCLIP_EXPERTS, TOY
from fairvlm_core.experiments.grid import Experiment

EXPERIMENT = Experiment(
    name="fairmoe_table2",
    title="Ablations of Fair-MoE: the mixtures",
    recipes=(FAIRCLIP, FAIRCLIP_EXPERTS),
    reference=FAIRCLIP.name,
    trained="fair_moe",
    apart=True,
    toy=TOY,
    layout=BLOCKS,
)
