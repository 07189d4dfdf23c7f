import io

import numpy as np
import pytest
from matplotlib.image import imread

from rewardjax.pictures import grid, png, to_pixels
from rewardjax.training.run import Run, Silent


def test_floats_become_pixels_and_grey_becomes_three_channels():
    pixels = to_pixels(np.array([[0.0, 0.5, 2.0]]))
    assert pixels.dtype == np.uint8
    np.testing.assert_array_equal(pixels, np.array([[[0] * 3, [128] * 3, [255] * 3]]))


def test_a_grid_is_read_row_by_row_with_white_between():
    tiles = np.arange(3, dtype=np.uint8).reshape(3, 1, 1) * 10
    sheet = grid(tiles, columns=2, gap=1, scale=2)
    w = 255
    expected = [[0, 0, w, 10, 10]] * 2 + [[w] * 5] + [[20, 20, w, w, w]] * 2
    np.testing.assert_array_equal(sheet, np.repeat(np.array(expected)[..., None], 3, axis=-1))


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros(3), r"expected \[height, width\(, 3\)\], found \[3\]"),
        (np.zeros((2, 2, 4)), r"found \[2, 2, 4\]"),
        (np.full((1, 1), np.nan), "expected finite values"),
    ],
)
def test_a_bad_image_is_named(image, message):
    with pytest.raises(ValueError, match=message):
        to_pixels(image)


def test_images_of_different_sizes_are_refused():
    with pytest.raises(ValueError, match="expected some of one shape"):
        grid([np.zeros((1, 1)), np.zeros((2, 1))], columns=2)
    with pytest.raises(ValueError, match="found none"):
        grid([], columns=2)


def test_a_run_keeps_the_last_picture_of_a_name(tmp_path):
    with Run(tmp_path / "arm" / "seed_0", 0, "arm", observer=Silent()) as run:
        run.stage("policy").picture("samples", np.zeros((2, 3)))
        run.stage("policy").picture("samples", np.ones((2, 3)))
    written = (tmp_path / "arm/seed_0/policy/pictures/samples.png").read_bytes()
    np.testing.assert_array_equal(imread(io.BytesIO(written))[..., :3], np.ones((2, 3, 3)))
    assert written == png(np.ones((2, 3)))
