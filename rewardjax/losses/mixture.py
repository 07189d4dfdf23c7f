"""Preferences of a mixture of annotators: which scorer a label follows is hidden.

MiCRo (arXiv:2505.24846): `P(first preferred | x) = sum_k f_k(x) s(d_k)`, with `d_k` the difference that
scorer k sees, `f(x)` the mixture's weights, s the logistic function.
"""

import jax
from jaxtyping import Array, Float


def mixture_bradley_terry(
    differences: Float[Array, "*batch scorers"], log_weights: Float[Array, "*batch scorers"]
) -> Float[Array, "*batch"]:
    """`-log sum_k f_k s(d_k)`: the probabilities are mixed, not the scores.

    Args:
      differences: each scorer's score of the preferred response less that of the other.
      log_weights: logarithms of weights that sum to 1.
    """
    return -jax.nn.logsumexp(log_weights + jax.nn.log_sigmoid(differences), axis=-1)


def hedge_targets(
    log_weights: Float[Array, "*batch scorers"],
    scorer_losses: Float[Array, "*batch scorers"],
    *,
    temperature: float | Float[Array, ""],
) -> Float[Array, "*batch scorers"]:
    """`f_k exp(-L_k / temperature) / Z`: the least of `sum_k w_k L_k + temperature KL(w || f)`.

    One round of Hedge (Freund and Schapire, 1997). At temperature 1 and with Bradley-Terry losses it is
    how probably each scorer made the label. No gradient passes.

    Args:
      log_weights: logarithms of f, the weights before.
      scorer_losses: L, what each scorer alone would lose.
      temperature: above 0; a small one follows the best scorer.
    """
    found = jax.nn.softmax(log_weights - scorer_losses / temperature)
    return jax.lax.stop_gradient(found)
