"""What each bias does to each method, on the generated cohort, whose ground truth is known: alone, and all together.

fairvlm experiment controlled --params experiments/controlled.yaml --out results/controlled --jobs 2

The biases are those of docs/generated-cohort.md at their documented strength, and labels that are wrong for every fifth
woman. Each setting has a table for FairMed-VLM and one for Fair-MoE, `controlled_SETTING_fairmed` and `_fairmoe`, with
one model for all attributes. Every method is tuned on validation among four candidates. An ablation is not: it is the
full method with what was chosen for that, less one part.
"""

from __future__ import annotations

from collections.abc import Mapping

from experiments.fairmed import FULL as FAIRMED
from experiments.fairmed import TOY as FAIRMED_TOY
from experiments.fairmed import UNBALANCED, UNPROMPTED
from experiments.fairmed_table2 import STANDARD, debiased
from experiments.fairmed_table4 import NO_CONTRAST
from experiments.fairmoe import FAIRCLIP, NO_DISTANCE, UNDISPERSED, undispersed, without
from experiments.fairmoe import FULL as FAIRMOE
from experiments.fairmoe import TOY as FAIRMOE_TOY
from fairvlm_core.experiments.grid import Experiment, Recipe, Suite, both
from fairvlm_core.experiments.heads import POSTPROCESS
from fairvlm_core.steps.fair_moe import PLACES

NONE = {"representation": 0.0, "prevalence": 0.0, "weak_signal": 0.0, "shortcut": 0.0, "label_noise": 0.0}
NOISE = {"label_noise": 0.2, "noise_group": "female"}
BIASES: dict[str, dict[str, object]] = {
    "none": {},
    "representation": {"representation": 1.0},
    "prevalence": {"prevalence": 1.0},
    "weak_signal": {"weak_signal": 1.0},
    "shortcut": {"shortcut": 1.0},
    "label_noise": NOISE,
    "all": {"representation": 1.0, "prevalence": 1.0, "weak_signal": 1.0, "shortcut": 1.0, **NOISE},
}
TITLES = {
    "none": "no bias",
    "representation": "representation",
    "prevalence": "prevalence",
    "weak_signal": "weak signal",
    "shortcut": "shortcut",
    "label_noise": "label noise",
    "all": "all of them",
}
Candidates = tuple[Mapping[str, object], ...]


def rates(step: str, *values: float) -> Candidates:
    """Learning rates."""
    return tuple({f"{step}.learning_rate": value} for value in values)


def times(first: Candidates, second: Candidates) -> Candidates:
    """Every pair of two."""
    return tuple({**one, **other} for one in first for other in second)


# Four candidates each. What a method has of its own is tuned in place of half of the learning rates. The second weight
# of a fairness loss is one at which it can be felt: with these tiny models the moments are some 1e-4, the distance 1e-3
# and the dispersions 1e-5 to 1e-3 beside a task loss of 3 to 6, so that at the weight 1 they move nothing.
STAGE2, STAGE2_FEW = rates("stage2", 0.0005, 0.001, 0.002, 0.004), rates("stage2", 0.001, 0.002)
DUAL, DUAL_FEW = rates("fair_moe", 0.00025, 0.0005, 0.001, 0.002), rates("fair_moe", 0.0005, 0.001)
LAMBDA: Candidates = ({"stage2.fairness_weight": 0.1}, {"stage2.fairness_weight": 1.0, "stage2.moment_weight": 1000.0})
ADVERSARY = tuple(both("stage1", "stage2", adversary_weight=alpha) for alpha in (0.3, 1.0))
DISTANCE = ({"fair_moe.distance_weight": 1.0}, {"fair_moe.distance_weight": 100.0})
TERMS = tuple(
    {"fair_moe.distance_weight": distance, **{f"fair_moe.{place}_weight": dispersion for place in PLACES}}
    for distance, dispersion in ((1.0, 1.0), (100.0, 1000.0))
)

