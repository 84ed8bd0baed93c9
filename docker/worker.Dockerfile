# A worker with the engine. `--target cpu` (the default) or `--target cuda`: the same code, another torch.
#
# PyPI's torch for x86-64 is built with CUDA and also runs without a GPU, but is large. For a small CPU image pass the
# index of torch's CPU builds, which pytorch.org names: `--build-arg TORCH_INDEX=…`.
FROM python:3.11-slim-bookworm AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /source
RUN python -m venv /venv
COPY constraints.txt ./
ARG TORCH_INDEX=""
# In a layer of its own: it is by far the largest and changes least.
RUN /venv/bin/pip install -c constraints.txt ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} torch torchvision
COPY pyproject.toml README.md LICENSE ./
COPY app ./app
COPY worker ./worker
COPY archrepair_core ./archrepair_core
COPY archrepair_client ./archrepair_client
COPY migrations ./migrations
RUN /venv/bin/pip install -c constraints.txt ".[engine,postgres,telemetry]"

FROM python:3.11-slim-bookworm AS base
ENV PATH=/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HOME=/var/lib/archrepair \
    ARCHREPAIR_STATE_DIR=/var/lib/archrepair
COPY --from=build /venv /venv
# By number, so that Kubernetes can see that it is not root. Nothing is written outside the state directory and /tmp.
RUN install -d -o 10001 -g 10001 -m 0700 /var/lib/archrepair
USER 10001:10001
WORKDIR /var/lib/archrepair
# Its main process is process 1 of the container; while that lives it sweeps, and the database tells whether it works.
HEALTHCHECK --interval=15s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import pathlib, sys; sys.exit(b'worker.celery_app' not in pathlib.Path('/proc/1/cmdline').read_bytes())"]
CMD ["python", "-P", "-m", "worker.celery_app"]

FROM base AS cuda
# What the NVIDIA container runtime shall bring into the container.
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility

FROM base AS cpu
