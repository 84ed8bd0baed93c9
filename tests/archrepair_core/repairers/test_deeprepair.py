"""Style is band by band mean and covariance: what is transferred arrives, and what is split can be joined."""

import numpy as np
import pytest

from archrepair_core.data.augment import AUGMENTATIONS
from archrepair_core.repairers import deeprepair
from archrepair_core.repairers.deeprepair import (
    StyleTransfer,
    clusters_of,
    join_bands,
    restyle,
    split_bands,
    style_of,
    styled_views,
    train_on_styles,
)
from archrepair_core.training import NUM_TRIED_STEPS
from tests.archrepair_core.repairers.arenas import accuracy, arena_of, damaged_net, quadrants, soon


def image(seed, shape=(8, 12, 3), scale=1.0):
    return np.random.default_rng(seed).random(shape) * scale


@pytest.mark.parametrize("shape", [(8, 8, 1), (8, 12, 3), (7, 9, 3), (4, 4, 2)])
def test_bands_joined_again_are_the_image_and_keep_its_energy(shape):
    pixels = image(0, shape)
    bands = split_bands(pixels)
    assert len(bands) == 7
    assert np.allclose(join_bands(bands)[: shape[0], : shape[1]], pixels)
    if shape[0] % 4 == 0 and shape[1] % 4 == 0:
        assert sum((band**2).sum() for band in bands) == pytest.approx((pixels**2).sum())


def test_a_restyled_image_has_the_style_asked_for():
    wanted = style_of(image(1, (16, 16, 3), scale=0.3) + 0.2)
    found = style_of(restyle(image(2, (16, 16, 3))[None], [wanted])[0])
    for ours, theirs in zip(found.means, wanted.means, strict=True):
        assert np.allclose(ours, theirs, atol=1e-6)
    for ours, theirs in zip(found.covariances, wanted.covariances, strict=True):
        assert np.allclose(ours, theirs, atol=1e-4)


def test_an_image_in_its_own_style_is_itself():
    pixels = image(3, (8, 8, 3))
    assert np.allclose(restyle(pixels[None], [style_of(pixels)])[0], pixels, atol=1e-4)


def test_a_blurred_style_takes_the_finest_detail_away():
    sharp = image(4, (16, 16, 1))
    blurred = sharp.reshape(8, 2, 8, 2, 1).mean((1, 3)).repeat(2, 0).repeat(2, 1)
    changed = restyle(sharp[None], [style_of(blurred)])[0]
    assert (
        np.abs(np.diff(changed[::2] - changed[1::2], axis=0)).max()
        < np.abs(np.diff(sharp[::2] - sharp[1::2], axis=0)).max()
    )
    assert split_bands(changed)[0].std() < 1e-3 < split_bands(sharp)[0].std()


@pytest.mark.parametrize(("dtype", "white"), [(np.uint8, 255.0), (np.float32, 1.0)])
def test_pixels_keep_their_type_and_range_and_the_seed_chooses_the_style(dtype, white):
    pixels = (image(5, (3, 8, 8, 3)) * white).astype(dtype)
    dark, light = style_of(image(6, (8, 8, 3), 0.1)), style_of(image(6, (8, 8, 3), 0.1) + 0.8)
    changed = StyleTransfer((dark, light), white)(pixels, [0, 1, 2])
    assert changed.dtype == dtype
    assert changed.shape == pixels.shape
    assert changed.max() <= white
    means = changed.mean((1, 2, 3)) / white
    assert means[0] < 0.2 < 0.7 < means[1]
    assert means[2] < 0.2


def test_like_styles_are_one_cluster():
    styles = [style_of(image(seed, (8, 8, 1), scale) + shift) for scale, shift in ((0.1, 0.0), (0.1, 0.8), (0.9, 0.0))
              for seed in range(5)]  # fmt: skip
    groups = sorted(sorted(group.tolist()) for group in clusters_of(styles, seed=0))
    assert groups == [list(range(5)), list(range(5, 10)), list(range(10, 15))]
    assert len(clusters_of(styles[:1], seed=0)) == 1


def test_known_images_are_seen_plain_and_in_every_cluster(tmp_path):
    arena = arena_of(damaged_net(), tmp_path, replay=quadrants("replay", 40, seed=3))
    cache = arena.starts["original"].seen_under(dict.fromkeys(("repair", "replay"), AUGMENTATIONS["flip"]))
    views = styled_views(cache, seed=0)
    assert [view.change is None for view in views] == [True, False, False, False]
    assert all(view.flip for view in views[1:])
    assert sum(len(view.change.styles) for view in views[1:]) == 15, "every failing image is in one cluster"


def test_the_damaged_network_is_trained_on_styles(tmp_path):
    net = damaged_net()
    arena = arena_of(net, tmp_path, limits={"distillation": 0}, replay=quadrants("replay", 40, seed=3))
    (trial,) = train_on_styles(arena, [], level="auto", deadline=soon(), epochs=40)
    test = quadrants("test", 200, seed=9)
    assert accuracy(trial.model, test) > accuracy(net, test) + 0.1


def test_only_images_that_are_learned_from_are_restyled(tmp_path, monkeypatch):
    """All of the known images in all styles would be 1200."""
    restyled = []

    def counting(images, styles):
        restyled.append(len(styles))
        return restyle(images, styles)

    monkeypatch.setattr(deeprepair, "restyle", counting)
    arena = arena_of(damaged_net(), tmp_path, replay=quadrants("replay", 400, seed=3))
    train_on_styles(arena, [], level="auto", deadline=soon(-1), epochs=None)
    assert 0 < sum(restyled) <= NUM_TRIED_STEPS * 64
