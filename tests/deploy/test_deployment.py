"""docker/, docker-compose.yml and deploy/kubernetes as far as they can be checked without a container engine.

That the images build and run is not tested here: docs/operation.md says so.
"""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from sqlalchemy import text as sql

from app.shared.settings import Settings
from worker.hardware import WorkerSettings
from worker.limits import EngineLimits

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
DOCKERFILES = sorted((ROOT / "docker").glob("*.Dockerfile"))
KUSTOMIZATIONS = ("base", "overlays/gpu")
SECRETS = {
    "POSTGRES_PASSWORD": "postgres-password",
    "VALKEY_PASSWORD": "valkey-password",
    "STORE_SECRET_KEY": "store-secret",
    "ARCHREPAIR_SECRET_KEY": "s" * 32,
    "ARCHREPAIR_API_KEY": "ar_first_key",
}
# Names that programs other than ours read.
OTHERS = re.compile(r"AWS_|OTEL_|NVIDIA_|POSTGRES_|VALKEY_PASSWORD|PATH|PYTHON|PIP_|HOME|STORE_SECRET_KEY|TORCH_INDEX")
OF_COMPOSE = {"ARCHREPAIR_API_KEY", "ARCHREPAIR_BIND", "ARCHREPAIR_PORTS"} | {
    f"ARCHREPAIR_{name}_IMAGE" for name in ("GATEWAY", "WORKER", "WORKER_GPU")
}


def run(*command: str | Path, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(word) for word in command], cwd=ROOT, env=env, capture_output=True, text=True)


def compose(*words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    env = {"PATH": "/usr/bin:/bin", "HOME": "/nonexistent", **variables}
    return run(BIN / "docker-compose", "--env-file", "/dev/null", "--profile", "gpu", *words, env=env)


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    answer = compose("config", "--format", "json", **SECRETS)
    assert answer.returncode == 0, answer.stderr
    return dict(json.loads(answer.stdout)["services"])


def known_variables() -> set[str]:
    models = (Settings, WorkerSettings, EngineLimits)
    return {f"{model.model_config['env_prefix']}{name.upper()}" for model in models for name in model.model_fields}


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.name)
def test_a_dockerfile_has_no_findings(dockerfile):
    answer = run(BIN / "hadolint", "--failure-threshold", "info", dockerfile)
    assert answer.returncode == 0, answer.stdout


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.name)
def test_a_dockerfile_copies_what_there_is_and_runs_as_nobody_in_particular(dockerfile):
    text = dockerfile.read_text()
    allowed = {line.removeprefix("!") for line in (ROOT / ".dockerignore").read_text().splitlines()}
    sources = [word for line in re.findall(r"^COPY (?!--from)(.+)$", text, re.MULTILINE) for word in line.split()[:-1]]
    assert sources
    for source in sources:
        assert (ROOT / source).exists(), source
        assert source.strip("./") in allowed, f".dockerignore keeps {source} out"
    assert re.findall(r"^USER (.+)$", text, re.MULTILINE) == ["10001:10001"]
    assert "HEALTHCHECK" in text
    assert "-c constraints.txt" in text


def test_the_gateway_image_has_no_torch():
    text = (ROOT / "docker/gateway.Dockerfile").read_text()
    assert re.findall(r'"\.\[(.+)\]"', text) == ["postgres,telemetry"]
    project = (ROOT / "pyproject.toml").read_text()
    plain = project.partition("dependencies = [")[2].partition("]")[0]
    extras = "".join(re.findall(rf"^{name} = \[(.*?)\]$", project, re.MULTILINE | re.DOTALL)[0]
                     for name in ("postgres", "telemetry"))  # fmt: skip
    assert not re.search(r"torch|numpy|scipy|onnx|pyarrow", plain + extras)


def test_what_an_image_runs_can_be_imported():
    for dockerfile in DOCKERFILES:
        command = dockerfile.read_text().partition("\nCMD ")[2].split("\n\n")[0].replace("\\\n", "")
        words = json.loads(command)
        modules = [words[words.index("-m") + 1], *(word.partition(":")[0] for word in words if ":" in word)]
        for module in modules:
            code = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({module!r}) is None)"
            assert run(sys.executable, "-c", code).returncode == 0, module


def test_the_compose_file_fits_the_schema_of_compose():
    answer = run(BIN / "check-jsonschema", "--builtin-schema", "vendor.compose-spec", "docker-compose.yml")
    assert answer.returncode == 0, answer.stdout


