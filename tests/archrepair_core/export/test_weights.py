import json
import re
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from archrepair_core.blocks import find_blocks
from archrepair_core.export import export_model
from archrepair_core.export.subject import Subject
from archrepair_core.search.dag import Edge
from archrepair_core.search.genotype import Edit, Genotype, branch_beside, build_
from archrepair_core.search.primitives import primitives_for

DOCUMENT = Path(__file__).parents[3] / "docs" / "formats.md"


def write(subject, directory):
    (export,) = export_model(subject, directory, "out", formats=["safetensors"], required="safetensors")
    return export, directory / "out.safetensors"


def test_every_key_loads_strictly_into_the_original_network_tied_ones_too(make_subject, inputs, tmp_path):
    subject = make_subject()
    export, path = write(subject, tmp_path)
    network = make_subject().module
    network.load_state_dict(load_file(path))
    assert torch.equal(network.eval()(inputs), subject.module(inputs))
    assert export.written.changes.changed == ("head.weight",)
    assert "tied.weight" in export.written.changes.unchanged
    assert export.written.agreement.max_abs_diff == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_stay_what_they_are(make_subject, dtype, tmp_path):
    _, path = write(make_subject(dtype=dtype), tmp_path)
    assert load_file(path)["head.weight"].dtype == dtype


def edited(subject, inputs):
    """The subject with a trained branch of every kind that fits its blocks."""
    blocks = {block.name: block for block in find_blocks(subject.module, inputs)}
    primitives = {name: next(iter(primitives_for(blocks[name])), None) for name in ("conv", "head")}
    edits = [branch_beside(name, primitive) for name, primitive in primitives.items()]
    return with_genotype(subject, blocks, Genotype(("conv", "head"), tuple(edits)))


def with_genotype(subject, blocks, genotype):
    build_(subject.module, genotype, blocks, seed=0)
    with torch.no_grad():
        for edit in genotype.edits:
            subject.module.get_submodule(f"{edit.block}.branch").scale += 0.3
    return Subject(subject.module.eval(), subject.original, subject.batches, genotype.to_json())


def test_the_documented_loader_rebuilds_branches_with_plain_torch(make_subject, inputs, tmp_path):
    subject = edited(make_subject(), inputs)
    _, path = write(subject, tmp_path)
    network = documented_loader()(make_subject().module, path).eval()
    assert torch.equal(network(inputs), subject.module(inputs))
    assert isinstance(network.get_submodule("head.branch.operation.0"), torch.nn.Linear)


@pytest.mark.parametrize("keeps_original", [True, False])
def test_the_documented_loader_rebuilds_a_cell_of_several_operations(make_subject, inputs, tmp_path, keeps_original):
    subject = make_subject()
    blocks = {block.name: block for block in find_blocks(subject.module, inputs)}
    edges = [("input", "1", "sep_conv_3x3"), ("1", "output", "avg_pool_3x3"), ("input", "output", "max_pool_3x3")]
    kept = [("input", "output", "original")] if keeps_original else []
    edit = Edit("conv", tuple(Edge(*edge) for edge in edges + kept))
    subject = with_genotype(subject, blocks, Genotype(("conv",), (edit,)))
    _, path = write(subject, tmp_path)
    network = documented_loader()(make_subject().module, path).eval()
    assert torch.equal(network(inputs), subject.module(inputs))


def documented_loader():
    (code,) = re.findall(r"```python\n(.*?load_repaired.*?)```", DOCUMENT.read_text("utf-8"), re.DOTALL)
    assert "archrepair" not in code
    names = {}
    exec(code, names)  # noqa: S102  the customer's side: nothing of ours is imported there
    return names["load_repaired"]


def test_the_metadata_says_what_the_repair_is(make_subject, inputs, tmp_path):
    subject = edited(make_subject(), inputs)
    _, path = write(subject, tmp_path)
    with safe_open(path, "pt") as file:
        genotype = json.loads(file.metadata()["genotype"])
    assert (genotype["object"], genotype["version"], genotype["scope"]) == ("genotype", "2", ["conv", "head"])
    assert [edit["block"] for edit in genotype["edits"]] == ["conv", "head"]
    assert genotype["edits"][1]["edges"][0]["operation"] == "original"
    assert genotype["edits"][1]["scale"] == [2]
