"""The graph on Kubeflow: the steps of `dvc.yaml` with the same wiring, after one task that brings the dataset.

Each step takes its own section of parameters, so that a change to one section leaves the cache of all steps before it
valid. Defaults are the sections of the repository's `params.yaml` as they are when this is compiled. No task stands
inside a condition or a loop of the orchestrator: see `pools.py`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from kfp import dsl, kubernetes

from components.base_models.component import base_models
from components.champion.component import champion
from components.compare.component import compare
from components.evaluate.component import evaluate
from components.fair_moe.component import fair_moe
from components.fetch_dataset.component import fetch_dataset
from components.ingest.component import ingest
from components.predict.component import predict
from components.register.component import register
from components.stage1.component import stage1
from components.stage2.component import stage2
from components.stratify.component import stratify
from components.tune_thresholds.component import tune_thresholds
from components.validate.component import validate
from fairvlm_core.steps import STEPS
from pipelines.pools import place

PARAMS_FILE = Path(__file__).parent.parent / "params.yaml"


def default_params() -> dict[str, dict[str, Any]]:
    """The sections of `params.yaml`; null means that the step's own default holds, for which a Struct has no value."""
    sections = yaml.safe_load(PARAMS_FILE.read_text())
    return {
        step: {key: value for key, value in (sections.get(step) or {}).items() if value is not None} for step in STEPS
    }


def graph(default: Mapping[str, Mapping[str, Any]]) -> Any:
    """The pipeline whose run form proposes these sections of parameters.

    One of them decides the wiring, and that is fixed when the pipeline is compiled: with `fair_moe.init_from` stage2,
    Fair-MoE waits for Stage 2, beside which it would train otherwise.
    """

    @dsl.pipeline(
        name="fairvlm",
        description="Stratify a cohort, train FairMed-VLM and Fair-MoE, evaluate fairness, register the best model.",
    )
    def fairvlm(
        fetch_dataset_repo: str = "",
        fetch_dataset_revision: str = "",
        fetch_dataset_path: str = "",
        ingest_params: dict = default["ingest"],
        validate_params: dict = default["validate"],
        stratify_params: dict = default["stratify"],
        base_models_params: dict = default["base_models"],
        stage1_params: dict = default["stage1"],
        stage2_params: dict = default["stage2"],
        fair_moe_params: dict = default["fair_moe"],
        predict_params: dict = default["predict"],
        tune_thresholds_params: dict = default["tune_thresholds"],
        evaluate_params: dict = default["evaluate"],
        champion_params: dict = default["champion"],
        compare_params: dict = default["compare"],
        register_params: dict = default["register"],
    ):
        """Bring the dataset, prepare the cohort, train three models, compare them and the champion, register the best.

        Args:
            fetch_dataset_repo: DVC repository of the release; empty for the generated cohort.
            fetch_dataset_revision: commit or tag in that repository.
            fetch_dataset_path: folder of the release in that repository.
            ingest_params: section `ingest` of params.yaml; and so on for each step.
        """
        fetched = fetch_dataset(repo=fetch_dataset_repo, revision=fetch_dataset_revision, path=fetch_dataset_path)
        release = place(fetched, "fetch_dataset").outputs["out"]

        images = place(ingest(params=ingest_params, root=release), "ingest").outputs["out"]
        validation = place(validate(params=validate_params, cohort=images), "validate").outputs["out"]
        stratified = stratify(params=stratify_params, cohort=images, validation=validation)
        cohort = place(stratified, "stratify").outputs["out"]
        base = place(base_models(params=base_models_params, cohort=cohort), "base_models").outputs["out"]

        data = {"cohort": cohort, "images": images, "base": base}
        models = {}
        models["stage1"] = place(stage1(params=stage1_params, **data), "stage1").outputs["out"]
        second = stage2(params=stage2_params, **data, stage1=models["stage1"])
        models["stage2"] = place(second, "stage2").outputs["out"]
        start = models["stage2"] if default["fair_moe"].get("init_from") == "stage2" else base
        models["fair_moe"] = place(fair_moe(params=fair_moe_params, **data, start=start), "fair_moe").outputs["out"]

        evaluations = {}
        for name, model in models.items():
            predicted = place(predict(params=predict_params, model=model, **data), "predict")
            predictions = predicted.set_display_name(f"predict-{name}").outputs["out"]
            tuned = place(tune_thresholds(params=tune_thresholds_params, predictions=predictions), "tune_thresholds")
            thresholds = tuned.set_display_name(f"tune-thresholds-{name}").outputs["out"]
            evaluated = evaluate(params=evaluate_params, predictions=predictions, thresholds=thresholds)
            place(evaluated, "evaluate").set_display_name(f"evaluate-{name}")
            evaluations[name] = evaluated.outputs["out"]

        # An alias can move between two runs, which a cache would not see.
        judged = place(champion(params=champion_params, **data), "champion").set_caching_options(False)
        evaluations["champion"] = judged.outputs["out"]

        compared = place(compare(params=compare_params, strata=cohort, **evaluations), "compare")
        registered = register(
            params=register_params, comparison=compared.outputs["out"], base=base, cohort=cohort, **models
        )
        # Where the registry is belongs to the cluster, not to a run; without the config map MLflow's own variables
        # hold.
        for task in (judged, place(registered, "register")):
            kubernetes.use_config_map_as_env(
                task, "fairvlm", {"MLFLOW_TRACKING_URI": "MLFLOW_TRACKING_URI"}, optional=True
            )

    return fairvlm


fairvlm = graph(default_params())
