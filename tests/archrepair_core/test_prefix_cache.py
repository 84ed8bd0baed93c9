"""Features at a cut: what the prefix gives, view by view, within a budget, and only for the model they came from."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchvision.models import DenseNet

from archrepair_core.cut import Cut, cut_at
from archrepair_core.data.augment import AUGMENTATIONS, IDENTITY, View, move
from archrepair_core.data.images import ImageRows, LabelledImages
from archrepair_core.data.preprocessing import to_tensor
from archrepair_core.errors import EngineError
from archrepair_core.features import COMPUTED_AT_ONCE, DiskBudget, Features, StoredRows, StreamedRows
from archrepair_core.ingest.model import ingest_model
from archrepair_core.layout import lay_out_
from archrepair_core.prefix_cache import INPUT, PrefixCache
from archrepair_core.spec import Preprocessing

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
COUNT, DENSE_LAYER = 5, "features.denseblock2.denselayer2"
CPU = torch.device("cpu")


def split(name: str, count: int = COUNT, seed: int = 0) -> LabelledImages:
    pixels = np.random.default_rng(seed).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
    labels = np.arange(count) % 4
    return LabelledImages(name, ImageRows(pixels, np.arange(count)), labels, "", np.empty(count, "S16"), "test")


def cache_of(model: nn.Module, work_dir, *, max_bytes=math.inf, views=None, **more: LabelledImages) -> PrefixCache:
    splits = {"repair": split("repair")} | more
    return PrefixCache(
        model=model,
        splits=splits,
        original_logits={name: torch.zeros(len(images), 4) for name, images in splits.items()},
        preprocessing=Preprocessing(),
        views=views or {"repair": AUGMENTATIONS["flip"]},
        work_dir=work_dir,
        device=CPU,
        budget=DiskBudget(max_bytes),
    )


@pytest.fixture
def model(tmp_path) -> nn.Module:
    torch.manual_seed(0)
    torch.jit.script(DenseNet(4, (2, 3), 8, 2, num_classes=4).eval()).save(tmp_path / "upload.pt")
    return ingest_model(tmp_path / "upload.pt", tmp_path).model.eval()


def images() -> Tensor:
    return to_tensor(split("repair").images[:], Preprocessing())


def whole_view(features: Features, view: int) -> Tensor:
    items = np.arange(len(features))
    return features.batch(np.full_like(items, view), items, CPU)


def test_several_tensors_entering_a_block_are_cached_as_one_row_per_view_and_input(model, tmp_path):
    features = cache_of(model, tmp_path).features(DENSE_LAYER, "training")
    cut = cut_at(model, DENSE_LAYER, images())
    assert isinstance(cut, Cut), cut
    assert features.num_views_N.tolist() == [2] * COUNT
    for number, view in enumerate(AUGMENTATIONS["flip"]):
        with torch.no_grad():
            expected = cut.prefix(move(images(), view))
        torch.testing.assert_close(whole_view(features, number), expected, rtol=2e-3, atol=2e-3)
    torch.testing.assert_close(cut.tail(whole_view(features, 0)), model(images()), rtol=1e-2, atol=1e-2)


def test_features_are_computed_once_and_shared_with_another_start_only_at_the_input(model, tmp_path):
    cache = cache_of(model, tmp_path)
    at_input, at_cut = cache.features(INPUT, "training"), cache.features(DENSE_LAYER, "training")
    assert cache.features(DENSE_LAYER, "training").parts[0] is at_cut.parts[0]
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.get_parameter("features.conv0.weight").mul_(0.5)
    from_other = cache.starting_from(other)
    assert from_other.features(INPUT, "training").parts[0] is at_input.parts[0]
    assert not torch.equal(whole_view(from_other.features(DENSE_LAYER, "training"), 0), whole_view(at_cut, 0))
    assert cache.features(DENSE_LAYER, "training").parts[0] is at_cut.parts[0], "the first start still has its own"


@pytest.mark.parametrize("key", ["features.conv0.weight", "features.norm0.running_mean"])
def test_features_of_a_model_that_changed_are_refused(key, model, tmp_path):
    cache = cache_of(model, tmp_path)
    cache.features(DENSE_LAYER, "training")
    model.state_dict()[key].data.view(-1)[0] += 1e-3
    with pytest.raises(EngineError, match="changed") as caught:
        cache.features(DENSE_LAYER, "training")
    assert caught.value.code == "platform.stale_features"


@pytest.mark.parametrize("cut_name", [INPUT, DENSE_LAYER])
def test_streamed_features_are_the_stored_ones_while_the_model_trains_and_keep_its_modes(cut_name, model, tmp_path):
    views = {"repair": (IDENTITY, View(flip=True), View(dy=1, dx=-1))}
    stored = cache_of(model, tmp_path, views=views).features(cut_name, "repair")
    streamed = cache_of(model, tmp_path, views=views, max_bytes=0).features(cut_name, "repair")
    assert (type(stored.parts[0]), type(streamed.parts[0])) == (StoredRows, StreamedRows)
    model.train()
    norm = model.get_submodule("features.norm0")
    counted = norm.num_batches_tracked.clone()
    asked = np.array([2, 0, 1, 2, 0, 1]), np.array([0, 4, 2, 1, 4, 0])
    with torch.enable_grad():
        found = streamed.batch(*asked, CPU)
    torch.testing.assert_close(found, stored.batch(*asked, CPU), rtol=2e-3, atol=2e-3)
    assert not found.requires_grad
    assert norm.training
    assert torch.equal(norm.num_batches_tracked, counted)


@pytest.mark.parametrize("cut_name", [INPUT, DENSE_LAYER])
def test_what_is_read_is_computed_then_so_many_at_a_time_and_none_twice(cut_name, model, tmp_path, monkeypatch):
    count, computed = 100, []
    read = StreamedRows.read

    def counted(rows, views, items):
        computed.append(list(zip(views.tolist(), items.tolist(), strict=True)))
        return read(rows, views, items)

    features = cache_of(model, tmp_path, repair=split("repair", count)).features(cut_name, "repair")
    monkeypatch.setattr(StreamedRows, "read", counted)
    rng = np.random.default_rng(0)
    for number in range(1, 40):
        features.batch(rng.integers(2, size=10), rng.integers(count, size=10), CPU)
        if number == 3:
            assert len(computed) <= 3, "no more than was asked for, and what comes with it"
    assert {len(batch) for batch in computed} == {COMPUTED_AT_ONCE}
    assert len(computed) == math.ceil(2 * count / COMPUTED_AT_ONCE), "all of both views, once"
    assert {pair for batch in computed for pair in batch} == set(np.ndindex(2, count))


@pytest.mark.parametrize("cut_name", [INPUT, DENSE_LAYER])
def test_rows_are_the_same_to_the_bit_in_whatever_order_they_are_asked_for(cut_name, model, tmp_path):
    count, found = 150, []
    for seed in range(2):
        features = cache_of(model, tmp_path, repair=split("repair", count)).features(cut_name, "repair")
        for items in np.array_split(np.random.default_rng(seed).permutation(count), 11):
            features.batch(np.ones_like(items), items, CPU)
        found.append(whole_view(features, 1))
    assert torch.equal(*found)


@pytest.mark.parametrize("max_bytes", [0, math.inf])
def test_features_lie_in_memory_as_they_do_in_the_network(max_bytes, tmp_path):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(3136, 4)).eval()
    assert whole_view(cache_of(net, tmp_path).features("1", "repair"), 0).is_contiguous()
    lay_out_(net, images())
    more = {"replay": split("replay", seed=1)}
    found = whole_view(cache_of(net, tmp_path, max_bytes=max_bytes, **more).features("1", "training"), 0)
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert not found.is_contiguous()
    torch.testing.assert_close(found[:COUNT], net[0](images()), rtol=2e-3, atol=2e-3)


def test_roles_have_views_of_their_own_and_rows_come_from_the_right_one(model, tmp_path):
    replay = split("replay", 3, seed=1)
    cache = cache_of(model, tmp_path, views={"repair": AUGMENTATIONS["flip"]}, replay=replay)
    features = cache.features(INPUT, "training")
    assert features.num_views_N.tolist() == [2] * COUNT + [1] * 3
    found = features.batch(np.array([0, 1, 0]), np.array([COUNT + 2, 3, 0]), CPU)
    expected = torch.stack([to_tensor(replay.images[2:3], Preprocessing())[0], images()[3].flip(2), images()[0]])
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


def test_a_smaller_budget_takes_views_first_and_then_computes_what_training_needs(model, tmp_path):
    views = {"repair": AUGMENTATIONS["flip_crop"]}
    row = 2 * 3 * 32 * 32

    def kinds(rows: int) -> list[int | None]:
        cache = cache_of(model, tmp_path, views=views, max_bytes=rows * row, validation=split("validation", 2))
        found = [cache.features(INPUT, role).parts[0] for role in ("repair", "validation")]
        assert cache.budget.used <= cache.budget.max_bytes
        return [part.num_views if isinstance(part, StoredRows) else None for part in found]

    assert kinds(4 * COUNT + 2) == [4, 1]
    assert kinds(4 * COUNT + 1) == [3, 1]
    assert kinds(COUNT + 2) == [1, 1]
    assert kinds(COUNT + 1) == [None, 1]
    assert kinds(1) == [None, None]


def test_the_budget_is_one_for_all_cuts_and_the_longest_unused_go_first(model, tmp_path):
    cache = cache_of(model, tmp_path)
    sizes = {}
    for cut_name in (INPUT, "features.denseblock1.denselayer1", DENSE_LAYER):
        before = cache.budget.used
        cache.features(cut_name, "repair")
        sizes[cut_name] = cache.budget.used - before
    cache = cache_of(model, tmp_path, max_bytes=max(sizes.values()) + min(sizes.values()))
    for cut_name in (*sizes, *sizes):
        assert isinstance(cache.features(cut_name, "repair").parts[0], StoredRows)
        assert cache.budget.used <= cache.budget.max_bytes
    assert not list(tmp_path.glob("features-*"))


def test_rows_that_are_still_read_keep_their_place_in_the_budget(model, tmp_path):
    cache = cache_of(model, tmp_path)
    cache.features(INPUT, "repair")
    cache = cache_of(model, tmp_path, max_bytes=cache.budget.used)
    held = cache.features(INPUT, "repair")
    before = whole_view(held, 1)
    assert isinstance(cache.features(DENSE_LAYER, "repair").parts[0], StreamedRows)
    assert torch.equal(whole_view(held, 1), before)
