"""FairMed-VLM, its ablations and the usual ways to make a model fairer, in one table, tuned within the same budget.

fairvlm experiment fairmed_methods --params experiments/ham10000.yaml --root datasets/ham10000 --out results/ham10000

Every method is tuned on validation between two candidates: of what it has of its own, or else of the learning rate. An
ablation is not: it is the full method with what was chosen for that, less one part.
"""

from __future__ import annotations

from experiments.fairmed import FULL, TOY
from experiments.fairmed_table2 import ADVERSARIAL, POSTPROCESSED, RESAMPLED, REWEIGHTED, STANDARD
from experiments.fairmed_table4 import ABLATIONS
from fairvlm_core.experiments.grid import Experiment, Times, both, tuned

RATES = tuple({"stage2.learning_rate": Times(factor)} for factor in (0.5, 1.0))
CANDIDATES = {
    **{recipe.name: RATES for recipe in (STANDARD, *REWEIGHTED, RESAMPLED)},
    ADVERSARIAL.name: tuple(both("stage1", "stage2", adversary_weight=alpha) for alpha in (0.3, 1.0)),
    # The paper's weight, and one at which the loss can be felt: beside a task loss of 1 to 2 the contrast is some 3.
    FULL.name: tuple({"stage2.fairness_weight": weight} for weight in (0.1, 10.0)),
}

EXPERIMENT = Experiment(
    name="fairmed_methods",
    title="FairMed-VLM, its ablations and the baselines",
    recipes=tuned(
        (STANDARD, *REWEIGHTED, RESAMPLED, ADVERSARIAL, POSTPROCESSED, *ABLATIONS, FULL),
        CANDIDATES,
        follows={POSTPROCESSED.name: STANDARD.name},
        otherwise=FULL.name,
    ),
    reference=FULL.name,
    toy=TOY,
)
