import json
from pathlib import Path

import pytest
import torch
from torch import nn

from archrepair_core.inspection import block_tree, main


@pytest.mark.slow
def test_the_command_prints_the_blocks_found_in_a_process_of_their_own(tmp_path: Path, capsys):
    layers = [nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10)]
    path = tmp_path / "model.pt"
    torch.jit.save(torch.jit.script(nn.Sequential(*layers)), str(path))

    assert main([str(path), "--input-shape", "3,16,16", "--json"]) == 0

    found = json.loads(capsys.readouterr().out)
    assert (found["input_shape"], found["input_shape_source"]) == ([3, 16, 16], "given")
    head, columns, *rows = block_tree(found).splitlines()
    assert head.startswith("torchscript, ")
    assert head.endswith(", 162 parameters, input 3×16×16 (given)")
    assert columns.split() == ["block", "kind", "input", "output", "parameters", "MACs", "time"]
    assert rows[0].split()[:6] == ["0", "Conv2d", "3×16×16", "4×16×16", "112", "27,648"]


@pytest.mark.slow
def test_the_command_says_what_is_wrong_with_a_file(tmp_path: Path, capsys):
    path = tmp_path / "model.pt"
    path.write_bytes(b"PK\x03\x04")
    assert main([str(path)]) == 2
    out, err = capsys.readouterr()
    assert (out, err.partition(".")[0]) == ("", "model")
    assert "hint: " in err


@pytest.mark.parametrize(
    ("arguments", "said"), [(["nothing.pt"], "is not a file"), ([__file__, "--input-shape", "a,b"], "list of sizes")]
)
def test_a_wrong_command_line_is_refused_at_once(arguments: list[str], said: str, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    assert said in capsys.readouterr().err


def test_stages_are_shown_around_their_blocks_and_unknown_blocks_with_the_reason():
    block = {"kind": "Block", "input_shape": [4], "output_shape": [4], "num_params": 1, "macs": 2, "latency_share": 0.5}
    stage = block | {"name": "stage", "stage": None}
    facts = {"format": "torch_export", "written_by": "torch 2.9", "num_parameters": 1, "input_shape": [4],
             "input_shape_source": "file", "blocks_unknown": None}  # fmt: skip
    tree = block_tree(facts | {"blocks": [stage, block | {"name": "stage.0", "stage": "stage"}]})
    assert tree.splitlines()[0] == "torch_export, torch 2.9, 1 parameters, input 4 (file)"
    assert [line.split("Block")[0] for line in tree.splitlines()[2:]] == ["stage      ", "  stage.0  "]
    reason = {"code": "model.input_shape_unknown", "detail": "nothing fits", "hint": "give it"}
    unknown = facts | {"input_shape": None, "blocks": [], "blocks_unknown": reason}
    assert block_tree(unknown).splitlines()[1:] == ["blocks unknown: nothing fits", "hint: give it"]
