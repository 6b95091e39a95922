# docker build -t minicpmv .                                CPU
# docker build -t minicpmv:cuda --build-arg VARIANT=cuda .  NVIDIA GPU
#
# `make image VARIANT=cuda` adds version and commit as labels. Both variants start from the same Python image: torch's CUDA
# wheels bring their own libraries, and the driver comes from the host. x86-64 only: deploy/image/ has the hashes of those
# wheels. For a build that can be repeated, give the base by digest: --build-arg PYTHON_IMAGE=python@sha256:...

# The Python that the tests run with; the wheels' hashes are for it.
ARG PYTHON_IMAGE=docker.io/library/python:3.11-slim

# checkov:skip=CKV_DOCKER_7:the tag is in the argument above, which is not looked into
FROM ${PYTHON_IMAGE} AS build
ARG VARIANT=cpu
# Searched for torch in the cpu variant; the cuda variant takes torch from the default index.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
# g++ for the kernels of model/native, gcc for Triton's module. No compiler reaches the final stage.
# Their versions do not matter to the image: whatever the base's distribution has now, with its fixes.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install --yes --no-install-recommends gcc g++ && rm -rf /var/lib/apt/lists/*
RUN python3 -m venv /opt/minicpmv
ENV PATH=/opt/minicpmv/bin:${PATH}
WORKDIR /src

# The dependencies are a layer of their own. Every file is held against a hash, and nothing is built from source.
COPY deploy/image/${VARIANT}.txt requirements.txt
RUN case "${VARIANT}" in \
        cpu) index="--extra-index-url=${TORCH_INDEX}" ;; \
        *) index="" ;; \
    esac \
    && pip install --require-hashes --only-binary :all: ${index:+"${index}"} --requirement requirements.txt

COPY pyproject.toml README.md LICENSE NOTICE setup.py ./
COPY model model
COPY server server
# Without isolation, which would fetch a build tool without a hash: setuptools is among the dependencies.
RUN pip install --no-deps --no-build-isolation . \
    && pip uninstall --yes pip
WORKDIR /
# Fails where the kernels for CPUs were not compiled. On a GPU, Triton needs a module in C that it would compile at its
# first use; compiled here, it is found by model/gpu/driver_module.py.
RUN python -c "from model.native import library; print(library.status()); assert library.is_available()" \
    && if [ "${VARIANT}" = cuda ]; then python -m model.gpu.driver_module; fi

FROM ${PYTHON_IMAGE}
ARG VARIANT=cpu
ARG VERSION=unknown
ARG REVISION=unknown
ARG SOURCE=unknown
ARG PYTHON_IMAGE
LABEL org.opencontainers.image.title="minicpmv" \
      org.opencontainers.image.description="OpenAI-compatible inference server for MiniCPM-V 2.0 and 1.0 (${VARIANT})" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.source="${SOURCE}" \
      org.opencontainers.image.base.name="${PYTHON_IMAGE}"
RUN groupadd --gid 10001 minicpmv \
    && useradd --uid 10001 --gid 10001 --home-dir /cache --no-create-home --shell /usr/sbin/nologin minicpmv \
    && install --directory --owner=10001 --group=10001 /cache
COPY --from=build /opt/minicpmv /opt/minicpmv
# All that is written goes to /cache and /tmp, so the root may be read-only. Checkpoints named by hub id are downloaded to
# /cache, and Triton keeps its compiled kernels there; a checkpoint mounted as a folder is only read.
ENV PATH=/opt/minicpmv/bin:${PATH} \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HF_HOME=/cache/huggingface \
    TRITON_CACHE_DIR=/cache/triton \
    MODELSCOPE_CACHE=/cache/modelscope
USER 10001:10001
WORKDIR /cache
VOLUME /cache
EXPOSE 8000
STOPSIGNAL SIGTERM
# For another port set MINICPMV_PORT, rather than --port, which this would not see.
HEALTHCHECK --interval=10s --timeout=5s --start-period=10m --retries=3 \
    CMD ["python3", "-c", "import http.client, os, sys; c = http.client.HTTPConnection('127.0.0.1', int(os.environ.get('MINICPMV_PORT', 8000)), timeout=4); c.request('GET', '/health/ready'); sys.exit(c.getresponse().status != 200)"]
ENTRYPOINT ["minicpmv"]
CMD ["serve", "--host", "0.0.0.0"]
