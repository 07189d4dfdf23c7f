"""Which of several learned scorers stands for which group of people."""

import numpy as np
from jaxtyping import Array, Float, Int
from scipy.optimize import linear_sum_assignment


def matched_scorers(
    agreement: Float[Array | np.ndarray, "scorers groups"],
) -> Int[np.ndarray, "groups"]:
    """A scorer for each group, no scorer for two of them, with the largest total agreement.

    Args:
      agreement: of each scorer with each group, such as an accuracy.

    Raises:
      ValueError: fewer scorers than groups, or a number that is not finite.
    """
    table = np.asarray(agreement, np.float64)
    if table.shape[0] < table.shape[1]:
        raise ValueError(
            f"agreement: expected at least {table.shape[1]} scorers, found {table.shape[0]}"
        )
    if not np.all(np.isfinite(table)):
        raise ValueError("agreement: expected finite numbers")
    scorers, groups = linear_sum_assignment(table, maximize=True)
    return scorers[np.argsort(groups)]
