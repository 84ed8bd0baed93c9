"""The recipes of examples/, as far as they go without their host: schemas, shellcheck, and their shell for real."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
BIN = Path(sys.executable).parent


@pytest.fixture
def shop(live, files, tmp_path):
    """A customer's working copy: a model, a spec, and the command on the path."""
    (tmp_path / "build").mkdir()
    files.model().rename(tmp_path / "build" / "model.pt")
    data = files.data("meet_the_gates")
    (tmp_path / "repair.yaml").write_text(f"datasets: {{repair: {data.name}}}\n")
    (tmp_path / "repair.json").write_text(json.dumps({"datasets": {"repair": "upload:repair"}}))
    for folder in ("bin", "venv/bin"):
        (tmp_path / folder).mkdir(parents=True)
        for name, words in {"archrepair": f"{sys.executable} -P -m archrepair_client", "pip": "true"}.items():
            shim = tmp_path / folder / name
            shim.write_text(f'#!/bin/sh\nexec {words} "$@"\n')
            shim.chmod(0o755)
    python = tmp_path / "bin" / "python"  # installs nothing here
    python.write_text("#!/bin/sh\nexit 0\n")
    python.chmod(0o755)
    return tmp_path


def run_shell(shop, live, script, *, shell=("bash", "-e", "-o", "pipefail"), **environment):
    variables = {**os.environ, "PATH": f"{shop / 'bin'}:{os.environ['PATH']}", "ARCHREPAIR_URL": live.url,
                 "ARCHREPAIR_API_KEY": live.key, "PYTHONPATH": str(ROOT), **environment}  # fmt: skip
    command = [*shell, "-c", script]
    return subprocess.run(command, cwd=shop, env=variables, capture_output=True, text=True, timeout=120)


def check(*command):
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("schema", "file"), [("github-actions", "action.yml"), ("github-workflows", "workflow.yml")]
)  # fmt: skip
def test_githubs_files_are_what_its_schemas_say(schema, file):
    check(BIN / "check-jsonschema", "--builtin-schema", f"vendor.{schema}", EXAMPLES / "github" / file)


def test_the_workflow_gives_the_action_inputs_it_has():
    action = yaml.safe_load((EXAMPLES / "github" / "action.yml").read_text())
    steps = yaml.safe_load((EXAMPLES / "github" / "workflow.yml").read_text())["jobs"]["repair"]["steps"]
    (given,) = (step["with"] for step in steps if "archrepair-action" in step["uses"])
    assert {name for name, value in action["inputs"].items() if value.get("required")} <= given.keys()
    assert given.keys() <= action["inputs"].keys()


@pytest.mark.slow
def test_the_action_runs(shop, live):
    action = yaml.safe_load((EXAMPLES / "github" / "action.yml").read_text())
    inputs = {name: value.get("default") for name, value in action["inputs"].items()}
    inputs |= {"model": "build/model.pt", "url": live.url, "api-key": live.key}
    outputs = shop / "outputs"
    for step in action["runs"]["steps"]:
        value_of = {f"${{{{ inputs.{name} }}}}": value for name, value in inputs.items()}
        environment = {name: value_of[expression] for name, expression in step["env"].items()}
        assert "${{" not in step["run"]
        done = run_shell(shop, live, step["run"], GITHUB_OUTPUT=str(outputs), **environment)
        assert done.returncode == 0, done.stderr
    said = dict(line.split("=", 1) for line in outputs.read_text().splitlines())
    wanted = {re.search(r"outputs\.([\w-]+)", output["value"])[1] for output in action["outputs"].values()}
    assert said.keys() == wanted
    assert (said["verdict"], (shop / said["model-path"]).read_text()) == ("pass", "{} pass")


@pytest.mark.slow
def test_gitlabs_component_is_what_its_schema_says_and_runs(shop, live, tmp_path):
    head, _, body = (EXAMPLES / "gitlab" / "repair.yml").read_text().partition("\n---\n")
    inputs = {name: value.get("default") for name, value in yaml.safe_load(head)["spec"]["inputs"].items()}
    inputs |= {"model": "build/model.pt", "url": live.url}
    filled = re.sub(r"\$\[\[ inputs\.(\w+) \]\]", lambda match: inputs[match[1]], body)
    (tmp_path / "filled.yml").write_text(filled)
    check(BIN / "check-jsonschema", "--builtin-schema", "vendor.gitlab-ci", tmp_path / "filled.yml")
    job = yaml.safe_load(filled)["model-repair"]
    done = run_shell(shop, live, "\n".join([*job["before_script"], *job["script"]]), **job["variables"])
    assert done.returncode == 0, done.stderr
    assert (shop / job["artifacts"]["reports"]["junit"]).is_file()


@pytest.mark.slow
def test_the_shell_of_the_jenkinsfile_runs(shop, live):
    script = re.search(r"sh '''(.*?)'''", (EXAMPLES / "jenkins" / "Jenkinsfile").read_text(), re.DOTALL)[1]
    done = run_shell(shop, live, script, shell=("sh", "-xe"))
    assert done.returncode == 0, done.stderr
    assert (shop / "archrepair-out" / "junit.xml").is_file()


def test_shellcheck_finds_nothing():
    check(BIN / "shellcheck", EXAMPLES / "curl" / "repair.sh")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("behave", "code"), [("meet_the_gates", 0), ("fail_a_gate", 1), ("leave_it_open", 8), ("refuse_the_data", 3)]
)
def test_curl_and_jq_do(shop, live, files, behave, code):
    words = f"build/model.pt {files.data(behave)} repair.json out"
    done = run_shell(shop, live, f"bash {EXAMPLES}/curl/repair.sh {words}")
    assert done.returncode == code, done.stdout + done.stderr
    if code == 0:
        assert (shop / "out" / "repaired.pt").read_text() == "{} pass"
        assert (shop / "out" / "junit.xml").is_file()


@pytest.mark.slow
def test_curl_says_why_it_was_refused_and_stops_waiting(shop, live, client, files):
    script, words = f"bash {EXAMPLES}/curl/repair.sh", f"{files.data('run_for_ever')} repair.json out"
    refused = run_shell(shop, live, f"{script} {files.data()} {words}")
    assert (refused.returncode, "model.not_torchscript" in refused.stderr) == (3, True), refused.stderr
    no_key = run_shell(shop, live, f"{script} build/model.pt {words}", ARCHREPAIR_API_KEY="ar_wrong_key")
    assert (no_key.returncode, "auth.invalid_key" in no_key.stderr) == (6, True)
    late = [run_shell(shop, live, f"{script} build/model.pt {words}", TIMEOUT_SECONDS="1", RUN_ID=str(shop))
            for _ in range(2)]  # fmt: skip
    assert [done.returncode for done in late] == [5, 5]
    first, second = (done.stderr.split()[0] for done in late)
    assert first == second, "the same run goes on with the same job"
    client.jobs.cancel(first)
