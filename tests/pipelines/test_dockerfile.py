"""The rules for the image that a general linter does not know; CI runs hadolint beside them."""

import re
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
    assert {rest.split()[0] for rest in of(instructions, "FROM")} == {"${BASE_IMAGE}"}
    assert len(of(instructions, "FROM")) == 2


def test_the_container_is_not_root_and_says_so_by_number(instructions):
    (user,) = of(last_stage(instructions), "USER")
    assert all(int(part) >= 1000 for part in user.split(":"))
    after = last_stage(instructions)[[key for key, _ in last_stage(instructions)].index("USER") :]
    assert {key for key, _ in after} <= {"USER", "CMD"}


def test_only_the_install_layer_uses_the_network(instructions):
    runs = of(instructions, "RUN")
    (install,) = [run for run in runs if "requirements.lock" in run]
    for run in runs:
        assert not re.search(r"\b(curl|wget|git|apt-get|apk|dnf)\b", run)
        if run is not install:
            assert "pip" not in run or ("--no-index" in run and "--no-build-isolation" in run)
    assert not of(instructions, "ADD")
    extra = re.findall(r'"([^"]+)"', install)
    assert all("==" in requirement for requirement in extra)


def test_a_change_to_the_code_does_not_install_the_lock_again(instructions):
    text = [f"{key} {rest}" for key, rest in instructions]
    install = next(i for i, line in enumerate(text) if line.startswith("RUN") and "requirements.lock" in line)
    code = next(i for i, line in enumerate(text) if line.startswith("COPY fairvlm_core"))
    assert install < code
    assert not any(re.search(r"COPY (\.|fairvlm_core)", line) for line in text[:install])


def test_nothing_is_looked_up_or_reported_at_run_time(instructions):
    (environment,) = of(last_stage(instructions), "ENV")
    values = dict(pair.split("=", 1) for pair in environment.split())
    assert QUIET.items() <= values.items()
    assert values["HF_HUB_OFFLINE"] == values["TRANSFORMERS_OFFLINE"] == "1"


def test_the_build_context_is_an_allow_list_with_all_that_is_copied(instructions):
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert lines[0] == "*"
    allowed = {line[1:].rstrip("/") for line in lines if line.startswith("!")}
    copied = {
        source for rest in of(instructions, "COPY") if not rest.startswith("--from") for source in rest.split()[:-1]
    }
    assert copied == allowed
    assert all((ROOT / source).exists() for source in copied)