@pytest.mark.parametrize("missing", sorted(set(SECRETS) - {"ARCHREPAIR_API_KEY"}))
def test_without_a_secret_nothing_starts_and_it_is_named(missing):
    answer = compose("config", "-q", **{name: value for name, value in SECRETS.items() if name != missing})
    assert answer.returncode != 0
    assert missing in answer.stderr


def test_every_service_is_closed_off_and_watched(services):
    assert set(services) == {"postgres", "valkey", "seaweedfs", "migrate", "gateway", "worker", "worker-gpu"}
    for name, service in services.items():
        assert service["read_only"], name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert "privileged" not in service, name
        assert "container_name" not in service, f"{name} could not be scaled"
        assert not service["image"].endswith(":latest"), name
        assert "healthcheck" in service or (ROOT / service["build"]["dockerfile"]).is_file(), name
    assert [name for name, service in services.items() if "ports" in service] == ["gateway"]
    for name in ("postgres", "valkey", "seaweedfs"):
        assert list(services[name]["networks"]) == ["servers"]


def test_services_wait_for_what_they_need(services):
    for name in ("gateway", "worker", "worker-gpu"):
        conditions = {other: needs["condition"] for other, needs in services[name]["depends_on"].items()}
        assert conditions == {
            "postgres": "service_healthy",
            "valkey": "service_healthy",
            "seaweedfs": "service_healthy",
            "migrate": "service_completed_successfully",
        }


def test_what_compose_sets_makes_complete_settings(services, monkeypatch):
    for name in ("gateway", "worker", "migrate"):
        with monkeypatch.context() as patch:
            for variable, value in services[name]["environment"].items():
                patch.setenv(variable, value or "")
            settings = Settings()
        assert settings.database_url == "postgresql+psycopg://archrepair:postgres-password@postgres:5432/archrepair"
        assert settings.egress_allow == ()
        assert settings.secret_key == SECRETS["ARCHREPAIR_SECRET_KEY"]


def variables_of(node: Any) -> Iterator[str]:
    """Names of environment variables in a manifest or a resolved compose file."""
    if isinstance(node, dict):
        for key, value in node.items():
            if key in ("environment", "data") and isinstance(value, dict):
                yield from value
            elif key == "env" and isinstance(value, list):
                yield from (entry["name"] for entry in value)
            else:
                yield from variables_of(value)
    elif isinstance(node, list):
        for value in node:
            yield from variables_of(value)


def test_every_variable_that_is_set_is_a_setting(services):
    manifests = [document for name in KUSTOMIZATIONS for document in resources(name)]
    environments = [name for node in (services, manifests) for name in variables_of(node)]
    dockerfiles = [name for path in DOCKERFILES for name in re.findall(r"\b([A-Z][A-Z_]+)=", path.read_text())]
    for name in {*environments, *dockerfiles}:
        assert name in known_variables() or OTHERS.match(name), name


def test_settings_that_compose_does_not_name_come_from_a_file_and_change_none_it_names(tmp_path):
    shutil.copy(ROOT / "docker-compose.yml", tmp_path)
    (tmp_path / "settings.env").write_text("ARCHREPAIR_QUOTA_MODELS=7\nARCHREPAIR_STORE_URL=s3://another\n")
    answer = compose("--file", str(tmp_path / "docker-compose.yml"), "config", "--format", "json", **SECRETS)
    assert answer.returncode == 0, answer.stderr
    services = json.loads(answer.stdout)["services"]
    for name in ("gateway", "worker", "worker-gpu", "migrate"):
        environment = services[name]["environment"]
        assert environment["ARCHREPAIR_QUOTA_MODELS"] == "7", name
        assert environment["ARCHREPAIR_STORE_URL"] == "s3://archrepair", name
    assert "ARCHREPAIR_QUOTA_MODELS" not in services["postgres"]["environment"]


def test_prometheus_reaches_the_metrics_of_every_worker_and_nobody_else_does(services):
    for name in ("worker", "worker-gpu"):
        environment = services[name]["environment"]
        assert (environment["ARCHREPAIR_METRICS_HOST"], environment["ARCHREPAIR_METRICS_PORT"]) == ("0.0.0.0", "9464")
        assert "ports" not in services[name], "no port of the host"
    documents = resources("overlays/gpu")
    workers = [doc for doc in documents if doc["kind"] == "Deployment" and "worker" in doc["metadata"]["name"]]
    assert len(workers) == 2
    for worker in workers:
        (container,) = worker["spec"]["template"]["spec"]["containers"]
        environment = {entry["name"]: entry["value"] for entry in container["env"]}
        assert environment == {"ARCHREPAIR_METRICS_HOST": "0.0.0.0", "ARCHREPAIR_METRICS_PORT": "9464"}
        assert container["ports"] == [{"name": "metrics", "containerPort": 9464}]
    (policy,) = (doc for doc in documents if doc["metadata"]["name"] == "archrepair-worker" and "podSelector" in
                 doc["spec"])  # fmt: skip
    (rule,) = policy["spec"]["ingress"]
    assert rule["ports"] == [{"protocol": "TCP", "port": "metrics"}]
    assert rule["from"] == [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}]


