"""The example pairs: three columns of real pixels, whatever the images are."""

import numpy as np
import pytest
from PIL import Image

from archrepair_core.data.corruptions import Corruption
from archrepair_core.data.images import ImageRows
from archrepair_core.recognition import Candidate, Recognition
from archrepair_core.report.pairs import GAP, HEADER, TILE, draw_pairs


@pytest.mark.parametrize(("channels", "dtype", "white"), [(3, np.uint8, 255.0), (1, np.float32, 1.0)])
def test_each_row_holds_a_known_image_the_same_corrupted_and_one_of_the_field(tmp_path, channels, dtype, white):
    random = np.random.default_rng(0)
    known, field = ((random.random((5, 32, 32, channels)) * white).astype(dtype) for _ in range(2))
    recognition = Recognition("exposure", 0.5, True, 1, 9, 1, (Candidate("exposure", 0.5, 1),), {}, 5, white)
    sets = {name: ImageRows(pixels, np.arange(5)) for name, pixels in (("known", known), ("field", field))}
    draw_pairs(tmp_path / "pairs.png", recognition, known=sets["known"], field=sets["field"])
    sheet = np.asarray(Image.open(tmp_path / "pairs.png").convert("RGB")).astype(float) / 255
    assert sheet.shape == (HEADER + 5 * (TILE + GAP), 3 * (TILE + GAP) + GAP, 3)

    def shown(row: int, column: int) -> np.ndarray:
        top, left = HEADER + row * (TILE + GAP), GAP + column * (TILE + GAP)
        return sheet[top + 2 : top + TILE : 4, left + 2 : left + TILE : 4]

    corrupted = Corruption("exposure", 0.5, white)(known, range(5))
    for row in range(5):
        for column, images in enumerate((known, corrupted, field)):
            assert np.abs(shown(row, column) - images[row] / white).max() < 1 / 250
