"""Kubeflow component of the step `register`."""

from kfp import dsl

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def register(
    params: dict,
    sections: dict,
    dataset_repo: str,
    dataset_path: str,
    dataset_commit: str,
    dataset_hash: str,
    image: str,
    kfp_run_id: str,
    comparison: dsl.Input[dsl.Artifact],
    base: dsl.Input[dsl.Model],
    cohort: dsl.Input[dsl.Dataset],
    stage1: dsl.Input[dsl.Model],
    stage2: dsl.Input[dsl.Model],
    fair_moe: dsl.Input[dsl.Model],
    out: dsl.Output[dsl.Artifact],
    metrics: dsl.Output[dsl.Metrics],
):
    """Register the selected model in MLflow with the alias challenger."""
    import json
    import os

    from fairvlm_core.kubeflow.call import require_server, run_step, whole

    require_server()
    told = {
        "params": json.dumps(whole(sections)) if sections else "",
        "dataset_repo": dataset_repo,
        "dataset_path": dataset_path,
        "dataset_commit": dataset_commit,
        "dataset_hash": dataset_hash,
        "image": image,
        "kfp_run_id": kfp_run_id,
    }
    os.environ.update({f"FAIRVLM_{name.upper()}": value for name, value in told.items() if value})
    inputs = {
        "comparison": comparison.path,
        "base": base.path,
        "cohort": cohort.path,
        "stage1": stage1.path,
        "stage2": stage2.path,
        "fair_moe": fair_moe.path,
    }
    run_step("register", params, inputs, out.path, metrics=metrics)
