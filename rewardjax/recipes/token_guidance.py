"""What the tokens of compared responses are worth, and how a preference loss is led by it.

Pairs are a dict of `tokens`, `valid` and `mask`, `[pairs, 2, time]`, the chosen response first, and `theme`.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from rewardjax.models.language_model import LanguageModel
from rewardjax.tasks.preference_world import PreferenceWorld

Tokens = Float[Array, "pairs 2 time"]  # chosen, rejected


def coefficients(rewards: Tokens, alpha: float, *, largest: float = 0.95) -> Tokens:
    """`1 + alpha r` on tokens of the chosen response, `1 - alpha r` on those of the rejected one.

    TGDPO's (arXiv:2506.14574). They have to stay positive.

    Args:
      rewards: r of each token.
      alpha: how far the rewards lead; 0 gives ones.
      largest: of `|alpha r|`, below 1.
    """
    sign = jnp.array([1.0, -1.0])[:, None]
    return 1.0 + sign * jnp.clip(alpha * rewards, -largest, largest)


def shuffle_rewards(rewards: Tokens, pairs, key: PRNGKeyArray) -> Tokens:
    """The same rewards, given to the tokens of the same response in another order."""
    mask, valid = pairs["mask"], pairs["valid"]
    place = jnp.where(mask, jax.random.uniform(key, mask.shape), jnp.where(valid, -1.0, 2.0))
    return jnp.take_along_axis(rewards, jnp.argsort(place, axis=-1), axis=-1)


def true_scores(world: PreferenceWorld, pairs) -> Tokens:
    """What each token adds to the gold utility of the response so far."""
    theme = {"theme": pairs["theme"].reshape(-1, pairs["theme"].shape[-1])}
    tokens, mask = (pairs[name].reshape(-1, pairs[name].shape[-1]) for name in ("tokens", "mask"))
    columns = jnp.arange(tokens.shape[1])
    so_far = jax.vmap(lambda end: world.gold(tokens, mask & (columns <= end), theme))(columns)
    return jnp.diff(so_far, axis=0, prepend=0.0).T.reshape(pairs["tokens"].shape)


def token_logprobs(model: LanguageModel, params, pairs) -> Tokens:
    """Log-probability of each token of the pairs."""
    tokens, valid = (pairs[name].reshape(-1, pairs[name].shape[-1]) for name in ("tokens", "valid"))
    return model.score(params, tokens, valid.astype(jnp.int32))[0].reshape(pairs["tokens"].shape)
