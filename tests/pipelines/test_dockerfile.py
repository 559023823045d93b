"""The rules for the image that a general linter does not know; CI runs hadolint beside them."""

import re
import runpy
from pathlib import Path

import pytest

import fairvlm_core
from fairvlm_core.cli import QUIET

ROOT = Path(fairvlm_core.__file__).parent.parent


@pytest.fixture(scope="module")
def instructions():
    """The Dockerfile as (keyword, rest), continued lines joined, comments left out."""
    lines = [line for line in (ROOT / "Dockerfile").read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [(line.split(None, 1)[0].upper(), line.split(None, 1)[1]) for line in joined.splitlines() if line.strip()]


def of(instructions, keyword):
    return [rest for key, rest in instructions if key == keyword]


def last_stage(instructions):
    start = max(i for i, (key, _) in enumerate(instructions) if key == "FROM")
    return instructions[start:]


def test_the_base_image_is_an_argument_with_a_pinned_default(instructions):
    assert instructions[0][0] == "ARG"
    name, default = instructions[0][1].split("=")
    assert name == "BASE_IMAGE"
    assert ":" in default
    assert not default.endswith(":latest")
    # An empty stage passes the wheels on; all else stands on the same base, so that what is built fits where it runs.
    assert {rest.split()[0] for rest in of(instructions, "FROM")} == {"${BASE_IMAGE}", "scratch"}
    assert last_stage(instructions)[0] == ("FROM", "${BASE_IMAGE}")


def test_the_container_is_not_root_and_says_so_by_number(instructions):
    (user,) = of(last_stage(instructions), "USER")
    number, group = map(int, user.split(":"))
    assert number >= 10000
    assert group == 0  # the group of whatever user a platform chooses instead
    after = last_stage(instructions)[[key for key, _ in last_stage(instructions)].index("USER") :]
    assert {key for key, _ in after} <= {"USER", "CMD"}


def test_only_one_layer_uses_the_network_and_it_is_not_in_the_last_stage(instructions):
    (fetching,) = [run for run in of(instructions, "RUN") if "pip wheel" in run]
    assert fetching not in of(last_stage(instructions), "RUN")
    for run in of(instructions, "RUN"):
        assert not re.search(r"\b(curl|wget|git|apt-get|apk|dnf)\b", run)
        assert run == fetching or "pip" not in run or "--no-index" in run
    assert not of(instructions, "ADD")
    assert all("==" in extra for extra in re.findall(r'"([\w.-]+==?[\w.]+)"', fetching))


def test_every_install_keeps_to_the_lock_and_leaves_no_cache(instructions):
    runs = [run for run in of(instructions, "RUN") if re.search(r"pip (install|wheel)", run)]
    assert len(runs) == 4
    for run in runs:
        assert "--no-cache-dir" in run
        assert "--constraint" in run or "--no-deps" in run or re.search(r'"setuptools==[\d.]+"$', run), run


def test_a_change_to_the_code_does_not_install_the_lock_again(instructions):
    for start, stage in stages(instructions):
        code = [i for i, line in enumerate(stage) if re.search(r"COPY (\.|fairvlm_core|--from=project)", line)]
        locked = [i for i, line in enumerate(stage) if line.startswith("RUN") and "--constraint" in line]
        assert not code or not locked or max(locked) < min(code), start


def test_a_change_to_the_lock_or_the_wheels_installs_again(instructions):
    """Podman knows a layer by what stands above it and its command, and not by the wheels that were lent to it."""
    for start, stage in stages(instructions):
        for i, line in enumerate(stage):
            if "from=wheels" in line and "--constraint" in line:
                assert any(re.search(r"COPY .*requirements\.lock", above) for above in stage[:i]), start
                assert {"ARG TORCH_INDEX=", "ARG WHEELS="} <= set(stage[:i]), start


def stages(instructions):
    """The lines of each stage, under its FROM."""
    text = [f"{key} {rest}" for key, rest in instructions]
    starts = [i for i, line in enumerate(text) if line.startswith("FROM ")]
    return [(text[a], text[a:b]) for a, b in zip(starts, [*starts[1:], len(text)], strict=True)]


def test_nothing_is_looked_up_or_reported_at_run_time(instructions):
    environment = " ".join(of(last_stage(instructions), "ENV"))
    values = dict(pair.split("=", 1) for pair in environment.split())
    assert QUIET.items() <= values.items()
    assert values["HF_HUB_OFFLINE"] == values["TRANSFORMERS_OFFLINE"] == "1"


def test_all_that_is_written_at_run_time_is_under_tmp(instructions):
    environment = " ".join(of(last_stage(instructions), "ENV"))
    values = dict(pair.split("=", 1) for pair in environment.split())
    for name in ("HOME", "XDG_CACHE_HOME", "HF_HOME", "MPLCONFIGDIR", "NUMBA_CACHE_DIR"):
        assert values[name].startswith("/tmp"), name


def test_the_labels_say_version_commit_and_source(instructions):
    (labels,) = of(last_stage(instructions), "LABEL")
    arguments = {rest.split("=")[0] for rest in of(last_stage(instructions), "ARG")}
    for name in ("version", "revision", "source"):
        assert f'org.opencontainers.image.{name}="${{{name.upper()}}}"' in labels
        assert name.upper() in arguments


def test_the_build_context_is_an_allow_list_with_all_that_is_copied(instructions):
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert lines[0] == "*"
    allowed = {line[1:].rstrip("/") for line in lines if line.startswith("!")}
    copied = {
        source for rest in of(instructions, "COPY") if not rest.startswith("--from") for source in rest.split()[:-1]
    }
    assert copied == allowed
    assert all((ROOT / source).exists() for source in copied)


def test_the_list_of_parts_names_every_distribution_that_is_locked_and_here():
    sbom = runpy.run_path(str(ROOT / "containers" / "sbom.py"), run_name="sbom")
    listed = sbom["document"]("fairvlm")
    assert listed == sbom["document"]("fairvlm")
    found = {part["purl"].removeprefix("pkg:pypi/"): part for part in listed["components"] if "pypi" in part["purl"]}
    for line in (ROOT / "requirements.lock").read_text().split():
        name, version = line.split("==")
        reference = f"{re.sub(r'[-_.]+', '-', name).lower()}@{version}"
        assert any(purl == reference or purl.startswith(f"{reference}%2B") for purl in found), name
    references = [part["bom-ref"] for part in listed["components"]]
    assert len(set(references)) == len(references)
    known = {*references, listed["metadata"]["component"]["bom-ref"]}
    needs = {entry["ref"]: entry["dependsOn"] for entry in listed["dependencies"]}
    assert all({reference, *needed} <= known for reference, needed in needs.items())
    (torch,) = (purl for purl in needs[listed["metadata"]["component"]["bom-ref"]] if "/torch@" in purl)
    assert any("/sympy@" in purl for purl in needs[torch])
    assert found["kfp@2.17.0"]["licenses"]


def test_a_model_will_say_which_commit_trained_it(instructions):
    assert "FAIRVLM_GIT_COMMIT=${REVISION}" in of(last_stage(instructions), "ENV")
