"""Fair-MoE, Table 1: the method beside CLIP and FairCLIP, fine-tuned alike.

fairvlm experiment fairmoe_table1 --params params.yaml --out results/experiments

Each of `fair_moe.attributes` has its own models. Its groups also stratify the batches, so that all the models for an
attribute see the same ones; to CLIP, whose loss knows no groups, that is the only difference it makes. The paper has
FairCLIP + FO-MoE in Table 2; it stands here, too, so that one table has all the methods.
"""

from __future__ import annotations

from experiments.fairmoe import BLOCKS, CLIP, FAIRCLIP, FAIRCLIP_EXPERTS, FULL, TOY
from fairvlm_core.experiments.grid import Experiment

EXPERIMENT = Experiment(
    name="fairmoe_table1",
    title="Fair-MoE, CLIP and FairCLIP",
    recipes=(
        CLIP,
        FAIRCLIP,
        FAIRCLIP_EXPERTS,
        FULL,
    ),
    reference=FULL.name,
    trained="fair_moe",
    apart=True,
    toy=TOY,
    layout=BLOCKS,
)
