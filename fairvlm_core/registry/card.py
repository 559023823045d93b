"""The model card: what a committee reads before a model is used. One page, as Markdown and as HTML.

Everything in it is published: it is made of what comparison.json, strata.json, gate.json and the parameters already
say, and of no row of the cohort but the names of its releases and modalities.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fairvlm_core.cohort.document import Section, Table, to_html, to_markdown
from fairvlm_core.evaluation.report.words import CRITERIA, attribute_name, capitalised, count
from fairvlm_core.evaluation.verdicts import PASS
from fairvlm_core.files import read_json, written
from fairvlm_core.registry import card_results
from fairvlm_core.registry.claims import WHAT, claims
from fairvlm_core.registry.failings import ends, failings, with_ends
from fairvlm_core.registry.licences import base_terms, terms_of

CARD_FILES = ("model_card.md", "model_card.html")
MOST_CELLS = 24  # more cells than this are in strata.json alone
DESCRIPTION = 4000  # characters of a version's description

WARNING = (
    "Research software, and no medical device: nobody may be diagnosed or treated on its word alone. A clinician who "
    "sees the picture decides."
)
DRAWN = "Trained and judged on drawn pictures: it has never seen a patient, and shows that the chain works, no more."
# Denser than other pages: on paper it is two or three sheets.
STYLE = """
h2 { margin: 1.6rem 0 .6rem; padding-top: .8rem; } p { margin-bottom: .5rem; max-width: none; }
.scroll { margin-bottom: .9rem; } th, td { padding: .22rem .7rem; }
@media print { @page { size: A4; margin: 13mm 14mm; } body { font-size: 8.5pt; line-height: 1.35; }
  h1 { font-size: 15pt; } h2 { margin: .55rem 0 .25rem; padding-top: .35rem; font-size: 10.5pt; }
  p { margin-bottom: .25rem; } .warning { margin-top: .4rem; padding: .3rem .7rem; }
  section { column-gap: 1.5rem; } .scroll { margin-bottom: .4rem; } table { font-size: 8pt; }
  caption, thead th { font-size: 7.5pt; } th, td { padding: .08rem .5rem; } }
