"""How far two clouds of samples lie apart."""

import numpy as np
from jaxtyping import Float
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist


def wasserstein2(first: Float[np.ndarray, "n size"], second: Float[np.ndarray, "m size"]) -> float:
    """The 2-Wasserstein distance of two equally many samples, by the best one-to-one matching.

    In the samples' unit. It is above 0 also for two clouds from one distribution: compare with that.
    Takes O(n^3): a second for n = 1000.

    Raises:
      ValueError: the clouds differ in number or in size.
    """
    if first.shape != second.shape:
        raise ValueError(
            f"first, second: expected equal shapes, found {first.shape} and {second.shape}"
        )
    costs = cdist(first, second, "sqeuclidean")
    return float(np.sqrt(costs[linear_sum_assignment(costs)].mean()))
