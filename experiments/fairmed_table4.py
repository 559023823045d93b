"""FairMed-VLM, Table 4: what each part of the method is worth.

fairvlm experiment fairmed_table4 --params params.yaml --out results/experiments
"""

from __future__ import annotations

from experiments.fairmed import FULL, TOY, UNBALANCED, UNPROMPTED
from fairvlm_core.experiments.grid import Experiment, both

# Concept alignment is a contrast, too: with gamma = 0 its own phase has nothing to minimise.
NO_CONTRAST = {
    "stage2.contrast_weight": 0.0,
    "stage1.concept_epochs": 0,
    **both("stage1", "stage2", concept_weight=0.0),
}

ABLATIONS = (
    FULL.derive("no_demographic_prompts", "FairMed-VLM without demographic prompts", UNPROMPTED),
    FULL.derive("no_fairness_loss", "FairMed-VLM without the fairness loss", {"stage2.fairness_weight": 0.0}),
    FULL.derive("no_balanced_sampling", "FairMed-VLM without balanced sampling", UNBALANCED),
    FULL.derive("no_contrast", "FairMed-VLM without contrastive losses", NO_CONTRAST),
)

EXPERIMENT = Experiment(
    name="fairmed_table4",
    title="Ablations of FairMed-VLM",
    recipes=(FULL, *ABLATIONS),
    reference=FULL.name,
    toy=TOY,
)
