"""Kubeflow component `fetch_dataset`: the only task that downloads."""

from kfp import dsl

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def fetch_dataset(repo: str, commit: str, path: str, data_hash: str, out: dsl.Output[dsl.Dataset]):
    """Bring one folder of a DVC repository as it was at a commit; without a repository, an empty folder."""
    from pathlib import Path

    from fairvlm_core.kubeflow.fetch import fetch

    fetch(repo, commit, path, Path(out.path))
    out.metadata.update({"commit": commit, "path": path, "data_hash": data_hash})
