"""FairMed-VLM, its ablations and the usual ways to make a model fairer, in one table.

fairvlm experiment fairmed_methods --params experiments/ham10000.yaml --root datasets/ham10000 --out results/ham10000
"""

from __future__ import annotations

from experiments.fairmed import FULL, TOY
from experiments.fairmed_table2 import STANDARD, debiased
from experiments.fairmed_table4 import ABLATIONS
from fairvlm_core.experiments.grid import Experiment, both
from fairvlm_core.experiments.heads import POSTPROCESS

EXPERIMENT = Experiment(
    name="fairmed_methods",
    title="FairMed-VLM, its ablations and the baselines",
    recipes=(
        STANDARD,
        STANDARD.derive("reweighted_group", "Reweighted, 1 / P(a)", debiased("reweighted_group")),
        STANDARD.derive("reweighted_joint", "Reweighted, P(a) P(y) / P(a, y)", debiased("reweighted_joint")),
        STANDARD.derive("resampled", "Resampled", both("stage1", "stage2", oversample=1000.0)),
        STANDARD.derive("adversarial", "Adversarial", debiased("adversarial")),
        STANDARD.derive("postprocessed", "Post-processed", head=POSTPROCESS),
        *ABLATIONS,
        FULL,
    ),
    reference=FULL.name,
    toy=TOY,
)
