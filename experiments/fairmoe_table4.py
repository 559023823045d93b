"""Fair-MoE, Table 4: what each term F of the fairness-oriented loss is worth; the mixtures stay.

fairvlm experiment fairmoe_table4 --params params.yaml --out results/experiments
"""

from __future__ import annotations

from experiments.fairmoe import COLUMNS, FULL, TOY, undispersed
from fairvlm_core.experiments.grid import Experiment

EXPERIMENT = Experiment(
    name="fairmoe_table4",
    title="Ablations of Fair-MoE: the dispersion terms",
    recipes=(
        FULL,
        FULL.derive("no_f_ei", "Without F_EI", undispersed("embedding_image")),
        FULL.derive("no_f_et", "Without F_ET", undispersed("embedding_text")),
        FULL.derive("no_f_fi", "Without F_FI", undispersed("feature_image")),
        FULL.derive("no_f_ft", "Without F_FT", undispersed("feature_text")),
    ),
    reference=FULL.name,
    trained="fair_moe",
    apart=True,
    toy=TOY,
    layout=COLUMNS,
)
