"""The table of settings in docs/operation.md is what the code says, and names all there are."""

import os
import re

import pytest

from app.shared.settings import Settings
from tests.operation.settings_table import BEGIN, END, PAGE, TABLES, table_text
from worker.limits import EngineLimits


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch):
    for name in [name for name in os.environ if name.startswith("ARCHREPAIR_")]:
        monkeypatch.delenv(name)


def test_the_table_is_what_the_code_says():
    written = PAGE.read_text().partition(BEGIN)[2].partition(END)[0]
    assert written.strip() == table_text().strip(), "python -m tests.operation.settings_table writes it anew"


def test_every_setting_has_a_meaning_and_its_unit():
    rows = re.findall(r"^\| `(ARCHREPAIR_\w+)` \| (.*) \| (.*) \| (.*) \|$", table_text(), re.MULTILINE)
    assert len(rows) == sum(len(model.model_fields) for _, model in TABLES)
    for name, default, unit, meaning in rows:
        assert default, name
        assert meaning.endswith("."), f"{name} needs a description"
        assert (unit == "s") == name.endswith("_SECONDS"), name
        assert (unit == "bytes") == name.endswith("_BYTES"), name


def test_defaults_are_shown_as_they_are():
    text = table_text()
    assert Settings().one_shot_body_bytes == 512 * 1024**2
    assert "| `ARCHREPAIR_ONE_SHOT_BODY_BYTES` | 512 MiB | bytes |" in text
    assert "| `ARCHREPAIR_LEASE_SECONDS` | 10; production 60 | s |" in text
    assert "| `ARCHREPAIR_RATE_LIMIT_READS` | 0; production 12,000 | a minute |" in text
    assert EngineLimits().max_runtime_seconds == 21600
    assert "| `ARCHREPAIR_ENGINE_MAX_RUNTIME_SECONDS` | 21,600 | s |" in text
    assert "| `ARCHREPAIR_PORT` | `8000` |" in text


def test_names_of_settings_in_the_docs_are_those_of_settings():
    known = {f"{model.model_config['env_prefix']}{name.upper()}" for _, model in TABLES for name in model.model_fields}
    # Of compose, of benchmarks and of clients alone.
    known |= {"ARCHREPAIR_API_KEY", "ARCHREPAIR_DATA", "ARCHREPAIR_URL"}
    for page in PAGE.parent.glob("*.md"):
        named = set(re.findall(r"\bARCHREPAIR_[A-Z][A-Z_]*[A-Z]\b(?!_?[*…<])", page.read_text()))
        assert named <= known, page.name
