"""Folders as the pipeline leaves them before `register`: tiny models, disturbed instead of trained, judged."""

from __future__ import annotations

from pathlib import Path

import bases
import torch

from fairvlm_core.files import write_json
from fairvlm_core.models import dual, vlm
from fairvlm_core.steps import compare, evaluate, execute, predict, tune_thresholds


def write_models(root: Path, kind: str) -> dict[str, Path]:
    """Base models and the three models: base, stage1, stage2, fair_moe -> folder."""
    task = bases.TASKS[kind]
    base = bases.write_bases(root / "base", task)
    folders = {name: root / name for name in ("stage1", "stage2", "fair_moe")}
    for folder in folders.values():
        folder.mkdir()
        write_json(folder / "history.json", {"fairness": [{"epoch": 1, "worst_group_auc": 0.5}]})
        write_json(folder / "metrics.json", {"validation_worst_group_auc": 0.5})
        write_json(folder / "config.json", {"epochs": 1, "learning_rate": 0.001})
    torch.manual_seed(0)
    llava = vlm.load_base(str(base / "llava"), task, bases.SIZE)
    for name, earlier in (("stage1", None), ("stage2", folders["stage1"])):
        if earlier:
            llava.merge_adapter()
            llava.adapters = ("adapter-stage1",)
        llava.add_adapter(rank=2, alpha=4, tower=True)
        _disturb(dict(llava.llava.named_parameters()))
        vlm.save(llava, folders[name], name=name, seed=0, earlier=earlier)
    clip = dual.load_base(str(base / "dual"), task, bases.SIZE, experts=dual.Experts(count=2, top_k=1), seed=0)
    clip.freeze(1)
    _disturb(dict(clip.model.named_parameters()))
    dual.save(clip, folders["fair_moe"], name="fair_moe", seed=0)
    return {"base": base, **folders}


def write_outputs(root: Path, kind: str) -> dict[str, Path]:
    """All inputs of `register`, and `images`, `<model>_evaluation` and `predictions` of each model."""
    cohort = bases.write_cohort_with_images(root / "cohort", bases.TASKS[kind], count=240)
    write_json(cohort / "strata.json", {"attributes": [], "min_cell": 10, "cells": [], "unknown": {}, "total": {}})
    folders = {**write_models(root, kind), "cohort": cohort}
    judged = {}
    for name in ("stage1", "stage2", "fair_moe"):
        given = {"model": folders[name], "base": folders["base"], "cohort": cohort, "images": cohort}
        predictions = {"predictions": root / f"{name}_predictions"}
        execute("predict", predict.Config(), given, {"out": predictions["predictions"]})
        thresholds = {"thresholds": root / f"{name}_thresholds"}
        execute("tune_thresholds", tune_thresholds.Config(), predictions, {"out": thresholds["thresholds"]})
        judged[name] = root / f"{name}_evaluation"
        execute("evaluate", evaluate.Config(), {**predictions, **thresholds}, {"out": judged[name]})
    folders["comparison"] = root / "comparison"
    execute("compare", compare.Config(), {"strata": cohort, **judged}, {"out": folders["comparison"]})
    return folders


def _disturb(parameters: dict[str, torch.nn.Parameter]) -> None:
    """Move what is trainable: a fresh adapter changes nothing, and a test could not see that it was loaded."""
    with torch.no_grad():
        for parameter in parameters.values():
            if parameter.requires_grad:
                parameter.add_(0.3 * torch.randn_like(parameter))
