"""A registered model loads where only what its requirements name is installed: neither this package nor its others."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections import defaultdict
from importlib.metadata import PackageNotFoundError, distribution, distributions
from pathlib import Path

import mlflow
import pandas as pd
import pipeline_outputs
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from PIL import Image

from fairvlm_core.cohort.images import ImageStore
from fairvlm_core.cohort.table import read_cohort
from fairvlm_core.registry import tracking, versions
from fairvlm_core.steps import execute, register

pytestmark = pytest.mark.slow
PROGRAM = """
import importlib.util, json, sys
sys.path.append(sys.argv[1])
absent = [name for name in sys.argv[4].split() if importlib.util.find_spec(name) is None]
import mlflow, pandas as pd
mlflow.set_tracking_uri(sys.argv[2])
loaded = mlflow.pyfunc.load_model(sys.argv[3])
pictures = [bytes.fromhex(line) for line in sys.stdin.read().split()]
seen = loaded.predict(pd.DataFrame({"image": pictures}))
import fairvlm_core
json.dump({"absent": absent, "code": fairvlm_core.__file__, "seen": seen.to_dict("list")}, open(sys.argv[5], "w"))
"""
NOT_NEEDED = ("fairvlm_core", "pytest", "dvc", "kfp", "great_expectations", "fairlearn", "geomloss", "pip")


def closure(lines):
    """Names of the installed distributions that pip would install for these requirements."""
    found, waiting = {}, [Requirement(line) for line in lines]
    while waiting:
        wanted = waiting.pop()
        name = canonicalize_name(wanted.name)
        extras = {"", *wanted.extras}
        if found.get(name, set()) >= extras:
            continue
        found[name] = found.get(name, set()) | extras
        try:
            needs = distribution(wanted.name).requires or []
        except PackageNotFoundError:
            pytest.fail(f"{wanted} is required and not installed")
        for need in map(Requirement, needs):
            if need.marker is None or any(need.marker.evaluate({"extra": extra}) for extra in extras):
                waiting.append(need)
    return set(found)


def linked(names, site):
    """A folder like site-packages with links to what these distributions, and no others, have installed."""
    owners, places = defaultdict(set), defaultdict(set)
    for found in distributions():
        name = canonicalize_name(found.metadata["Name"])
        for file in found.files or []:
            if ".." not in file.parts:
                owners[file.parts[0]].add(name)
                places[file.parts[0]].add((name, file, Path(str(found.locate_file("")))))
    for top, whose in owners.items():
        if whose <= names:
            _, _, root = next(iter(places[top]))
            (site / top).symlink_to(root / top)
        elif whose & names:  # a folder that several packages share, such as google/
            for name, file, root in places[top]:
                if name in names:
                    (site / file).parent.mkdir(parents=True, exist_ok=True)
                    (site / file).symlink_to(root / file)
    return site


@pytest.fixture(scope="module")
def registered(tmp_path_factory):
    """Folders of a pipeline, and the database in which version 1 is stage2 and version 2 is fair_moe."""
    root = tmp_path_factory.mktemp("registered")
    folders = pipeline_outputs.write_outputs(root / "outputs", "binary")
    inputs = {name: folders[name] for name in register.INPUTS if name in folders}
    with pytest.MonkeyPatch.context() as patch:
        for name in ("MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID", "FAIRVLM_BASE"):
            patch.delenv(name, raising=False)
        patch.chdir(root)
        for model in ("stage2", "fair_moe"):
            execute("register", register.Config(model=model), inputs, {"out": root / model})
        yield folders, f"sqlite:///{root}/mlflow.db"


@pytest.mark.parametrize("number", ["1", "2"])
def test_a_version_predicts_the_same_where_only_its_requirements_are(number, registered, tmp_path):
    folders, uri = registered
    with tracking.tracking(uri):
        artifact = versions.fetch(versions.find("fairvlm", number), tmp_path / "version")
    lines = (artifact.parent.parent / "requirements.txt").read_text().split()
    site = tmp_path / "site"
    site.mkdir()
    linked(closure(lines), site)

    pictures = []
    for pixels in ImageStore.open(folders["cohort"]).read(
        read_cohort(folders["cohort"]).column("image")[:9].to_pylist()
    ):
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, format="PNG")
        pictures.append(buffer.getvalue())
    told = tmp_path / "told.json"
    # Isolated, and without the site-packages of this environment.
    words = ["-I", "-S", "-c", PROGRAM, str(site), uri, f"models:/fairvlm/{number}", " ".join(NOT_NEEDED), str(told)]
    done = subprocess.run(
        [sys.executable, *words],
        input="\n".join(picture.hex() for picture in pictures),
        env={**os.environ, "HF_HUB_OFFLINE": "1", "MLFLOW_DISABLE_TELEMETRY": "true"},
        cwd="/",
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    fresh = json.loads(told.read_text())
    assert fresh["absent"] == list(NOT_NEEDED)
    assert Path(fresh["code"]).parent.parent.name == "code"  # that which travelled with the model
    with tracking.tracking(uri):
        here = mlflow.pyfunc.load_model(f"models:/fairvlm/{number}").predict(pd.DataFrame({"image": pictures}))
    assert fresh["seen"]["score_glaucoma"] == pytest.approx(here["score_glaucoma"].tolist(), abs=1e-6)
    assert {name: fresh["seen"][name] for name in ("label_glaucoma", "version")} == {
        name: here[name].tolist() for name in ("label_glaucoma", "version")
    }


def test_what_is_not_required_is_not_there(tmp_path):
    """The test above could not fail if the folder of links held more than what is required."""
    names = closure([f"mlflow=={mlflow.__version__}"])
    assert {"mlflow", "pandas", "sqlalchemy"} <= names
    assert not names & {"torch", "fairvlm", "transformers", "pytest"}
    site = tmp_path / "site"
    site.mkdir()
    linked(names, site)
    shown = {path.name for path in site.iterdir()}
    assert {"mlflow", "pandas"} <= shown
    assert not shown & {"torch", "fairvlm_core", "transformers", "pytest", "pip"}
