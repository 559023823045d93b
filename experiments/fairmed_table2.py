"""FairMed-VLM, Table 2: the method beside the usual ways to make a model fairer.

fairvlm experiment fairmed_table2 --params params.yaml --out results/experiments
"""

from __future__ import annotations

from experiments.fairmed import FULL, TOY, UNBALANCED, UNPROMPTED
from fairvlm_core.experiments.grid import Experiment, both
from fairvlm_core.experiments.heads import ADVERSARIAL_HEAD, POSTPROCESS


def debiased(by: str) -> dict[str, object]:
    """A baseline that changes how both stages are trained."""
    return both("stage1", "stage2", debiasing=by)


# The same two stages and epochs as the full method, so that the baselines are trained as long.
STANDARD = FULL.derive("standard", "Standard", {**UNBALANCED, **UNPROMPTED, "stage2.fairness_weight": 0.0})
REWEIGHTED = (
    STANDARD.derive("reweighted_group", "Reweighted, 1 / P(a)", debiased("reweighted_group")),
    STANDARD.derive("reweighted_joint", "Reweighted, P(a) P(y) / P(a, y)", debiased("reweighted_joint")),
)
ADVERSARIAL = STANDARD.derive("adversarial", "Adversarial", debiased("adversarial"))
RESAMPLED = STANDARD.derive("resampled", "Resampled", debiased("resampled"))
POSTPROCESSED = STANDARD.derive("postprocessed", "Post-processed", head=POSTPROCESS)

EXPERIMENT = Experiment(
    name="fairmed_table2",
    title="FairMed-VLM and the baselines",
    recipes=(
        STANDARD,
        *REWEIGHTED,
        ADVERSARIAL,
        STANDARD.derive("adversarial_head", "Adversarial, frozen embeddings", head=ADVERSARIAL_HEAD),
        STANDARD.derive("group_dro", "GroupDRO", debiased("group_dro")),
        RESAMPLED,
        POSTPROCESSED,
        FULL,
    ),
    reference=FULL.name,
    toy=TOY,
)
