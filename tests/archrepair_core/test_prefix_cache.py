"""Cached features: what the prefix gives, view by view, and only for the model they were computed from."""

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchvision.models import DenseNet

from archrepair_core.cut import Cut, cut_at
from archrepair_core.data.augment import AUGMENTATIONS, move
from archrepair_core.data.images import ImageRows, LabelledImages
from archrepair_core.data.preprocessing import to_tensor
from archrepair_core.errors import EngineError
from archrepair_core.ingest.model import ingest_model
from archrepair_core.prefix_cache import INPUT, PrefixCache
from archrepair_core.spec import Preprocessing

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
COUNT, DENSE_LAYER = 5, "features.denseblock2.denselayer2"


def split(name: str) -> LabelledImages:
    pixels = np.random.default_rng(0).integers(0, 256, (COUNT, 32, 32, 3), dtype=np.uint8)
    labels = np.arange(COUNT) % 4
    return LabelledImages(name, ImageRows(pixels, np.arange(COUNT)), labels, "", np.empty(COUNT, "S16"), "test")


def cache_of(model: nn.Module, work_dir) -> PrefixCache:
    return PrefixCache(
        model=model,
        splits={"repair": split("repair")},
        original_logits={"repair": torch.zeros(COUNT, 4)},
        preprocessing=Preprocessing(),
        views={"repair": AUGMENTATIONS["flip"]},
        work_dir=work_dir,
        device=torch.device("cpu"),
        batch_size=4,
    )


@pytest.fixture
def model(tmp_path) -> nn.Module:
    torch.manual_seed(0)
    torch.jit.script(DenseNet(4, (2, 3), 8, 2, num_classes=4).eval()).save(tmp_path / "upload.pt")
    return ingest_model(tmp_path / "upload.pt", tmp_path).model.eval()


def images() -> Tensor:
    return to_tensor(split("repair").images[:], Preprocessing())


def test_several_tensors_entering_a_block_are_cached_as_one_row_per_view_and_input(model, tmp_path):
    features = cache_of(model, tmp_path).features(DENSE_LAYER, "training")
    cut = cut_at(model, DENSE_LAYER, images())
    assert isinstance(cut, Cut), cut
    assert features.inputs_VN.shape[:2] == (2, COUNT)
    for row, view in zip(features.inputs_VN, AUGMENTATIONS["flip"], strict=True):
        with torch.no_grad():
            expected = cut.prefix(move(images(), view))
        torch.testing.assert_close(torch.from_numpy(np.array(row)).float(), expected, rtol=2e-3, atol=2e-3)
    entering = features.batch(np.zeros(COUNT, int), np.arange(COUNT), torch.device("cpu"))
    torch.testing.assert_close(cut.tail(entering), model(images()), rtol=1e-2, atol=1e-2)


def test_features_are_computed_once_and_shared_with_another_start_only_at_the_input(model, tmp_path):
    cache = cache_of(model, tmp_path)
    at_input, at_cut = cache.features(INPUT, "training"), cache.features(DENSE_LAYER, "training")
    assert cache.features(DENSE_LAYER, "training") is at_cut
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.get_parameter("features.conv0.weight").mul_(0.5)
    from_other = cache.starting_from(other)
    assert from_other.features(INPUT, "training") is at_input
    assert not np.array_equal(from_other.features(DENSE_LAYER, "training").inputs_VN, at_cut.inputs_VN)


@pytest.mark.parametrize("key", ["features.conv0.weight", "features.norm0.running_mean"])
def test_features_of_a_model_that_changed_are_refused(key, model, tmp_path):
    cache = cache_of(model, tmp_path)
    cache.features(DENSE_LAYER, "training")
    model.state_dict()[key].data.view(-1)[0] += 1e-3
    with pytest.raises(EngineError, match="changed") as caught:
        cache.features(DENSE_LAYER, "training")
    assert caught.value.code == "platform.stale_features"