def test_every_variable_of_the_example_is_used_or_a_setting():
    used = (ROOT / "docker-compose.yml").read_text()
    names = re.findall(r"^#?([A-Z][A-Z_]+)=", (ROOT / ".env.example").read_text(), re.MULTILINE)
    assert set(SECRETS) < set(names)
    for name in names:
        assert name in used, f"{name} is in .env.example and nobody reads it"
        assert name in known_variables() | OF_COMPOSE or OTHERS.match(name), name
    asked = set(re.findall(r"\$\{([A-Z_]+)[:}]", used))
    assert asked <= set(names), "what compose takes from .env stands in .env.example"


def resources(name: str) -> list[dict[str, Any]]:
    """Every document of a kustomization, those of its bases first."""
    directory = ROOT / "deploy/kubernetes" / name
    kustomization = yaml.safe_load((directory / "kustomization.yaml").read_text())
    found = []
    for entry in kustomization["resources"]:
        path = (directory / entry).resolve()
        if path.is_dir():
            found += resources(str(path.relative_to(ROOT / "deploy/kubernetes")))
        else:
            found += [document for document in yaml.safe_load_all(path.read_text()) if document]
    return found


def test_every_manifest_belongs_to_a_kustomization():
    listed = {
        (ROOT / "deploy/kubernetes" / name / entry).resolve()
        for name in KUSTOMIZATIONS
        for entry in yaml.safe_load((ROOT / "deploy/kubernetes" / name / "kustomization.yaml").read_text())["resources"]
    }
    files = {path for path in (ROOT / "deploy/kubernetes").rglob("*.yaml") if path.name != "kustomization.yaml"}
    assert files == {path for path in listed if path.is_file()}


def test_kubernetes_takes_the_manifests():
    files = [path for path in (ROOT / "deploy/kubernetes").rglob("*.yaml") if path.name != "kustomization.yaml"]
    answer = run(BIN / "kubernetes-validate", "--strict", "--no-warn", *files)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert "failed" not in answer.stdout


def test_pods_are_closed_off_and_names_lead_somewhere():
    documents = resources("overlays/gpu")
    pods = [document["spec"]["template"]["spec"] for document in documents if "template" in document.get("spec", {})]
    assert len(pods) == 4
    accounts = {doc["metadata"]["name"] for doc in documents if doc["kind"] == "ServiceAccount"}
    for pod in pods:
        assert pod["serviceAccountName"] in accounts
        assert pod["securityContext"]["runAsNonRoot"]
        (container,) = pod["containers"]
        context = container["securityContext"]
        assert (context["allowPrivilegeEscalation"], context["readOnlyRootFilesystem"]) == (False, True)
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert "memory" in container["resources"]["limits"]
        assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    workloads = {doc["metadata"]["name"] for doc in documents if doc["kind"] in ("Deployment", "Job")}
    for document in documents:
        if document["kind"] in ("ScaledObject", "HorizontalPodAutoscaler"):
            assert document["spec"]["scaleTargetRef"]["name"] in workloads
        if document["kind"] in ("Service", "PodDisruptionBudget"):
            selector = document["spec"]["selector"].get("matchLabels", document["spec"]["selector"])
            assert selector["app.kubernetes.io/name"] in workloads


def test_images_of_kubernetes_are_those_of_the_kustomizations():
    named = {
        image["name"]
        for name in KUSTOMIZATIONS
        for image in yaml.safe_load((ROOT / "deploy/kubernetes" / name / "kustomization.yaml").read_text())["images"]
    }
    used = {
        container["image"]
        for document in resources("overlays/gpu")
        for container in document.get("spec", {}).get("template", {}).get("spec", {}).get("containers", [])
    }
    assert used == named


def test_the_scalers_ask_for_columns_there_are(sessions):
    queries = [
        trigger["metadata"]["query"]
        for document in resources("overlays/gpu")
        if document["kind"] == "ScaledObject"
        for trigger in document["spec"]["triggers"]
    ]
    assert len(queries) == 2
    with sessions() as session:
        assert [session.scalar(sql(query)) for query in queries] == [0, 0]