"""
KEY = {
    "stage1": ("concept_epochs", "epochs", "learning_rate", "batch_size", "lora_rank", "demographic_prompts"),
    "stage2": (
        *("epochs", "learning_rate", "batch_size", "lora_rank", "lora_alpha", "demographic_prompts"),
        *("fairness_weight", "contrast_weight", "moment_weight", "margin", "temperature"),
    ),
    "fair_moe": (
        *("init_from", "epochs", "learning_rate", "batch_size", "experts", "top_k", "capacity", "layer"),
        *("distance", "distance_weight", "group_batch", "train_blocks"),
    ),
}
ALWAYS = ("attributes", "oversample", "augment", "criterion", "debiasing", "seed")
# Tags of a version that say how to make it again -> what the card calls them.
ORIGIN = {
    "git_commit": "Git commit",
    "dvc_data_hash": "Balanced cohort, as DVC names it",
    "cohort_sha256": "cohort.parquet, SHA-256",
    "test_sha256": "Test rows, SHA-256",
    "dataset_commit": "Commit of the release",
    "dataset_hash": "Release, as DVC names it",
    "image": "Container image",
    "kfp_run_id": "Kubeflow run",
    "fingerprint": "Fingerprint of the model's files",
    "seed": "Seed",
    "fairvlm_version": "fairvlm",
}

Facts = dict[str, Any]


def write_card(
    out: Path,
    *,
    inputs: Mapping[str, Path],
    name: str,
    gate: Mapping[str, Any],
    tags: Mapping[str, str],
    registered_name: str,
    today: datetime.date | None = None,
) -> str:
    """Write model_card.md and model_card.html into `out`.

    Args:
        inputs: those of the step `register`.
        name: stage1, stage2 or fair_moe.
        gate: the content of gate.json.
        tags: those that the version gets.
        registered_name: in the registry.
        today: the date on the card.

    Returns:
        The card's short form, in Markdown: the description of the version.
    """
    facts = _facts(inputs, name=name, gate=gate, tags=tags, registered_name=registered_name)
    made = (today or datetime.datetime.now(datetime.UTC).date()).isoformat()
    warnings = [WARNING, *_verdict_warning(facts), *([DRAWN] if facts["sources"] == ["generated"] else [])]
    sections: list[Section] = [
        ("What it is", _what(facts, made)),
        ("What it is for", _use(facts)),
        ("Known failures", [f"{k}. {line}" for k, line in enumerate(failings(facts["test"]), 1)]),
        ("Results on the test split", card_results.results(facts)),
        ("Thresholds and calibration", card_results.thresholds(facts)),
        ("The gate", card_results.gate(facts)),
        ("Data and balancing", _data(facts)),
        ("How it was trained", _training(facts)),
        ("Limits of the papers' claims", claims(name, facts["training"])),
        ("Licences", _licences(facts)),
        ("How to make it again", _origin(facts)),
    ]
    line = " · ".join([facts["title"], f"{facts['kind']} task: {', '.join(facts['labels'])}", f"made {made}"])
    content = (f"Model card: {registered_name}", line, warnings, sections)
    pages = (to_markdown(*content), to_html(*content, style=STYLE))
    for file, page in zip(CARD_FILES, pages, strict=True):
        with written(out / file) as partial:
            partial.write_text(page, encoding="utf-8")
    return to_markdown(
        f"{registered_name}: {facts['title']}",
        line,
        warnings,
        [
            ("Results on the test split", [card_results.overall(facts), *card_results.gaps(facts)]),
            ("Known failures", [f"{k}. {line}" for k, line in enumerate(failings(facts["test"]), 1)][:6]),
            ("More", ["The whole card is in the run's artifacts, in the folder card; what made it in lineage."]),
        ],
    )[:DESCRIPTION]


def _facts(inputs: Mapping[str, Path], *, name: str, **told: Any) -> Facts:
    """What the sections are made of."""
    from fairvlm_core.model_files import base_path, describe

    comparison = read_json(inputs["comparison"] / "comparison.json", made_by="compare")
    described, judged = describe(inputs[name]), comparison["models"][name]
    family = described["family"]
    sources, modalities = _released(inputs["cohort"])
    return {
        **told,
        "name": name,
        "title": judged["title"],
        "kind": comparison["kind"],
        "labels": comparison["labels"],
        "concepts": described["task"].concepts,
        "image_size": described["image_size"],
        "selected": comparison["selected"] == name,
        "criterion": comparison["criterion"]["name"],
        "test": judged["test"],
        "thresholds": judged["thresholds"],
        "calibration": judged.get("calibration"),
        "min_cell": comparison["min_cell"],
        "champion": comparison.get("champion"),
        "strata": read_json(inputs["cohort"] / "strata.json", made_by="stratify"),
        "sources": sources,
        "modalities": modalities,
        "training": read_json(inputs[name] / "config.json", made_by=name),
        "balancing": _config(inputs["cohort"]),
        "base": base_terms(family, base_path(inputs["base"], family), _config(inputs["base"])),
    }


def _config(folder: Path) -> dict[str, Any]:
    file = folder / "config.json"
    return read_json(file, made_by="the step that wrote this folder") if file.is_file() else {}


def _released(cohort: Path) -> tuple[list[str], list[str]]:
    """The releases and modalities that the cohort names; how many rows each has is not told."""
    import pyarrow.parquet as pq

    from fairvlm_core.cohort.table import COHORT_FILE

    table = pq.read_table(cohort / COHORT_FILE, columns=["source", "modality"])
    names = [sorted({value for value in table.column(c).unique().to_pylist() if value}) for c in table.column_names]
    return names[0], names[1]


def _verdict_warning(facts: Facts) -> list[str]:
    verdict = card_results.verdict(facts)
    return [] if verdict == PASS else [f"The gate's verdict on this model: {verdict}. Why is said below."]


def _what(facts: Facts, made: str) -> list[str | Table]:
    test, interval = facts["test"], ends(facts["test"], "overall", "auc")
    rows = [
        ["Registered as", f"the next version of {facts['registered_name']} on {made}"],
        ["Labels", ", ".join(facts["labels"])],
        ["Takes", f"one picture ({_modalities(facts)}), of which the central square at {facts['image_size']} pixels"],
        ["Gives", "a calibrated score and a decision for each label"],
        ["AUC on test", f"{with_ends(test['overall']['auc'], interval)} on {count(test['n'])} images"],
        ["Gate", card_results.verdict(facts)],
    ]
    return [WHAT[facts["name"]], Table("In short.", ["What", "This model"], rows, text=2)]


def _modalities(facts: Facts) -> str:
    return ", ".join(facts["modalities"]) or "modality not stated"


def _use(facts: Facts) -> list[str]:
    found = ", ".join(facts["concepts"])
    size = facts["image_size"]
    return [
        "Intended: research on decision support, as a second reading beside a clinician's own, of the question whether "
        f"a picture shows {found}. Pictures must be of the kind it learnt from ({_modalities(facts)}), legible at "
        f"{size} x {size} pixels, of patients like those below.",
        "Not intended: diagnosis without a clinician, screening that nobody checks, other modalities, body parts, ages "
        "or devices than those of the data, findings that are no label, ranking of patients for care or insurance.",
        "It decides by the picture alone. Sex, age, race, ethnicity and language are never an input: a request that "
        "holds them is refused. They served to train and to judge it.",
    ]


def _data(facts: Facts) -> list[str | Table]:
    strata = facts["strata"]
    titles = ", ".join(terms_of(source).title for source in facts["sources"]) or "not stated"
    columns = {
        "train_before": "Train, before",
        "train_after": "Train, after",
        "validation": "Validation",
        "test": "Test",
    }
    names = strata["attributes"]
    rows = []
    if len(strata["cells"]) <= MOST_CELLS and names:
        rows = [[" ".join([cell[name] for name in names]), *_counts(cell, columns)] for cell in strata["cells"]]
    rows += [[what, *_counts(strata[key], columns)] for what, key in (("unknown", "unknown"), ("all", "total"))]
    caps = facts["balancing"]
    how = (
        f" A large cell keeps {caps['majority_cap']} times the median cell, a small one is repeated to at most "
        f"{caps['oversample_cap']} times its rows."
        if caps.get("majority_cap") is not None
        else ""
    )
    split = " and ".join(map(attribute_name, names))
    balanced = f"Only the training split was balanced, over {split}.{how}" if names else "Nothing was balanced."
    return [
        f"Data: {titles}; {_modalities(facts)}. No patient (or lesion, where "
        f"that is what a release names) is in two splits. {balanced}",
        Table(
            f"Images. A dash: fewer than {strata['min_cell']} patients, or hidden with them.",
            ["Cell", *columns.values()],
            rows,
        ),
    ]


def _counts(row: Mapping[str, Any], columns: Mapping[str, str]) -> list[str]:
    return [count(row.get(key)) for key in columns]


def _training(facts: Facts) -> list[str]:
    training = facts["training"]
    told = [
        f"{key.replace('_', ' ')} {_value(training[key])}" for key in (*KEY[facts["name"]], *ALWAYS) if key in training
    ]
    return [
        f"{' · '.join(told)}. Every parameter of every step is in lineage/steps.json, beside this card.",
        f"Of the run's three models, validation selects by {CRITERIA[facts['criterion']]}; this one was "
        f"{'selected' if facts['selected'] else 'not selected, but registered by name'}. Notes and demographics were "
        "read in training at most, never when it is judged or used.",
    ]


def _value(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value)) or "none"
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


def _licences(facts: Facts) -> list[str | Table]:
    rows = [[terms.title, "data", f"{terms.licence}. {terms.conditions}"] for terms in map(terms_of, facts["sources"])]
    rows += [[what, "base model", f"{capitalised(licence)}."] for what, licence in facts["base"]]
    rows.append(["fairvlm", "code", "Apache-2.0."])
    return [
        Table("As their publishers state them; no advice.", ["What", "", "Terms"], rows, text=3),
        "What was trained here carries the terms of both data and base model. Base weights are not in the registry: "
        "whoever loads the model brings them.",
    ]


def _origin(facts: Facts) -> list[str | Table]:
    tags = facts["tags"]
    changed = " (with changes that no commit has)" if tags.get("git_dirty") == "true" else ""
    rows = [
        [what, tags[key] + (changed if key == "git_commit" else "")] for key, what in ORIGIN.items() if tags.get(key)
    ]
    missing = [ORIGIN[key] for key in ("git_commit", "image") if not tags.get(key)]
    left = f" Not recorded: {', '.join(missing)}." if missing else ""
    return [
        f"fairvlm reproduce VERSION --registered-name {facts['registered_name']} prints the commands in their order "
        f"and checks what can be checked.{left}",
        Table("What it was made from.", ["What", "Recorded"], rows, text=2),
    ]
