"""Outside peers: what they are given, what the page says of them, and that it is what the tables say."""

import numpy as np
import pytest
import torch

from archrepair_core.demo.digits import DigitsNet
from benchmarks.cases import CASES
from benchmarks.document import PAGE
from benchmarks.peers import BEGIN, END, PUBLISHED, comparisons, eager_network, section, sets_given, table
from benchmarks.results import read_published

RIGHT = np.array([1, 1, 0, 0, 0, 0, 0, 0], dtype=bool)


def row(method, num_right, *, seed=23, before=RIGHT):
    after = np.arange(8) < num_right
    return {
        **{"protocol": "honest", "case": "digits", "method": method, "seed": seed, "budget_seconds": 10.0},
        **{"accuracy_after": after.mean(), "change": after.mean() - before.mean(), "repair_rate": 0.5},
        **{"broken_rate": 0.0, "known_broken_rate": 0.25, "repair_seconds": 7.0, "wall_seconds": 9.0, "epochs": 5},
        **{"n_test": 8, "right_before": np.packbits(before).tobytes(), "right_after": np.packbits(after).tobytes()},
    }


def test_the_page_is_what_the_tables_say():
    said = PAGE.read_text().partition(BEGIN)[2].partition(END)[0]
    written = "\n".join(section(read_published(PUBLISHED), read_published()))
    assert said.strip() == written, "python -m benchmarks.peers --document writes it"


def test_each_of_ours_is_compared_with_the_peer_on_its_draw():
    ours = [row("auto", 8), row("network fine-tune", 3), row("auto", 2, seed=24)]
    lines = table([row("bnnr", 4)], ours)
    assert "| digits | 23 | auto | 100.00 | 75.00 | 50.00 | 0.00 | 25.00 | 7 | +50.00 | 0.25 |" in lines
    assert "| digits | 23 | network fine-tune | 37.50 | 12.50 | 50.00 | 0.00 | 25.00 | 7 | -12.50 | 1 |" in lines
    assert not any("| 24 |" in line for line in lines)
    assert any("network fine-tune | not run" in line for line in table([row("bnnr", 4)], ours[:1]))


def test_rows_of_other_inputs_are_not_compared():
    with pytest.raises(ValueError, match="had not the same to repair"):
        comparisons([row("bnnr", 4, before=~RIGHT)], [row("auto", 8)])


def test_a_peer_learns_from_no_image_it_is_measured_or_validated_on():
    images = np.arange(200, dtype=np.uint8).reshape(200, 1, 1)
    labels = np.arange(200) % 2
    roles = {"repair": slice(0, 50), "test": slice(50, 100), "replay": slice(100, 150), "regression": slice(150, 200)}
    given = sets_given({role: (images[part], labels[part]) for role, part in roles.items()}, seed=0)
    found = {role: set(given[f"{role}_images"].ravel().tolist()) for role in ("train", "validation", "test")}
    assert [len(found[role]) for role in found] == [90, 10, 50]
    assert found["train"] | found["validation"] == {*range(50), *range(100, 150)}
    assert len(given["regression_labels"]) == 34  # 8 of 25 of each class guard the choice of our own jobs
    assert given["test_images"].shape == (50, 3, 1, 1)


def test_the_network_handed_over_answers_as_the_file_does_and_has_layers_to_hook(tmp_path):
    network = DigitsNet().eval()
    torch.jit.script(network).save(str(tmp_path / "model.pt"))
    handed = eager_network(tmp_path / "model.pt", CASES["digits"], tmp_path, grey=True)
    pixels = torch.rand(5, 1, 8, 8)
    torch.testing.assert_close(handed(pixels.expand(-1, 3, -1, -1)), network(pixels))
    assert any(isinstance(module, torch.nn.Conv2d) for module in handed.modules())
