"""Responses that are spoilt, noisy, or right for another request: what a scorer may or may not heed.

A clumsy response can be told without its request; one on other themes cannot. Pure functions of keys
and arrays on a `PreferenceWorld`; `n` responses of `time` tokens, `valid` where there is one.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from rewardjax.tasks.preference_world import PreferenceWorld

Tokens = Int[Array, "n time"]
Valid = Bool[Array, "n time"]
Themes = Int[Array, "n requested"]


def similar_requests(world: PreferenceWorld, key: Key[Array, ""], theme: Themes) -> Themes:
    """The same requests with another last theme."""
    other = _unrequested(world, key, theme)
    return jnp.concatenate([theme[:, :-1], other[:, None]], axis=1)


def spoilt(
    world: PreferenceWorld,
    key: Key[Array, ""],
    tokens: Tokens,
    valid: Valid,
    theme: Themes,
    *,
    share: float,
    clumsy: float,
) -> Tokens:
    """Responses made worse: some of each one's tokens are replaced.

    Args:
      world: its tokens.
      key: consumed.
      tokens, valid: the responses.
      theme: what was requested.
      share: of a response's tokens other than `eos` that are replaced; one at least.
      clumsy: how often the new tokens are neutral ones, negative ones and repeats; otherwise they are of a
        theme that was not requested.
    """
    keys = jax.random.split(key, 8)
    content = valid & (tokens != world.eos)
    drawn = jnp.where(content, jax.random.uniform(keys[0], tokens.shape), 2.0)
    where = content & ((drawn < share) | (drawn == jnp.min(drawn, axis=1, keepdims=True)))
    neutral = world.first_neutral + jax.random.randint(keys[1], tokens.shape, 0, world.neutral)
    negative = world.first_negative + jax.random.randint(keys[2], tokens.shape, 0, world.negative)
    place = jnp.where(content, jax.random.uniform(keys[3], tokens.shape), -1.0)
    repeat = jnp.take_along_axis(tokens, jnp.argmax(place, axis=1)[:, None], axis=1)
    kind = jax.random.randint(keys[4], tokens.shape, 0, 3)
    poor = jnp.select([kind == 0, kind == 1], [neutral, negative], repeat)
    other = _unrequested(world, keys[5], theme)[:, None] * world.tokens_per_theme
    word = jax.random.randint(keys[6], tokens.shape, 0, world.tokens_per_theme)
    is_clumsy = jax.random.bernoulli(keys[7], clumsy, (len(tokens), 1))
    new = jnp.where(is_clumsy, poor, world.first_theme_token + other + word)
    return jnp.where(where, new, tokens)


def noised(
    world: PreferenceWorld, key: Key[Array, ""], tokens: Tokens, valid: Valid, *, count: int
) -> Tokens:
    """Responses with `count` of their tokens other than `eos` replaced by any words."""
    place_key, word_key = jax.random.split(key)
    content = valid & (tokens != world.eos)
    drawn = jnp.where(content, jax.random.uniform(place_key, tokens.shape), 2.0)
    rank = jnp.argsort(jnp.argsort(drawn, axis=1), axis=1)
    words = jax.random.randint(word_key, tokens.shape, world.first_theme_token, world.first_marker)
    return jnp.where(content & (rank < count), words, tokens)


def _unrequested(world, key, theme) -> Int[Array, "n"]:
    drawn: Float[Array, "n themes"] = jax.random.uniform(key, (len(theme), world.themes))
    return jnp.argmax(drawn - jnp.sum(jax.nn.one_hot(theme, world.themes), axis=1), axis=1)
