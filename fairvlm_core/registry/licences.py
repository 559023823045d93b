"""Under what terms data and base models may be used, as far as their publishers say so: facts, not advice.

What is not listed here and does not say it itself is "not stated": somebody has to find out before the model is shared.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

NOT_STATED = "not stated: find out before you share the model"
AGREEMENT = "Images, texts and rows must not leave the place, or reach people, whom the agreement does not name."


@dataclass(frozen=True)
class Terms:
    """What a publisher says about a release.

    Attributes:
        title: the release in full.
        licence: its name, or that of the agreement.
        conditions: what follows for whoever uses or shares a model that was trained on it.
    """

    title: str
    licence: str
    conditions: str


STANFORD = "Research use agreement of Stanford University, accepted by each user"
# Adapter -> the terms of its release. `table` reads anything, so that nothing can be said about it here.
RELEASES: dict[str, Terms] = {
    "chexpert": Terms(
        "CheXpert (Irvin et al. 2019)", STANFORD, f"Non-commercial research only; no copies to others. {AGREEMENT}"
    ),
    "covid_chestxray": Terms(
        "COVID-19 image data collection (Cohen et al. 2020)",
        "One per image (column license of its metadata); the table itself CC BY-NC-SA 4.0",
        "Credit the sources of the images; treat the whole as non-commercial and share alike.",
    ),
    "eyepacs": Terms(
        "EyePACS, Diabetic Retinopathy Detection (2015)",
        "The rules of the Kaggle competition, accepted by each user",
        f"Find out whether they allow your use. {AGREEMENT}",
    ),
    "generated": Terms("The generated cohort", "Apache-2.0, as this project", "It is drawn: nobody is in it."),
    "ham10000": Terms(
        "HAM10000 (Tschandl et al. 2018)", "CC BY-NC 4.0", "Non-commercial; name the authors and what was changed."
    ),
    "harvard_fairvlmed": Terms(
        "Harvard-FairVLMed (Luo et al. 2024)",
        "CC BY-NC-ND 4.0",
        "Non-commercial; no changed copies to others. Whether a trained model is one is not settled: ask first.",
    ),
    "mimic_cxr": Terms(
        "MIMIC-CXR-JPG, with MIMIC-IV (Johnson et al.)",
        "PhysioNet credentialed health data licence and data use agreement 1.5.0, accepted by each user",
        f"{AGREEMENT} Read PhysioNet's guidelines for models made from MIMIC before you share this one.",
    ),
    "ol3i": Terms(
        "OL3I (Zambrano Chaves et al. 2023)",
        STANFORD,
        f"Non-commercial research only; no copies to others. {AGREEMENT}",
    ),
    "ptbxl": Terms("PTB-XL (Wagner et al. 2020)", "CC BY 4.0", "Name the authors and what was changed."),
}

MADE_HERE = "Apache-2.0, as this project, which made it"
LEARNT_FROM_NOTES = "Its words come from the notes of the training split, whose terms hold for it too."
# Part of a checkpoint's name -> what its publisher says; the first that fits.
PUBLISHED = (
    (
        "llava-med-v1.5",
        "that of Mistral-7B-Instruct-v0.2 (Apache-2.0). Its authors mean it for research alone, not for clinical care "
        "or any clinical decision",
    ),
    (
        "llava-med",
        "research use only, under the terms of LLaMA and CC BY-NC 4.0 data; not for clinical care or any clinical "
        "decision",
    ),
    ("openai/clip-vit", "the code's is MIT. The model card calls every deployed use out of scope"),
    ("clip-vit", "OpenAI's code is MIT. Its model card calls every deployed use out of scope"),
    ("dinov2", "Apache-2.0"),
    ("minilm", "Apache-2.0"),
)


def terms_of(source: str) -> Terms:
    """The terms of a release by the value of the cohort's column `source`.

    >>> terms_of("ptbxl").licence
    'CC BY 4.0'
    """
    own = "your own table" if source == "table" else source
    return RELEASES.get(source, Terms(own, NOT_STATED, "Nothing here says whether images and models may be shared."))


def base_terms(family: str, checkpoint: str, made: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What the base model is made of, each part with its licence.

    Args:
        family: vlm or dual.
        checkpoint: its folder, or name on the hub.
        made: the parameters of `base_models`, as far as they are known.
    """
    preset = made.get("preset")
    if preset == "tiny":
        return [("tiny base model, pretrained on drawn pictures", f"{MADE_HERE}. {LEARNT_FROM_NOTES}")]
    if preset == "small":
        parts = [made["vision"], made["text"]] if family == "dual" else [made["vision"]]
        told = [(shown(part), licence_of(part)) for part in parts]
        speaker = [("small language model", f"{MADE_HERE}. {LEARNT_FROM_NOTES}")] if family == "vlm" else []
        return told + speaker
    return [(shown(checkpoint), licence_of(checkpoint))]


def shown(checkpoint: str) -> str:
    """A checkpoint's name as it may be published: of a folder the last part, which names no machine and no person.

    >>> shown("/home/somebody/models/llava-med"), shown("openai/clip-vit-base-patch16")
    ('llava-med', 'openai/clip-vit-base-patch16')
    """
    local = Path(checkpoint).is_absolute() or checkpoint.startswith((".", "~")) or Path(checkpoint).is_dir()
    return Path(checkpoint).name if local else checkpoint


def licence_of(checkpoint: str) -> str:
    """The licence in the README of a checkpoint, else what is publicly stated for one of this name."""
    told = _in_readme(checkpoint)
    if told:
        return f"{told}, as its README says"
    name = checkpoint.lower()
    known = next((licence for part, licence in PUBLISHED if part in name), None)
    return f"publicly stated for one of this name: {known}" if known else NOT_STATED


def _in_readme(checkpoint: str) -> str | None:
    """`license` in the metadata at the head of README.md, in a folder or in the hub's cache; nothing is fetched."""
    path: Any = Path(checkpoint) / "README.md"
    if not Path(checkpoint).is_dir():
        from huggingface_hub import try_to_load_from_cache
        from huggingface_hub.errors import HFValidationError

        try:
            path = try_to_load_from_cache(checkpoint, "README.md")
        except HFValidationError:  # no hub has such a name
            return None
    if not isinstance(path, (str, Path)) or not Path(path).is_file():
        return None
    head = Path(path).read_text(encoding="utf-8", errors="replace").split("---")
    try:
        found = yaml.safe_load(head[1]) if len(head) > 2 and not head[0].strip() else None
    except yaml.YAMLError:
        return None
    if not isinstance(found, dict):
        return None
    told = found.get("license_name") or found.get("license")
    return str(told) if told else None
