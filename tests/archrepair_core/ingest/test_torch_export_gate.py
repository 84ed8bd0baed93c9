"""Hostile and broken .pt2 files: each is refused with what is wrong, and nothing of it runs."""

import contextlib
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from archrepair_core.errors import ModelError
from archrepair_core.ingest.model import ingest_model
from archrepair_core.ingest.records import ArchiveLimits
from archrepair_core.ingest.torch_export_gate import inspect_export
from tests.archrepair_core.ingest.exported import SmallNet, rewritten, save_export

MODEL, WEIGHTS = "models/model.json", "data/weights/model_weights_config.json"
CONSTANTS = "data/constants/model_constants_config.json"


class Payload:
    """What a hostile pickle does when somebody loads it."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return (exec, (f"open({str(self.canary)!r}, 'w').close()",))


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    return save_export(SmallNet(), tmp_path_factory.mktemp("exports") / "small.pt2", torch.rand(2, 3, 9, 9))


def graph(data: Any) -> Any:
    return data["graph_module"]["graph"]


def first_weight(data: Any) -> Any:
    return data["config"]["stem.weight"]


def target(value: str):
    def change(data: Any) -> None:
        graph(data)["nodes"][3]["target"] = value

    return {MODEL: change}


def meta(**fields: Any):
    return {WEIGHTS: lambda data: first_weight(data)["tensor_meta"].update(fields)}


def sizes(*numbers: int) -> list[dict[str, int]]:
    return [{"as_int": number} for number in numbers]


def argument(value: Any):
    return {MODEL: lambda data: graph(data)["nodes"][1]["inputs"][0].update(arg=value)}


def top(**fields: Any):
    return {MODEL: lambda data: data.update(fields)}


def expression(data: Any) -> None:
    text = "__import__('os').system('touch canary')"
    for value in graph(data)["tensor_values"].values():
        value["sizes"][:1] = [{"as_expr": {"expr_str": text, "hint": {"as_int": 2}}}]
    data["guards_code"] = [text]


EMPTY_GRAPH = {"as_graph": {"name": "g", "graph": {}}}

# name: (records to put in, edits of JSON, code of the refusal, words of its detail)
HOSTILE: dict[str, tuple[dict[str, bytes], dict[str, Any], str, str]] = {
    "pickled weight": ({}, {WEIGHTS: lambda d: first_weight(d).update(use_pickle=True)}, "unsafe_program", "pickle"),
    "pickled constant": (
        {},
        {CONSTANTS: lambda d: d["config"]["offset"].update(use_pickle=True)},
        "unsafe_program",
        "'offset' is stored as a pickle",
    ),
    "custom object": ({"data/constants/custom_obj_0": b"PK"}, {}, "unsafe_program", "custom object"),
    "opaque object": ({"data/constants/opaque_obj_0": b"\x80"}, {}, "unsafe_program", "custom object"),
    "shared library": ({"data/aotinductor/model/model.so": b"\x7fELF"}, {}, "compiled_code", "model.so"),
    "library among extras": ({"extra/payload.so": b"\x7fELF"}, {}, "compiled_code", "payload.so"),
    "weights of an old layout": ({"data/weights/model.pt": b"PK"}, {}, "format_not_supported", "older than torch 2.9"),
    "path traversal": ({"../../evil": b"x"}, {}, "unsafe_archive", "traversal"),
    "unknown record": ({"data/weights/run.py": b"x"}, {}, "unsafe_archive", "run.py"),
    "second program": ({"models/other.json": b"{}"}, {}, "format_not_supported", "2 programs"),
    "unknown operator": ({}, target("torch.ops.aten.from_file.default"), "operator_not_allowed", "from_file"),
    "out overload": ({}, target("torch.ops.aten.relu.out"), "operator_not_allowed", "relu.out"),
    "custom operator": ({}, target("torch.ops.mylib.run.default"), "operator_not_allowed", "mylib.run"),
    "higher-order operator": ({}, target("torch.ops.higher_order.cond"), "operator_not_allowed", "higher_order.cond"),
    "python function": ({}, target("builtins.eval"), "operator_not_allowed", "builtins.eval"),
    "dunder of a listed operator": ({}, target("torch.ops.aten.relu.__class__"), "operator_not_allowed", "__class__"),
    "overload torch does not have": ({}, target("torch.ops.aten.relu.nonsense"), "operator_not_supported", "nonsense"),
    "graph inside the graph": ({}, argument(EMPTY_GRAPH), "unsafe_program", "graph"),
    "custom object argument": (
        {},
        argument({"as_custom_obj": {"name": "x", "class_fqn": "y"}}),
        "unsafe_program",
        "custom_obj",
    ),
    "argument nobody computed": ({}, argument({"as_tensor": {"name": "ghost"}}), "unsafe_program", "'ghost'"),
    "odd value name": ({}, argument({"as_tensor": {"name": "x;import os"}}), "unsafe_program", "import os"),
    "shape beyond its record": ({}, meta(sizes=sizes(4, 3, 3, 4)), "tensor_geometry", "does not fit"),
    "offset beyond its record": ({}, meta(storage_offset={"as_int": 1}), "tensor_geometry", "does not fit"),
    "negative stride": ({}, meta(strides=sizes(-27, 9, 3, 1)), "tensor_geometry", "strides"),
    "giant view of little": (
        {},
        meta(sizes=sizes(1 << 40, 1, 1, 1), strides=sizes(0, 0, 0, 0)),
        "tensor_geometry",
        "does not fit",
    ),
    "missing weight record": (
        {},
        {WEIGHTS: lambda d: first_weight(d).update(path_name="weight_999")},
        "tensor_geometry",
        "weight_999",
    ),
    "weight outside its folder": (
        {},
        {WEIGHTS: lambda d: first_weight(d).update(path_name="../../models/model.json")},
        "tensor_geometry",
        "does not have",
    ),
    "symbolic weight size": (
        {},
        meta(sizes=[{"as_expr": {"expr_str": "s0", "hint": None}}]),
        "unsafe_program",
        "incomplete",
    ),
    "sparse weight": ({}, meta(layout=1), "quantized", "layout 1"),
    "float8 weight": ({}, meta(dtype=29), "quantized", "dtype 29"),
    "newer schema": ({}, top(schema_version={"major": 9, "minor": 0}), "format_not_supported", "9.0"),
    "newer minor schema": ({}, top(schema_version={"major": 8, "minor": 99}), "format_not_supported", "8.99"),
    "older schema": ({}, top(schema_version={"major": 5, "minor": 1}), "format_not_supported", "5.1"),
    "newer operators": ({}, top(opset_version={"aten": 11}), "format_not_supported", "version 11"),
    "no schema": ({}, top(schema_version=None), "format_not_supported", "no schema version"),
    "bomb of lists": ({MODEL: b"[" * 200_000}, {}, "unsafe_program", "no JSON"),
    "giant integer": ({MODEL: b"1" * 5_000}, {}, "unsafe_program", "no JSON"),
    "duplicate keys": ({MODEL: b'{"a": 1, "a": 2}'}, {}, "unsafe_program", "twice"),
    "no program at all": ({MODEL: b"[]"}, {}, "format_not_supported", "no schema version"),
    "not UTF-8": ({MODEL: b'{"\xff\xfe'}, {}, "unsafe_program", "no JSON"),
    "reserved parameter name": (
        {},
        {WEIGHTS: lambda d: d["config"].update({"__class__": first_weight(d)})},
        "unsafe_program",
        "__class__",
    ),
    "reserved argument name": (
        {},
        {MODEL: lambda d: d["graph_module"]["module_call_graph"][0]["signature"].update(forward_arg_names=["self"])},
        "unsafe_program",
        "['self']",
    ),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_program_is_refused_by_name(kind, path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    records, edit, code, words = HOSTILE[kind]
    hostile = rewritten(path, tmp_path / "hostile.pt2", records=records, edit=edit)
    before = set(tmp_path.iterdir())
    with pytest.raises(ModelError) as caught:
        ingest_model(hostile, tmp_path)
    assert caught.value.code == f"model.{code}"
    assert words in caught.value.detail
    assert caught.value.hint
    assert set(tmp_path.iterdir()) == before


def test_example_inputs_and_expressions_are_never_run(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    payload = pickle.dumps(Payload(tmp_path / "canary"))
    records = {"data/sample_inputs/model.pt": payload, "extra/note.pkl": payload}
    hostile = rewritten(path, tmp_path / "hostile.pt2", records=records, edit={MODEL: expression})
    model = ingest_model(hostile, tmp_path).model
    assert model(torch.rand(1, 3, 9, 9)).shape == (1, 5)
    assert not (tmp_path / "canary").exists()


def test_the_gate_needs_no_torch(path):
    code = (
        "import sys; from pathlib import Path; from archrepair_core.ingest.torch_export_gate import inspect_export;"
        f"print(inspect_export(Path({str(path)!r}))); assert not {{'torch', 'numpy'}} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, stdout=subprocess.DEVNULL)


def test_the_summary_counts_what_can_be_trained(path):
    summary = inspect_export(path)
    assert summary.num_parameters == sum(parameter.numel() for parameter in SmallNet().parameters())
    assert summary.modules[:4] == ("", "stem", "blocks", "blocks.0")
    assert summary.written_by == f"torch {torch.__version__}"


def test_a_large_program_is_refused_before_it_is_parsed(path):
    with pytest.raises(ModelError, match=r"model\.json") as caught:
        inspect_export(path, limits=ArchiveLimits(sources_bytes=1000))
    assert caught.value.code == "model.archive_too_large"


@pytest.mark.slow
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_change_of_the_program_is_refused_or_harmless(data, path, tmp_path):
    def change(node: Any) -> None:
        for _ in range(data.draw(st.integers(1, 3))):
            place = node
            while isinstance(place, dict | list) and place:
                keys = list(place) if isinstance(place, dict) else list(range(len(place)))
                key = data.draw(st.sampled_from(keys))
                inner = place[key]
                if not isinstance(inner, dict | list) or not inner or data.draw(st.integers(0, 9)) == 0:
                    place[key] = data.draw(ODD_VALUES)
                    break
                place = inner

    name = data.draw(st.sampled_from([MODEL, WEIGHTS, CONSTANTS]))
    changed = rewritten(path, tmp_path / "changed.pt2", edit={name: change})
    # Anything but a ModelError fails the test.
    with contextlib.suppress(ModelError):
        ingest_model(changed, tmp_path)


ODD_VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.sampled_from([1 << 31, -1 << 62, 1 << 70, 1e308, "", "x", "self", "torch.ops.aten.relu.default", [], {}]),
    st.text(max_size=4),
)
