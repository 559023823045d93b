"""Kubeflow component `report_status`: the last task of a run, however it ended."""

from kfp import dsl

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def report_status(status: dsl.PipelineTaskFinalStatus, summary: dsl.Output[dsl.Markdown]):
    """Say how the run ended, and tell the address in FAIRVLM_WEBHOOK, if there is one."""
    from fairvlm_core.kubeflow.status import tell

    tell(
        state=status.state,
        run=status.pipeline_job_resource_name,
        task=status.pipeline_task_name,
        error=status.error_message or "",
        summary=summary.path,
    )
