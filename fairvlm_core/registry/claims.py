"""What the two papers claim, and what is not shown by it: short, and fair to them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

WHAT = {
    "stage1": "FairMed-VLM, Stage 1: a LLaVA-type model (vision tower, projector, language model) that learnt the "
    "concepts of the task and to answer questions on a balanced cohort.",
    "stage2": "FairMed-VLM, Stage 2: a LLaVA-type model (vision tower, projector, language model) with adapters that "
    "pull the embeddings of demographic groups together where the label is the same.",
    "fair_moe": "Fair-MoE: a CLIP-type encoder of images and texts with mixtures of experts, trained with a loss that "
    "keeps groups alike in their image-text distances and in the experts they use.",
}
FAIRMED = (
    "FairMed-VLM claims that a balanced cohort and aligned embeddings narrow the gaps between groups without loss of "
    "accuracy. It reports so for LLaVA-Med on public releases, over five seeds. Its text leaves choices open, such as "
    "what happens where a batch has no positive of another group; those made here are named parameters, and their "
    "defaults need not be the authors'."
)
FAIR_MOE = (
    "Fair-MoE claims better accuracy and smaller gaps than CLIP and FairCLIP on Harvard-FairVLMed. Its text does not "
    "give all sizes of the experts, and its DPD is printed with a condition (y = 1) that its own tables contradict; "
    "here DPD is the gap of the selection rates."
)
LAST_BLOCK = (
    "With experts in the last block, as published, dropping a patch of the image cannot change its feature: after the "
    "last attention only CLS (or EOT of a text) is read."
)
PUBLISHED_CODE = (
    "Published code of this line of work selects models on the test split, and that of FairCLIP compares distances "
    "in a way that carries no information about groups; an independent reproduction (arXiv:2509.06535) did not find "
    "FairCLIP to improve accuracy or fairness. Here selection reads validation alone, and the distance is exact "
    "optimal transport unless a parameter says otherwise."
)
HERE = (
    "This card shows one training run on one cohort. Its intervals say what other test patients of the same kind "
    "would change, not what another seed, hospital or scanner would. Smaller gaps here do not mean that the loss "
    "made them: only an experiment without that loss, over several seeds, can tell."
)


def claims(name: str, training: Mapping[str, Any]) -> list[str]:
    """Paragraphs on what the paper behind a model claims, and what this card does not show.

    Args:
        name: stage1, stage2 or fair_moe.
        training: the parameters of its step.
    """
    if name == "fair_moe":
        last = [LAST_BLOCK] if training.get("layer", -1) == -1 and training.get("pooling", "cls") == "cls" else []
        return [" ".join([FAIR_MOE, *last]), PUBLISHED_CODE, HERE]
    first = (
        " Stage 1 has the balanced cohort and the concepts, not the alignment of groups." if name == "stage1" else ""
    )
    return [FAIRMED + first, HERE]
