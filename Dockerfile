# docker build -t minicpmv .                                CPU
# docker build -t minicpmv:cuda --build-arg VARIANT=cuda .  NVIDIA GPU
#
# Both variants start from the same Python image: torch's CUDA wheels bring their own libraries, and the driver comes
# from the host.

ARG PYTHON_IMAGE=docker.io/library/python:3.12-slim

FROM ${PYTHON_IMAGE} AS build
ARG VARIANT=cpu
# Searched for torch in the cpu variant; the cuda variant takes torch from the default index.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
# For the kernels of model/native; no compiler reaches the final stage.
RUN apt-get update && apt-get install --yes --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
RUN python3 -m venv /opt/minicpmv
ENV PATH=/opt/minicpmv/bin:${PATH}
WORKDIR /src

# The dependencies are a layer of their own: without the packages beside it, the project is its list of them.
COPY pyproject.toml constraints.txt ./
RUN case "${VARIANT}" in \
        cpu) pip install --constraint constraints.txt --extra-index-url "${TORCH_INDEX}" . ;; \
        cuda) pip install --constraint constraints.txt . ;; \
        *) echo "VARIANT is cpu or cuda, not ${VARIANT}" >&2; exit 1 ;; \
    esac

COPY README.md LICENSE NOTICE setup.py ./
COPY model model
COPY server server
RUN pip install --no-deps --force-reinstall . \
    && cd / && python -c "from model.native import library; print(library.status()); assert library.is_available()"

FROM ${PYTHON_IMAGE}
ARG VARIANT=cpu
LABEL org.opencontainers.image.title="minicpmv" \
      org.opencontainers.image.description="OpenAI-compatible inference server for MiniCPM-V 2.0 and 1.0 (${VARIANT})" \
      org.opencontainers.image.licenses="Apache-2.0"
RUN groupadd --gid 10001 minicpmv \
    && useradd --uid 10001 --gid 10001 --home-dir /cache --no-create-home --shell /usr/sbin/nologin minicpmv \
    && install --directory --owner=10001 --group=10001 /cache
# Triton compiles the code that launches its kernels when they are first used, and keeps it in the cache.
RUN if [ "${VARIANT}" = cuda ]; then \
        apt-get update && apt-get install --yes --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*; \
    fi
COPY --from=build /opt/minicpmv /opt/minicpmv
# Checkpoints named by hub id are downloaded to /cache; one mounted as a folder is only read.
ENV PATH=/opt/minicpmv/bin:${PATH} \
    PYTHONUNBUFFERED=1 \
    HF_HOME=/cache/huggingface \
    TRITON_CACHE_DIR=/cache/triton \
    MODELSCOPE_CACHE=/cache/modelscope
USER 10001:10001
WORKDIR /cache
VOLUME /cache
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=10m --retries=3 \
    CMD ["python3", "-c", "import http.client, os, sys; c = http.client.HTTPConnection('127.0.0.1', int(os.environ.get('MINICPMV_PORT', 8000)), timeout=4); c.request('GET', '/health/ready'); sys.exit(c.getresponse().status != 200)"]
ENTRYPOINT ["minicpmv"]
CMD ["serve", "--host", "0.0.0.0"]
