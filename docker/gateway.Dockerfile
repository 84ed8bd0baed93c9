# The gateway, the schema's migrations and the operator's commands. No torch: it never loads a model.
FROM python:3.11-slim-bookworm AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /source
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY app ./app
COPY worker ./worker
COPY archrepair_core ./archrepair_core
COPY archrepair_client ./archrepair_client
COPY migrations ./migrations
RUN python -m venv /venv \
    && /venv/bin/pip install -c constraints.txt ".[postgres,telemetry]"

FROM python:3.11-slim-bookworm
ENV PATH=/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    ARCHREPAIR_STATE_DIR=/var/lib/archrepair
COPY --from=build /venv /venv
# By number, so that Kubernetes can see that it is not root. Nothing is written outside the state directory and /tmp.
RUN install -d -o 10001 -g 10001 -m 0700 /var/lib/archrepair
USER 10001:10001
WORKDIR /var/lib/archrepair
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=20s --retries=3 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/healthz', timeout=4)"]
CMD ["python", "-m", "uvicorn", "--factory", "app.main:create_app", "--host", "0.0.0.0", "--port", "8000", \
     "--no-access-log", "--no-server-header", "--timeout-graceful-shutdown", "25"]