FAIRMED_TUNED = FAIRMED.derive(FAIRMED.name, FAIRMED.title, candidates=times(STAGE2_FEW, LAMBDA))
FAIRMOE_TUNED = FAIRMOE.derive(FAIRMOE.name, FAIRMOE.title, candidates=times(DUAL_FEW, TERMS))


def ablation(full: Recipe, name: str, title: str, changes: Mapping[str, object]) -> Recipe:
    """The full method, as it was tuned, less one part."""
    return full.derive(name, title, changes, follows=full.name)


FAIRMED_RECIPES = (
    STANDARD.derive("standard", "Standard", candidates=STAGE2),
    STANDARD.derive("reweighted_group", "Reweighted, 1 / P(a)", debiased("reweighted_group"), candidates=STAGE2),
    STANDARD.derive(
        "reweighted_joint", "Reweighted, P(a) P(y) / P(a, y)", debiased("reweighted_joint"), candidates=STAGE2
    ),
    STANDARD.derive("resampled", "Resampled", both("stage1", "stage2", oversample=1000.0), candidates=STAGE2),
    STANDARD.derive("adversarial", "Adversarial", debiased("adversarial"), candidates=times(STAGE2_FEW, ADVERSARY)),
    STANDARD.derive("postprocessed", "Post-processed", head=POSTPROCESS, follows="standard"),
    ablation(FAIRMED, "no_demographic_prompts", "FairMed-VLM without demographic prompts", UNPROMPTED),
    ablation(FAIRMED, "no_fairness_loss", "FairMed-VLM without the fairness loss", {"stage2.fairness_weight": 0.0}),
    ablation(FAIRMED, "no_balanced_sampling", "FairMed-VLM without balanced sampling", UNBALANCED),
    ablation(FAIRMED, "no_contrast", "FairMed-VLM without contrastive losses", NO_CONTRAST),
    FAIRMED_TUNED,
)
FAIRMOE_RECIPES = (
    FAIRCLIP.derive("clip", "CLIP, fine-tuned", NO_DISTANCE, candidates=DUAL),
    FAIRCLIP.derive("fairclip", "FairCLIP", candidates=times(DUAL_FEW, DISTANCE)),
    ablation(FAIRMOE, "no_dispersion", "Fair-MoE without dispersion (FairCLIP + FO-MoE)", UNDISPERSED),
    ablation(FAIRMOE, "no_distance", "Fair-MoE without L_distance", NO_DISTANCE),
    *(
        ablation(FAIRMOE, f"no_{place}", f"Fair-MoE without F_{place[0].upper()}{side}", undispersed(place))
        for place, side in zip(PLACES, ("I", "T", "I", "T"), strict=True)
    ),
    *(
        ablation(FAIRMOE, f"no_{part}_mixtures", f"Fair-MoE without {part} mixtures", without(part))
        for part in ("embedding", "feature", "text", "image")
    ),
    FAIRMOE_TUNED,
)


def tables(setting: str) -> tuple[Experiment, ...]:
    """The tables of one setting: one for each family of models."""
    shared = {
        "ingest.dataset": "generated",
        **{f"ingest.options.{name}": value for name, value in {**NONE, **BIASES[setting]}.items()},
    }
    return tuple(
        Experiment(
            name=f"controlled_{setting}_{family}",
            title=f"{title} on the generated cohort: {TITLES[setting]}",
            recipes=recipes,
            reference=recipes[-1].name,
            trained=trained,
            toy=toy,
            params=shared,
        )
        for family, title, recipes, trained, toy in (
            ("fairmed", "FairMed-VLM", FAIRMED_RECIPES, "stage2", FAIRMED_TOY),
            ("fairmoe", "Fair-MoE", FAIRMOE_RECIPES, "fair_moe", FAIRMOE_TOY),
        )
    )


EXPERIMENT = Suite(
    name="controlled",
    title="What each bias does to each method, on the generated cohort",
    settings=TITLES,
    experiments={setting: tables(setting) for setting in BIASES},
    untouched="none",
)
