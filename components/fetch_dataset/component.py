"""Kubeflow component `fetch_dataset`: the first task of a run, and the only one that downloads."""

from kfp import dsl

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def fetch_dataset(repo: str, revision: str, path: str, out: dsl.Output[dsl.Dataset]):
    """Bring one folder of a DVC repository at one revision; without a repository, an empty folder."""
    import subprocess
    import sys
    from pathlib import Path

    from fairvlm_core.errors import CohortError
    from fairvlm_core.files import folder_written

    with folder_written(Path(out.path)) as folder:
        if repo:
            if not (revision and path):
                mend = "Give all of repository, revision (a commit or tag) and path; or none for the generated cohort."
                raise CohortError("The dataset's revision or path is empty.", where=repo, mend=mend)
            folder.rmdir()  # DVC would put the dataset inside a folder that exists
            # What follows `--` cannot be read as an option, whatever the run's form said.
            command = [sys.executable, "-m", "dvc", "get", "--rev", revision, "--out", str(folder), "--", repo, path]
            subprocess.run(command, check=True)
            if not folder.is_dir():
                folder.unlink()
                raise CohortError(
                    "The dataset is a file.", where=f"{repo}, {path}", mend="Give the path of its folder."
                )
