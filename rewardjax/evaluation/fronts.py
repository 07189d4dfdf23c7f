"""Trade-offs between two objectives, both of which should be large."""

import numpy as np
from jaxtyping import Array, Float


def hypervolume(
    points: Float[Array | np.ndarray, "points 2"], worst: Float[Array | np.ndarray, "2"]
) -> float:
    """Area of what is better than `worst` in both objectives and not better than every point in either.

    Zitzler & Thiele (1999). A point that is below `worst` in one objective adds nothing.

    Raises:
      ValueError: a value is not finite.
    """
    gains = np.asarray(points, np.float64) - np.asarray(worst, np.float64)
    if not np.all(np.isfinite(gains)):
        raise ValueError("points, worst: expected finite values")
    gains = gains[np.all(gains > 0, axis=1)]
    first, second = gains[np.argsort(-gains[:, 0])].T
    return float(np.sum(first * np.diff(np.maximum.accumulate(second), prepend=0.0)))
