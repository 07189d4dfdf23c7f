"""The optimum of KL-regularised reward maximisation, from samples of the reference policy.

    max_p E_p[u] - gamma KL(p || reference)    is solved by    p ~ reference exp(u / gamma)

so that weights softmax(u / gamma) over samples of a prompt stand for it, as far as the samples reach: up
to KL divergences well below the logarithm of their number.
"""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Array, Float, Shaped


def tilted(utility: Float[Array | np.ndarray, "prompts samples"], gamma: float) -> np.ndarray:
    """Weights of the samples under the optimum, `[prompts, samples]`; a prompt's sum to 1.

    Args:
      utility: u, of samples of the reference policy.
      gamma: above 0, utility per nat.
    """
    logits = np.asarray(utility, np.float64) / gamma
    weights = np.exp(logits - np.max(logits, axis=1, keepdims=True))
    return weights / np.sum(weights, axis=1, keepdims=True)


def tilted_kl(weights: Float[np.ndarray, "prompts samples"]) -> float:
    """KL(optimum || reference) of weights, in nats, averaged over prompts."""
    shares = np.where(weights > 0, weights, 1.0)
    return float(np.mean(np.sum(weights * np.log(shares * weights.shape[1]), axis=1)))


def gamma_at_kl(utility: Float[Array | np.ndarray, "prompts samples"], budget: float) -> float:
    """The gamma whose optimum is `budget` nats away from the reference, to a relative 1e-9.

    Raises:
      ValueError: the budget is not positive, or more than the samples can show: even on each prompt's best
        samples alone the divergence stays below it.
    """
    scale = float(np.std(np.asarray(utility, np.float64)))
    low, high = 1e-6 * scale, 1e6 * scale
    if not (budget > 0 and scale > 0 and tilted_kl(tilted(utility, low)) > budget):
        raise ValueError(f"budget: expected a divergence that the samples can show, found {budget}")
    while high / low > 1 + 1e-9:
        middle = np.sqrt(low * high)
        if tilted_kl(tilted(utility, middle)) > budget:
            low = middle
        else:
            high = middle
    return float(np.sqrt(low * high))


def optimum_at_kl(
    utility: Float[Array | np.ndarray, "prompts samples"],
    columns: Mapping[str, Shaped[Array | np.ndarray, "prompts samples"]],
    budget: float,
) -> tuple[float, dict[str, float]]:
    """The optimum that is `budget` nats away from the reference: (gamma, means).

    Args:
      utility: u, of samples of the reference policy.
      columns: what else is known of the samples, by name.
      budget: of KL divergence, averaged over prompts.

    Returns:
      gamma, and each column's mean under the optimum.

    Raises:
      ValueError: no optimum is so far away, as `gamma_at_kl` says.
    """
    gamma = gamma_at_kl(utility, budget)
    weights = tilted(utility, gamma)
    means = {name: np.mean(np.sum(weights * x, axis=1)) for name, x in columns.items()}
    return gamma, {name: float(mean) for name, mean in means.items()}
