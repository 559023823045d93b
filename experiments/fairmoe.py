"""What the tables of Fair-MoE share: the full method, ways to leave parts out, and a size at which they take a minute.

The loss has a term F, the dispersion of the gates, for each mixture that is there. Where a mixture is absent, so is
its F, whatever the weight; the transport L_distance between the groups and the batch needs no mixture. The tables are
numbered and laid out as in the preprint (arXiv:2502.06094).
"""

from __future__ import annotations

from experiments.fairmed import TOY_COHORT
from fairvlm_core.experiments.grid import ATTRIBUTES as BY_ATTRIBUTE
from fairvlm_core.experiments.grid import WIDE, Layout, Recipe
from fairvlm_core.steps.fair_moe import PLACES

FULL = Recipe("fair_moe", "Fair-MoE")


def undispersed(*places: str) -> dict[str, object]:
    """The loss without the terms F of some mixtures, which stay: F_EI is that of "embedding_image", and so on."""
    return {f"fair_moe.{place}_weight": 0.0 for place in places}


def without(part: str) -> dict[str, object]:
    """No mixtures of one kind (embedding, feature) or on one side (image, text), and none of their terms F."""
    return {"fair_moe.places": tuple(place for place in PLACES if part not in place.split("_"))}


UNDISPERSED = undispersed(*PLACES)
NO_DISTANCE = {"fair_moe.distance_weight": 0.0}
# F is what Fair-MoE's loss adds to FairCLIP's.
FAIRCLIP = FULL.derive("fairclip", "FairCLIP", {**UNDISPERSED, "fair_moe.experts": 0})
CLIP = FAIRCLIP.derive("clip", "CLIP, fine-tuned", NO_DISTANCE)
FAIRCLIP_EXPERTS = FULL.derive("fairclip_experts", "FairCLIP + FO-MoE", UNDISPERSED)

# The attributes of Harvard-FairVLMed, for each of which the paper trains a model of its own.
ATTRIBUTES = ("race", "sex", "ethnicity", "language")

# Tables 1 to 3 have a block for each attribute, with these columns; accuracy, which the paper lacks, comes last.
BLOCKS = Layout(BY_ATTRIBUTE, ("es_auc", "auc", "dpd", "eod", "accuracy"))
# Tables 4 to 6 have a column for each attribute, with ES-AUC alone.
COLUMNS = Layout(WIDE, ("es_auc",))

TOY = {
    **TOY_COHORT,
    "fair_moe.attributes": ATTRIBUTES,
    "fair_moe.epochs": 1,
    "fair_moe.batch_size": 32,
    "fair_moe.learning_rate": 0.0005,
    "fair_moe.group_batch": 4,
}
