"""Where control episodes went, as pixels."""

import numpy as np


def path_picture(
    points: np.ndarray,
    mask: np.ndarray,
    *,
    centre: tuple[float, float] = (0.0, 0.0),
    extent: float = 1.0,
    radius: float = 0.0,
    size: int = 128,
) -> np.ndarray:
    """Episodes' paths in the plane (or a phase plane), from blue at the start to red at the end.

    Args:
      points: `[batch, time, 2]`, the first number to the right, the second up; what lies outside
        the picture is drawn at its edge.
      mask: `[batch, time]`, on at the points that there are.
      centre: the point in the picture's middle.
      extent: from there to the edge, in the points' unit.
      radius: of a grey disc around the centre, the goal.
      size: pixels along a side.

    Returns:
      uint8 `[size, size, 3]`.
    """
    image = np.full((size, size, 3), 255, np.uint8)
    axis = (np.arange(size) + 0.5) / size * 2 * extent - extent
    image[np.hypot(axis[:, None], axis[None, :]) <= radius] = 215
    for path, acted in zip(points, mask):
        path = path[acted]
        if not len(path):
            continue
        fine = np.linspace(0, len(path) - 1, size * 4)
        right, up = (np.interp(fine, np.arange(len(path)), path[:, i]) - centre[i] for i in (0, 1))
        share = (np.arange(len(fine)) / len(fine) * 255).astype(np.uint8)
        rows, columns = (
            np.clip((x / extent + 1) / 2 * size, 0, size - 1).astype(int) for x in (-up, right)
        )
        image[rows, columns] = np.stack([share, np.full_like(share, 40), 255 - share], axis=-1)
    return image
