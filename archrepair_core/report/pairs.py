"""A picture to judge the recognition by: known images, the same through what was recognised, real field images."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from archrepair_core.data.images import ImageRows
from archrepair_core.recognition import Recognition

ROWS = 8
TILE = 128  # pixels; smaller images are enlarged by whole factors, so that their own pixels can be seen
GAP = 6
HEADER = 40
TITLES = ("known", "known, as recognised", "field")


def draw_pairs(path: Path, recognition: Recognition, *, known: ImageRows, field: ImageRows) -> None:
    """Write the grid as PNG: a header, then up to eight rows of three tiles. `recognition` must name a corruption."""
    assert recognition.corruption is not None, "there is nothing to pass the known images through"
    count = min(ROWS, len(known), len(field))
    plain = known[:count]
    columns = (plain, recognition.corruption(plain, range(count)), field[:count])
    tiles = [[_tile(image, recognition.full_scale) for image in column] for column in columns]
    width, height = tiles[0][0].size
    sheet = Image.new("RGB", (3 * (width + GAP) + GAP, HEADER + count * (height + GAP)), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default()
    draw.text((GAP, GAP), recognition.corruption.describe(), fill="black", font=font)
    for column, (title, pictures) in enumerate(zip(TITLES, tiles, strict=True)):
        left = GAP + column * (width + GAP)
        draw.text((left, HEADER // 2), title, fill="black", font=font)
        for row, picture in enumerate(pictures):
            sheet.paste(picture.resize((width, height)), (left, HEADER + row * (height + GAP)))
    sheet.save(path)


def _tile(image_HWC: np.ndarray, full_scale: float) -> Image.Image:
    white = 255.0 if image_HWC.dtype == np.uint8 else full_scale
    pixels = np.rint(np.clip(image_HWC / white, 0, 1) * 255).astype(np.uint8)
    picture = Image.fromarray(np.broadcast_to(pixels, (*pixels.shape[:2], 3)).copy())
    factor = max(1, -(-TILE // max(picture.size)))
    enlarged = picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)
    enlarged.thumbnail((2 * TILE, 2 * TILE))
    return enlarged
