"""FairMed-VLM, its ablations and the usual ways to make a model fairer, in one table.

fairvlm experiment fairmed_methods --params experiments/ham10000.yaml --root datasets/ham10000 --out results/ham10000
"""

from __future__ import annotations

from experiments.fairmed import FULL, TOY
from experiments.fairmed_table2 import ADVERSARIAL, POSTPROCESSED, RESAMPLED, REWEIGHTED, STANDARD
from experiments.fairmed_table4 import ABLATIONS
from fairvlm_core.experiments.grid import Experiment

EXPERIMENT = Experiment(
    name="fairmed_methods",
    title="FairMed-VLM, its ablations and the baselines",
    recipes=(STANDARD, *REWEIGHTED, RESAMPLED, ADVERSARIAL, POSTPROCESSED, *ABLATIONS, FULL),
    reference=FULL.name,
    toy=TOY,
)
