"""How much of an actual score a learned reward tells."""

import numpy as np
from jaxtyping import Array, Float, Num


def r_squared(
    reward: Num[Array | np.ndarray, "points"],
    score: Num[Array | np.ndarray, "points"],
    edges: Float[np.ndarray, "edges"] | None = None,
) -> float:
    """`1 - SS_res / SS_tot` of the line that predicts scores from rewards best, in [0, 1].

    The coefficient of determination by which PF-PPO (arXiv:2409.06957) chooses its filter; 0 where
    rewards or scores do not differ at all. It grows with the spread of the rewards.

    Args:
      reward: of each response.
      score: what it is really worth.
      edges: rising edges of bins of reward: then the points are the bins' mean rewards and scores, each
        weighing as many responses as it holds. Compare sets of responses on the same edges.

    Raises:
      ValueError: no point, a value that is not finite, or a reward outside the edges.
    """
    x, y = np.asarray(reward, np.float64), np.asarray(score, np.float64)
    if x.size == 0 or not (np.all(np.isfinite(x)) and np.all(np.isfinite(y))):
        raise ValueError("reward, score: expected at least one point, all of them finite")
    weight = np.ones_like(x)
    if edges is not None:
        if np.min(x) < edges[0] or np.max(x) > edges[-1]:
            found = f"{np.min(x)} to {np.max(x)}"
            raise ValueError(f"edges: expected to hold every reward, {found}; found {edges}")
        index = np.clip(np.searchsorted(edges, x, side="right") - 1, 0, len(edges) - 2)
        count = np.bincount(index).astype(np.float64)
        weight = count[count > 0]
        x, y = (np.bincount(index, v)[count > 0] / weight for v in (x, y))
    dx, dy = (v - np.average(v, weights=weight) for v in (x, y))
    spread = np.sum(weight * dx**2) * np.sum(weight * dy**2)
    return float(np.sum(weight * dx * dy) ** 2 / spread) if spread > 0 else 0.0
