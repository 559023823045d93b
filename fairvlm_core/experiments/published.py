"""What the papers published, to stand beside our numbers where the data set is the same one.

Every number is from a text that was read, and says which; none is recalled or estimated. Means and standard deviations
are percentages, as printed. What could not be read has no number here:

- of FairMed-VLM the abstract alone, so nothing of its tables but the line of the full method on OL3I;
- of FairCLIP's Table 3 excerpts, race and, with ViT-B/16, gender.

Fair-MoE's tables were read in a text conversion of the preprint. What they print twice (FairCLIP in Tables 1 and 2,
FairCLIP + FO-MoE in 2 and, as "w/o FOL", in 3, the method in 1 and 3) is the same each time and stands here once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from fairvlm_core.experiments.grid import ACROSS

MODELS = {"B16": "ViT-B/16", "L14": "ViT-L/14", "-": "LLaVA-Med"}
FAIR_MOE = "Wang, Tong, Liu, Liu: Fair-MoE. arXiv:2502.06094"
FAIR_MOE_NOTE = "DPD and EOD in the paper's own definitions."


@dataclass(frozen=True)
class Source:
    """Where numbers were published.

    Attributes:
        citation: authors, paper and table.
        dataset: the adapter (`ingest.dataset`) of the data set that they are about.
        apart: whether each attribute has its own model there.
        note: what a reader who compares should know.
    """

    citation: str
    dataset: str
    apart: bool
    note: str


@dataclass(frozen=True)
class Published:
    """One published number.

    Attributes:
        recipe: the recipe of ours that it belongs to.
        model: the pretrained model.
        attribute: of the cohort; None for a number about everybody.
        mean, sd: shares, not percentages; sd is None where none is given.
        source: key in `SOURCES`.
    """

    recipe: str
    model: str
    attribute: str | None
    metric: str
    mean: float
    sd: float | None
    source: str


ONE_RUN = "One number without deviation; that of the full method is not the mean of Table 1."
SOURCES = {
    "fair_moe_1": Source(f"{FAIR_MOE}, Table 1", "harvard_fairvlmed", True, FAIR_MOE_NOTE),
    "fair_moe_2": Source(f"{FAIR_MOE}, Table 2", "harvard_fairvlmed", True, FAIR_MOE_NOTE),
    "fair_moe_3": Source(f"{FAIR_MOE}, Table 3", "harvard_fairvlmed", True, FAIR_MOE_NOTE),
    "fair_moe_4": Source(f"{FAIR_MOE}, Table 4", "harvard_fairvlmed", True, ONE_RUN),
    "fair_moe_5": Source(f"{FAIR_MOE}, Table 5", "harvard_fairvlmed", True, ONE_RUN),
    "fair_moe_6": Source(f"{FAIR_MOE}, Table 6", "harvard_fairvlmed", True, ONE_RUN),
    "fairclip_3": Source(
        "Luo et al.: FairCLIP. CVPR 2024 (arXiv:2403.19949), Table 3, zero-shot",
        "harvard_fairvlmed",
        True,
        "Read in excerpts; their published code selects the epoch on test.",
    ),
    "fairmed_abstract": Source(
        "FairMed-VLM. openreview.net/forum?id=DtbykQBmE5, abstract, OL3I",
        "ol3i",
        False,
        "The gap is taken to be the mean over the attributes. It improves on an accuracy of 73.6 % and a gap of 13.1 % "
        "of a method that the abstract does not name; the horizon is not said either.",
    ),
}

# Attribute, recipe and model, then ES-AUC, AUC, DPD and EOD. Table 1, and for FairCLIP + FO-MoE Table 2.
FAIR_MOE_MAIN = """
race      clip             B16 62.67±3.15 67.70±3.13 14.57±3.77  18.47±5.12
race      clip             L14 66.83±2.19 70.63±2.98 11.69±3.85  15.13±2.66
race      fairclip         B16 61.17±1.87 67.47±1.16 10.16±10.05 11.44±11.07
race      fairclip         L14 67.53±4.26 71.57±2.94 16.01±5.87  17.03±3.74
race      fairclip_experts B16 69.97±2.60 72.67±1.16 3.19±2.04   9.48±3.74
race      fairclip_experts L14 65.53±4.74 67.10±3.85 13.37±8.32  13.24±6.93
race      fair_moe         B16 69.63±1.21 71.93±0.90 7.25±5.13   7.43±3.04
race      fair_moe         L14 72.53±1.07 73.93±0.97 2.63±0.65   4.25±0.75
sex       clip             B16 63.30±2.73 67.70±3.13 2.79±1.49   7.52±4.78
sex       clip             L14 66.30±2.63 70.63±2.98 3.13±2.60   7.56±3.54
sex       fairclip         B16 64.43±1.86 68.47±2.26 2.50±1.47   4.98±3.74
sex       fairclip         L14 67.37±1.62 70.80±1.84 2.11±1.81   5.24±1.46
sex       fairclip_experts B16 67.63±1.82 71.37±2.30 3.14±1.14   7.70±1.66
sex       fairclip_experts L14 64.33±1.83 68.67±1.87 4.25±3.08   7.22±3.17
sex       fair_moe         B16 68.07±0.96 71.97±1.16 1.91±1.02   3.53±0.90
sex       fair_moe         L14 69.97±3.39 74.97±2.90 2.94±1.60   7.33±2.55
ethnicity clip             B16 64.87±2.26 70.63±0.90 7.53±2.96   14.83±3.01
ethnicity clip             L14 64.13±1.58 69.37±1.04 8.74±0.41   9.13±0.69
ethnicity fairclip         B16 61.43±1.05 67.33±1.33 10.54±1.52  17.93±4.01
ethnicity fairclip         L14 64.23±1.11 69.23±0.92 15.37±2.17  15.77±3.17
ethnicity fairclip_experts B16 66.70±3.30 69.17±2.57 6.94±4.40   9.58±4.11
ethnicity fairclip_experts L14 66.57±3.94 71.60±2.71 11.72±2.35  15.97±0.78
ethnicity fair_moe         B16 65.17±2.44 69.77±0.49 8.52±3.19   8.42±2.77
ethnicity fair_moe         L14 67.10±4.70 72.80±2.54 8.79±2.91   13.90±5.86
language  clip             B16 60.10±3.84 67.70±3.13 13.50±3.96  16.40±9.56
language  clip             L14 59.90±2.01 69.37±1.04 17.27±0.74  20.17±6.09
language  fairclip         B16 57.97±0.65 68.07±0.57 10.96±4.04  14.25±9.09
language  fairclip         L14 63.57±1.97 72.40±1.84 8.21±1.99   11.00±1.25
language  fairclip_experts B16 62.47±2.53 72.53±1.09 11.97±3.87  23.20±2.12
language  fairclip_experts L14 62.33±0.68 65.17±0.90 10.43±0.42  9.65±3.05
language  fair_moe         B16 63.60±1.85 73.87±1.62 7.48±4.56   12.30±2.65
language  fair_moe         L14 63.80±1.28 71.37±2.10 15.67±2.99  23.63±14.40
"""
# Recipe and model, then the ES-AUC of race, sex, ethnicity and language. Tables 4, 5 and 6.
FAIR_MOE_PARTS = """
fair_moe     B16 70.9 70.4 70.7 66.1
fair_moe     L14 74.0 69.5 73.4 64.1
no_f_ei      B16 62.2 65.4 58.7 60.0
no_f_ei      L14 71.4 62.8 64.7 62.5
no_f_et      B16 62.4 62.0 64.4 58.3
no_f_et      L14 64.3 59.2 69.6 62.4
no_f_fi      B16 70.4 56.5 61.9 61.7
no_f_fi      L14 69.2 63.0 63.4 59.6
no_f_ft      B16 60.9 69.8 62.2 48.7
no_f_ft      L14 69.3 64.6 70.1 59.7
no_embedding B16 66.2 68.1 53.5 62.9
no_embedding L14 68.6 66.9 62.0 62.2
no_feature   B16 64.0 66.5 66.3 61.0
no_feature   L14 72.2 65.4 72.1 60.8
no_text      B16 66.8 67.2 61.3 63.6
no_text      L14 72.1 61.3 64.0 63.8
no_image     B16 69.4 66.8 64.6 54.8
no_image     L14 66.8 65.3 64.3 58.7
"""
# Attribute, recipe and model, then DPD, EOD, AUC and ES-AUC.
FAIRCLIP_MAIN = """
race clip     B16 15.35±6.50 15.11±5.01  67.84±0.90 61.67±0.63
race fairclip B16 6.07±2.44  10.50±2.73  70.24±1.26 65.50±2.60
race clip     L14 10.10±9.44 10.79±10.41 67.83±2.92 63.53±1.83
race fairclip L14 17.79±4.86 18.30±2.07  69.88±2.00 66.54±1.73
sex  clip     B16 4.34±0.66  9.95±0.64   67.84±0.90 63.21±0.83
sex  fairclip B16 0.84±0.25  2.97±2.07   69.76±2.49 65.39±2.39
"""

PARTS = ("no_f_ei", "no_f_et", "no_f_fi", "no_f_ft"), ("no_embedding", "no_feature"), ("no_text", "no_image")
# Experiment -> the sources that it shows, and of each which recipes under which name of ours.
SHOWN: dict[str, tuple[tuple[str, Mapping[str, str]], ...]] = {
    "fairmoe_table1": (
        ("fair_moe_1", {name: name for name in ("clip", "fairclip", "fair_moe")}),
        ("fair_moe_2", {"fairclip_experts": "fairclip_experts"}),
        ("fairclip_3", {name: name for name in ("clip", "fairclip")}),
    ),
    "fairmoe_table2": (("fair_moe_2", {name: name for name in ("fairclip", "fairclip_experts")}),),
    "fairmoe_table3": (("fair_moe_3", {"fairclip_experts": "no_dispersion", "fair_moe": "fair_moe"}),),
    **{
        f"fairmoe_table{number}": ((f"fair_moe_{number}", {name: name for name in ("fair_moe", *parts)}),)
        for number, parts in enumerate(PARTS, start=4)
    },
    **{
        f"fairmed_{name}": (("fairmed_abstract", {"fairmed_vlm": "fairmed_vlm"}),)
        for name in ("table2", "table3", "table4", "methods")
    },
}


def published(experiment: str, dataset: str | None, *, apart: bool) -> list[Published]:
    """The published numbers that belong beside those of an experiment; none where the data set is another one.

    Args:
        dataset: `ingest.dataset` of the run.
        apart: whether each attribute has its own model in the run; a number of such a model is not beside that of
            one model for all attributes, nor the other way round.

    >>> found = published("fairmoe_table5", "harvard_fairvlmed", apart=True)
    >>> [(one.recipe, one.model, one.mean) for one in found if one.attribute == "race"][:2]
    [('fair_moe', 'ViT-B/16', 0.709), ('fair_moe', 'ViT-L/14', 0.74)]
    >>> published("fairmoe_table5", "generated", apart=True)
    []
    """
    found = []
    for key, names in SHOWN.get(experiment, ()):
        source = SOURCES[key]
        if (source.dataset, source.apart) == (dataset, apart):
            found += [
                Published(names[one.recipe], one.model, one.attribute, one.metric, one.mean, one.sd, key)
                for one in _printed(key)
                if one.recipe in names
            ]
    return found


def _printed(source: str) -> Iterable[Published]:
    """All that a source prints, in its own order."""
    if source == "fairmed_abstract":
        for metric, attribute, percent in (("accuracy", None, 78.5), ("dpd", ACROSS, 5.0)):
            yield Published("fairmed_vlm", MODELS["-"], attribute, metric, _share(str(percent)), None, source)
    elif source in ("fair_moe_4", "fair_moe_5", "fair_moe_6"):
        for recipe, model, *values in map(str.split, FAIR_MOE_PARTS.split("\n")[1:-1]):
            for attribute, value in zip(("race", "sex", "ethnicity", "language"), values, strict=True):
                yield Published(recipe, MODELS[model], attribute, "es_auc", _share(value), None, source)
    else:
        ours, text = (("es_auc", "auc", "dpd", "eod"), FAIR_MOE_MAIN)
        if source == "fairclip_3":
            ours, text = (("dpd", "eod", "auc", "es_auc"), FAIRCLIP_MAIN)
        for attribute, recipe, model, *values in map(str.split, text.split("\n")[1:-1]):
            for metric, value in zip(ours, values, strict=True):
                mean, sd = value.split("±")
                yield Published(recipe, MODELS[model], attribute, metric, _share(mean), _share(sd), source)


def _share(percent: str) -> float:
    """A percentage as printed as a share, without the rounding of a division."""
    return round(float(percent) / 100, 6)
