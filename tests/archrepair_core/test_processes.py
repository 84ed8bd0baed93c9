"""Several processes train as one does; alone, nothing of it is felt."""

import json
import socket
import subprocess
import sys
import time
import warnings

import numpy as np
import pytest
import torch
from torch import nn

from archrepair_core.__main__ import parse_command_line, repair
from archrepair_core.demo.digits import make_case
from archrepair_core.errors import SpecError
from archrepair_core.processes import agreed, clock, num_processes, share_of, sum_gradients, summed


def test_one_process_has_the_whole_batch_and_agrees_with_itself():
    items = np.arange(5)
    part, weight = share_of(items)
    assert (items[part].tolist(), weight) == (items.tolist(), 1.0)
    assert (num_processes(), agreed(0.5)) == (1, 0.5)
    assert clock() == pytest.approx(time.monotonic(), abs=1)
    net = nn.Linear(2, 1)
    sum_gradients(net.parameters())
    assert net.weight.grad is None
    assert summed(torch.ones(2)).tolist() == [1, 1]


def test_several_processes_are_refused_where_the_sandbox_is_required(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    (tmp_path / "file").touch()
    options = parse_command_line([str(tmp_path / "file"), str(tmp_path / "file"), "--out", str(tmp_path)])
    with pytest.raises(SpecError, match="sockets"):
        repair(options, "required")


@pytest.mark.slow
@pytest.mark.parametrize("repair_spec", [{"method": "weights", "level": "network"}, {"method": "block_search"}])
def test_two_processes_give_the_model_that_one_gives(repair_spec, tmp_path):
    make_case(tmp_path, seed=0)
    spec = {
        "gates": ["test.accuracy > before"],
        "localization": {"include": ["blocks.0"], "top_k": 1},
        "repair": {**repair_spec, "epochs": 3, "budget_seconds": 600, "max_params_ratio": 10, "max_latency_ratio": 10},
        "seed": 3,
        "evaluation": {"controls": "none"},
    }
    (tmp_path / "spec.json").write_text(json.dumps(spec))
    states = []
    for processes in (1, 2):
        out = tmp_path / f"out-{processes}"
        start = [sys.executable, "-m"]
        if processes > 1:
            start += ["torch.distributed.run", f"--nproc-per-node={processes}", "--master-addr=127.0.0.1"]
            start += [f"--master-port={free_port()}", "-m"]
        files = [str(tmp_path / "model.pt"), str(tmp_path / "repair.npz")]
        options = ["--spec", str(tmp_path / "spec.json"), "--out", str(out)]
        for name in ("validation", "test"):
            options += ["--dataset", f"{name}={tmp_path / name}.npz"]
        done = subprocess.run(
            [*start, "archrepair_core", *files, *options], capture_output=True, text=True, timeout=500
        )
        assert (out / "report.json").is_file(), done.stderr[-3000:]
        assert not list(out.glob("work-*"))
        states.append(load(next(out.glob("*.pt"))).state_dict())
    one, two = states
    assert one.keys() == two.keys()
    for name in one if repair_spec["method"] == "weights" else ():  # a new branch has batch-norms of its own
        torch.testing.assert_close(two[name], one[name], rtol=1e-3, atol=1e-4, msg=name)


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def load(path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.load(str(path))
