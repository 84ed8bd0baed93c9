import os

import pytest
from pydantic import ValidationError

from worker.hardware import WorkerSettings, choose_device, find_gpu, queues_of


def test_without_a_gpu_a_worker_serves_the_cpu_queue(tmp_path):
    assert find_gpu({}, tmp_path) is None
    assert queues_of(WorkerSettings(), "cpu") == ("cpu",)


def test_a_gpu_that_may_be_seen_is_found_and_both_queues_served(tmp_path):
    (tmp_path / "nvidia0").touch()
    (tmp_path / "nvidiactl").touch()
    assert find_gpu({"CUDA_VISIBLE_DEVICES": "3,4"}, tmp_path) == "NVIDIA GPU 3"
    assert queues_of(WorkerSettings(), "NVIDIA GPU 3") == ("gpu", "cpu")


@pytest.mark.parametrize("hidden", ["", "-1"])
def test_a_hidden_gpu_is_none(tmp_path, hidden):
    (tmp_path / "nvidia0").touch()
    assert find_gpu({"CUDA_VISIBLE_DEVICES": hidden}, tmp_path) is None


def test_the_gpu_of_a_worker_is_the_only_one_its_engines_see(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    choose_device(WorkerSettings(gpu="1"))
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "1"
    assert choose_device(WorkerSettings(queues="cpu")) == "cpu"
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""


@pytest.mark.parametrize("queues", ["tpu", "cpu,fast", ","])
def test_a_queue_that_does_not_exist_is_refused(queues):
    with pytest.raises(ValidationError, match=r"ARCHREPAIR_QUEUES is .* name cpu, gpu or auto"):
        WorkerSettings(queues=queues)
