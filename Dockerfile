# One image for all steps: docs/containers.md. The base needs Python 3.11 or newer with venv; pass another one with
# --build-arg BASE_IMAGE=...
ARG BASE_IMAGE=python:3.11-slim-bookworm

FROM ${BASE_IMAGE} AS fetch
# Another index to take PyTorch from: one for your version of CUDA, or one without CUDA.
ARG TORCH_INDEX=
WORKDIR /build
# The only layer that uses the network; it is built again only when these files change. The lock also holds what tests
# need, so it only says which versions. A pip.conf can be lent with --secret id=pip,src=FILE.
COPY pyproject.toml requirements.lock containers/requirements.py ./
RUN --mount=type=secret,id=pip,target=/etc/pip.conf \
    python3 -m venv /build/venv \
    && /build/venv/bin/pip install --no-cache-dir "setuptools==84.2.1" \
    && python3 requirements.py pyproject.toml > requirements.txt \
    && /build/venv/bin/pip wheel --no-cache-dir --wheel-dir /wheels ${TORCH_INDEX:+--extra-index-url "${TORCH_INDEX}"} \
        --requirement requirements.txt --constraint requirements.lock "setuptools==84.2.1"

# A folder of your own can stand in for this stage, and nothing is fetched: --build-context wheels=FOLDER
FROM scratch AS wheels
COPY --from=fetch /wheels /

FROM ${BASE_IMAGE} AS project
WORKDIR /build
COPY requirements.lock ./
RUN --mount=type=bind,from=wheels,target=/wheels \
    python3 -m venv /opt/fairvlm \
    && /opt/fairvlm/bin/pip install --no-cache-dir --no-index --find-links /wheels "setuptools==84.2.1"
COPY pyproject.toml README.md LICENSE ./
COPY fairvlm_core fairvlm_core
COPY experiments experiments
RUN /opt/fairvlm/bin/pip install --no-cache-dir --no-index --no-deps --no-build-isolation --root /staged .

FROM ${BASE_IMAGE}
# Podman knows a layer by what was copied before, its arguments and its command, and not by the wheels that it is lent.
ARG TORCH_INDEX=
ARG WHEELS=
WORKDIR /usr/share/fairvlm
COPY pyproject.toml requirements.lock containers/requirements.py ./
# Bytecode is compiled on all cores at the end, since it cannot be at run time; a few packages hold files that are no
# Python 3.
RUN --mount=type=bind,from=wheels,target=/wheels \
    python3 -m venv /opt/fairvlm \
    && python3 requirements.py pyproject.toml > requirements.txt \
    && /opt/fairvlm/bin/pip install --no-cache-dir --no-compile --no-index --find-links /wheels \
        --requirement requirements.txt --constraint requirements.lock \
    && { /opt/fairvlm/bin/python -m compileall -q -j 0 /opt/fairvlm/lib > /dev/null || true; }
# Anything may run as user 10001; a platform that gives a container another user gives it group 0, hence the group.
RUN echo "fairvlm:x:10001:0::/tmp:/usr/sbin/nologin" >> /etc/passwd \
    && install --directory --owner=10001 --group=0 --mode=0775 /workspace
# In a layer of its own: after a change to the code, this is all that is pushed and pulled.
COPY --from=project /staged/opt/fairvlm /opt/fairvlm
COPY containers/sbom.py /usr/share/sbom/
RUN /opt/fairvlm/bin/python /usr/share/sbom/sbom.py --of fairvlm > /usr/share/sbom/fairvlm.cdx.json
# A step reads models from folders and reports to nobody; Kubeflow starts `python3`, which must be this one. Only /tmp
# needs to be writable, so the root file system can be read-only.
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
    HOME=/tmp \
    USER=fairvlm \
    XDG_CACHE_HOME=/tmp/cache \
    HF_HOME=/tmp/cache/huggingface \
    MPLCONFIGDIR=/tmp/cache/matplotlib \
    NUMBA_CACHE_DIR=/tmp/cache/numba
WORKDIR /workspace
# Last, because they differ from build to build.
ARG VERSION=0.1.0
ARG REVISION=unknown
ARG SOURCE=unknown
# A registered model says with which commit it was trained.
ENV FAIRVLM_GIT_COMMIT=${REVISION}
LABEL org.opencontainers.image.title="fairvlm" \
    org.opencontainers.image.description="Fairness-aware training of medical vision-language models." \
    org.opencontainers.image.licenses="Apache-2.0" \
    org.opencontainers.image.version="${VERSION}" \
    org.opencontainers.image.revision="${REVISION}" \
    org.opencontainers.image.source="${SOURCE}"
# By number, so that Kubernetes can see that it is not root.
USER 10001:0
CMD ["fairvlm", "--help"]
