"""The graph on Kubeflow: the steps of `dvc.yaml` with the same wiring, behind a task that checks what was asked for.

The run's form has few fields: the dataset, the choices that change a run most, the pools, and `params` for every other
parameter. The first task, `plan`, refuses what is wrong before a GPU is asked for, and hands each step its own section
of parameters, so that a change to one section leaves the cache of all steps before it valid.
"""

import dataclasses
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
from components.image import IMAGE
from components.ingest.component import ingest
from components.plan.component import plan
from components.pool.component import pool
from components.predict.component import predict
from components.register.component import register
from components.report_status.component import report_status
from components.stage1.component import stage1, stage1_job
from components.stage2.component import stage2, stage2_job
from components.stratify.component import stratify
from components.tune_thresholds.component import tune_thresholds
from components.validate.component import validate
from fairvlm_core.cohort.adapters import ADAPTERS
from fairvlm_core.errors import ConfigError
from fairvlm_core.evaluation import CRITERIA
from fairvlm_core.steps import STEPS, step_module
from fairvlm_core.steps.base_models import PRESETS
from pipelines.pools import STEP_POOLS, TRAINING, cluster_named, described, place

PARAMS_FILE = Path(__file__).parent.parent / "params.yaml"
CLUSTER = "own-labels"
DAY = 24 * 60 * 60
CONFIG_MAP, DVC_SECRET = "fairvlm", "fairvlm-dvc"
SECRET_KEYS = ("GIT_TOKEN", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
# The fields of the form that choose from a list; kfp itself has no way to say so, see compile.py.
POOLS = {f"{step}_pool": tuple(cluster_named(CLUSTER).pools) for step in STEP_POOLS}
LITERALS = {
    "ingest_dataset": tuple(ADAPTERS),
    "base_models_preset": PRESETS,
    "compare_criterion": CRITERIA,
    **POOLS,
}
# The fields of the form that are fields of a step's section.
FORM = ("ingest.dataset", "base_models.preset", "compare.criterion", "register.registered_name")


def default_params() -> dict[str, dict[str, Any]]:
    """The sections of `params.yaml`; null is left out, for kfp compiles no null into a mapping.

    Raises:
        ConfigError: where null is not the step's own default, so that leaving it out would change the run.
    """
    sections = yaml.safe_load(PARAMS_FILE.read_text())
    found = {}
    for step in STEPS:
        given, own = sections.get(step) or {}, step_module(step).Config()
        for name, value in given.items():
            if value is None and getattr(own, name, None) is not None:
                raise ConfigError(
                    f"{step}.{name} is null, which a compiled pipeline cannot say.",
                    where=f"{PARAMS_FILE}, section {step}",
                    mend="Give it when a run is started: fairvlm submit --params FILE.",
                )
        found[step] = {name: value for name, value in given.items() if value is not None}
    return found


def graph(default: Mapping[str, Mapping[str, Any]], *, cluster: str = CLUSTER, models: str = "", nodes: int = 1) -> Any:
    """The pipeline with these sections of parameters as its defaults, for the pools of a cluster.

    One of them decides the wiring, and that is fixed when the pipeline is compiled: with `fair_moe.init_from` stage2,
    Fair-MoE waits for Stage 2, beside which it would train otherwise.

    Args:
        default: step -> field -> value.
        cluster: one of `CLUSTERS`.
        models: claim of a volume with base models, mounted at /models.
        nodes: over how many nodes the two stages of FairMed-VLM are trained; more than one makes them TrainJobs.

    Raises:
        ConfigError: for a cluster that is not there, or whose pools do not do for a step, or less than one node.
    """
    if nodes < 1:
        raise ConfigError(f"There are no {nodes} nodes.", where="--nodes", mend="Give 1, or how many there shall be.")
    stages = {"stage1": stage1, "stage2": stage2} if nodes == 1 else {"stage1": stage1_job, "stage2": stage2_job}
    # Where the workspace is, and what a TrainJob needs besides; the nodes of a job write to the same volume.
    where = {"workspace": dsl.WORKSPACE_PATH_PLACEHOLDER}
    several = {} if nodes == 1 else {"nodes": nodes, "image": IMAGE}
    shared = {} if nodes == 1 else {"accessModes": ["ReadWriteMany"]}
    on = dataclasses.replace(cluster_named(cluster), models=models)
    proposed = {key: default[key.partition(".")[0]][key.partition(".")[2]] for key in FORM}

    @dsl.pipeline(
        name="fairvlm",
        description="Stratify a cohort, train FairMed-VLM and Fair-MoE, evaluate fairness, register the best model.",
        pipeline_config=dsl.PipelineConfig(
            # Checkpoints outlive a pod here, so that a training step that is tried again goes on where it was.
            workspace=dsl.WorkspaceConfig(size="200Gi", kubernetes=dsl.KubernetesWorkspaceConfig(shared)),
            active_deadline_seconds=7 * DAY,
            ttl_seconds_after_success=7 * DAY,
            ttl_seconds_after_failure=30 * DAY,
        ),
    )
    def fairvlm(
        fetch_dataset_repo: str = "",
        fetch_dataset_revision: str = "",
        fetch_dataset_path: str = "",
        ingest_dataset: str = proposed["ingest.dataset"],
        base_models_preset: str = proposed["base_models.preset"],
        stage1_pool: str = STEP_POOLS["stage1"],
        stage2_pool: str = STEP_POOLS["stage2"],
        fair_moe_pool: str = STEP_POOLS["fair_moe"],
        predict_pool: str = STEP_POOLS["predict"],
        compare_criterion: str = proposed["compare.criterion"],
        register_registered_name: str = proposed["register.registered_name"],
        params: dict = {},  # noqa: B006 - kfp reads it once
    ):
        """Bring the dataset, prepare the cohort, train three models, compare them and the champion, register the best.

        Args:
            fetch_dataset_repo: DVC repository of the release; empty for the generated cohort.
            fetch_dataset_revision: commit, tag or branch of that repository.
            fetch_dataset_path: folder of the release in that repository.
            ingest_dataset: the release's adapter.
            base_models_preset: tiny, small or published base models.
            stage1_pool: node pool of Stage 1; and so on for the other steps.
            compare_criterion: what selects the model, on validation.
            register_registered_name: name in the model registry.
            params: any other parameter, as in params.yaml: {"stage1": {"epochs": 5}}.
        """
        ended = place(report_status(), "report_status", on=on).set_caching_options(False)
        kubernetes.use_config_map_as_env(ended, CONFIG_MAP, {"FAIRVLM_WEBHOOK": "FAIRVLM_WEBHOOK"}, optional=True)
        with dsl.ExitHandler(ended, name="run"):
            chosen = {
                "stage1": stage1_pool,
                "stage2": stage2_pool,
                "fair_moe": fair_moe_pool,
                "predict": predict_pool,
            }
            pools = described(on)
            planned = plan(
                defaults=dict(default),
                params=params,
                pools=pools,
                repo=fetch_dataset_repo,
                revision=fetch_dataset_revision,
                path=fetch_dataset_path,
                ingest_dataset=ingest_dataset,
                base_models_preset=base_models_preset,
                compare_criterion=compare_criterion,
                register_registered_name=register_registered_name,
                **{f"{step}_pool": name for step, name in chosen.items()},
            )
            # A branch may have moved since the last run, which a cache would not see.
            place(planned, "plan", on=on).set_caching_options(False)
            section = planned.outputs
            asked = {}
            for step, name in chosen.items():
                found = pool(pools=pools, name=name, step=step, preset=base_models_preset).after(planned)
                asked[step] = place(found.set_display_name(f"pool-{step}"), "pool", on=on)

            fetched = fetch_dataset(
                repo=fetch_dataset_repo,
                commit=section["commit"],
                path=fetch_dataset_path,
                data_hash=section["data_hash"],
            )
            release = place(fetched, "fetch_dataset", on=on).set_retry(3, backoff_duration="30s").outputs["out"]
            for task in (planned, fetched):
                kubernetes.use_secret_as_env(task, DVC_SECRET, {key: key for key in SECRET_KEYS}, optional=True)

            images = place(ingest(params=section["ingest"], root=release), "ingest", on=on).outputs["out"]
            validation = place(validate(params=section["validate"], cohort=images), "validate", on=on).outputs["out"]
            stratified = stratify(params=section["stratify"], cohort=images, validation=validation)
            cohort = place(stratified, "stratify", on=on).outputs["out"]
            base = place(base_models(params=section["base_models"], cohort=cohort), "base_models", on=on).outputs["out"]

            data = {"cohort": cohort, "images": images, "base": base}
            trained = {"stage1": stages["stage1"](params=section["stage1"], **data, **where, **several)}
            first = trained["stage1"].outputs["out"]
            trained["stage2"] = stages["stage2"](params=section["stage2"], **data, stage1=first, **where, **several)
            second = trained["stage2"].outputs["out"]
            start = second if default["fair_moe"].get("init_from") == "stage2" else base
            trained["fair_moe"] = fair_moe(params=section["fair_moe"], **data, start=start, **where)
            for step in TRAINING:
                # A node that is taken away is no reason to lose a day: the next pod resumes from the checkpoint.
                place(trained[step], step, asked[step], on=on).set_retry(2, backoff_duration="60s")
            models = {name: task.outputs["out"] for name, task in trained.items()}

            evaluations = {}
            for name, model in models.items():
                predicted = place(
                    predict(params=section["predict"], model=model, **data), "predict", asked["predict"], on=on
                )
                predictions = predicted.set_display_name(f"predict-{name}").outputs["out"]
                tuned = tune_thresholds(params=section["tune_thresholds"], predictions=predictions)
                place(tuned, "tune_thresholds", on=on).set_display_name(f"tune-thresholds-{name}")
                evaluated = evaluate(
                    params=section["evaluate"], predictions=predictions, thresholds=tuned.outputs["out"]
                )
                place(evaluated, "evaluate", on=on).set_display_name(f"evaluate-{name}")
                evaluations[name] = evaluated.outputs["out"]

            # An alias can move between two runs, which a cache would not see.
            judged = champion(params=section["champion"], **data)
            place(judged, "champion", asked["predict"], on=on).set_caching_options(False)
            evaluations["champion"] = judged.outputs["out"]

            compared = place(compare(params=section["compare"], strata=cohort, **evaluations), "compare", on=on)
            registered = register(
                params=section["register"],
                sections=section["sections"],
                comparison=compared.outputs["out"],
                base=base,
                cohort=cohort,
                **models,
                dataset_repo=fetch_dataset_repo,
                dataset_path=fetch_dataset_path,
                dataset_commit=section["commit"],
                dataset_hash=section["data_hash"],
                image=IMAGE,
                kfp_run_id=dsl.PIPELINE_JOB_ID_PLACEHOLDER,
            )
            place(registered, "register", on=on).set_retry(2, backoff_duration="30s").set_caching_options(False)
            # Where the registry is belongs to the cluster, not to a run; without the config map MLflow's own variables
            # hold.
            for task in (judged, registered):
                kubernetes.use_config_map_as_env(
                    task, CONFIG_MAP, {"MLFLOW_TRACKING_URI": "MLFLOW_TRACKING_URI"}, optional=True
                )

    return fairvlm


fairvlm = graph(default_params())
