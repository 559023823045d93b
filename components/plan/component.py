"""Kubeflow component `plan`: the first task of a run, which refuses what later tasks would stumble over."""

from typing import NamedTuple

from kfp import dsl

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def plan(
    defaults: dict,
    params: dict,
    pools: dict,
    repo: str,
    revision: str,
    path: str,
    ingest_dataset: str,
    base_models_preset: str,
    compare_criterion: str,
    register_registered_name: str,
    stage1_pool: str,
    stage2_pool: str,
    fair_moe_pool: str,
    predict_pool: str,
) -> NamedTuple(
    "Plan",
    [
        ("commit", str),
        ("data_hash", str),
        ("sections", dict),
        ("ingest", dict),
        ("validate", dict),
        ("stratify", dict),
        ("base_models", dict),
        ("stage1", dict),
        ("stage2", dict),
        ("fair_moe", dict),
        ("predict", dict),
        ("tune_thresholds", dict),
        ("evaluate", dict),
        ("champion", dict),
        ("compare", dict),
        ("register", dict),
    ],
):
    """Check every parameter, every pool and the dataset's revision, before a GPU is asked for."""
    from fairvlm_core.kubeflow.fetch import resolve
    from fairvlm_core.kubeflow.plan import asked_for, sections

    form = {
        "ingest.dataset": ingest_dataset,
        "base_models.preset": base_models_preset,
        "compare.criterion": compare_criterion,
        "register.registered_name": register_registered_name,
    }
    found = sections(defaults, params, form)
    chosen = {"stage1": stage1_pool, "stage2": stage2_pool, "fair_moe": fair_moe_pool, "predict": predict_pool}
    for step, name in chosen.items():
        asked_for(pools, name, step=step, preset=base_models_preset)
    commit, data_hash = "", ""
    if repo or revision or path:
        release = resolve(repo, revision, path)
        commit, data_hash = release.commit, release.data_hash
        print(f"The dataset {path} is that of commit {commit}; its hash is {data_hash}.")
    return (commit, data_hash, found, *found.values())
