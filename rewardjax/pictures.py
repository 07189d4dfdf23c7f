"""Pixels that people look at."""

import io
from collections.abc import Sequence

import numpy as np
from matplotlib.image import imsave


def to_pixels(image: np.ndarray) -> np.ndarray:
    """An image as uint8 `[height, width, 3]`.

    Args:
      image: `[height, width]` or `[height, width, 3]`, uint8 or floats, which are cut to [0, 1].

    Raises:
      ValueError: another shape; a value that is not finite.
    """
    image = np.asarray(image)
    if image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[-1] != 3):
        raise ValueError(f"image: expected [height, width(, 3)], found {list(image.shape)}")
    if image.dtype != np.uint8:
        if not np.all(np.isfinite(image)):
            raise ValueError("image: expected finite values, found NaN or infinity")
        image = np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8)
    return np.repeat(image[..., None], 3, axis=-1) if image.ndim == 2 else image


def grid(
    images: Sequence[np.ndarray] | np.ndarray, columns: int, gap: int = 1, scale: int = 1
) -> np.ndarray:
    """Images of one size beside and below each other, as uint8 `[height, width, 3]`.

    Args:
      images: at least one, each as `to_pixels` takes it; read row by row.
      columns: images a row.
      gap: white pixels between images.
      scale: each pixel becomes `scale x scale`; gaps do not.

    Raises:
      ValueError: there are none, or their shapes differ.
    """
    tiles = [to_pixels(image) for image in images]
    shapes = {tile.shape for tile in tiles}
    if len(shapes) != 1:
        raise ValueError(f"images: expected some of one shape, found {sorted(shapes) or 'none'}")
    height, width = (size * scale for size in tiles[0].shape[:2])
    rows = -(-len(tiles) // columns)
    sheet = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, 3), 255, np.uint8)
    for index, tile in enumerate(tiles):
        top, left = (index // columns) * (height + gap), (index % columns) * (width + gap)
        sheet[top : top + height, left : left + width] = tile.repeat(scale, 0).repeat(scale, 1)
    return sheet


def png(image: np.ndarray) -> bytes:
    """An image, as `to_pixels` takes it, as a PNG file's bytes."""
    file = io.BytesIO()
    imsave(file, to_pixels(image), format="png")
    return file.getvalue()
