# One image for all steps. The base needs Python 3.11 or newer with venv; pass another one with --build-arg BASE_IMAGE=...
ARG BASE_IMAGE=python:3.11-slim-bookworm

FROM ${BASE_IMAGE} AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /build
# The install layer is the last that uses the network; it is built again only when the lock changes.
COPY requirements.lock ./
RUN python3 -m venv /opt/fairvlm \
    && /opt/fairvlm/bin/pip install --no-cache-dir --requirement requirements.lock "setuptools==84.2.1"
COPY pyproject.toml README.md LICENSE ./
COPY fairvlm_core fairvlm_core
COPY experiments experiments
RUN /opt/fairvlm/bin/pip install --no-cache-dir --no-index --no-deps --no-build-isolation .

FROM ${BASE_IMAGE}
RUN useradd --uid 10001 --create-home fairvlm
COPY --from=build /opt/fairvlm /opt/fairvlm
# A step reads models from folders and reports to nobody; Kubeflow starts `python3`, which must be this one.
# hadolint ignore=DL3064
ENV PATH=/opt/fairvlm/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    HF_HUB_OFFLINE=1 \
    TRANSFORMERS_OFFLINE=1 \
    HF_HUB_DISABLE_TELEMETRY=1 \
    MLFLOW_DISABLE_TELEMETRY=true \
    GX_ANALYTICS_ENABLED=false \
    DVC_NO_ANALYTICS=true \
    DO_NOT_TRACK=1 \
    TOKENIZERS_PARALLELISM=false \
    NUMBA_CACHE_DIR=/tmp/numba
WORKDIR /home/fairvlm
# By number, so that Kubernetes can see that it is not root.
USER 10001:10001
CMD ["fairvlm", "--help"]
