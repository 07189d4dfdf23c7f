"""Lists and labelled pairs of `CyclicStyles`, and how often a judge of pairs is right on them.

Columns are those of `models.multi_response`: `prompt`, `prompt_valid`, `responses`, `valid`.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from rewardjax.models.multi_response import reorder
from rewardjax.tasks.annotators import compare, preference_probability
from rewardjax.tasks.cyclic_styles import CyclicStyles


def styled_lists(
    world: CyclicStyles, key: PRNGKeyArray, style: Int[Array, "n responses"]
) -> dict[str, Array]:
    """A prompt and responses in these styles a row; `ahead` `[n, responses, responses]` is their
    advantage over each other, and `style` is kept."""
    prompt_key, response_key = jax.random.split(key)
    prompts = world.prompts(prompt_key, style.shape[0])
    responses, quality = world.responses(response_key, style)
    return {
        "prompt": prompts.tokens,
        "prompt_valid": prompts.valid,
        "responses": responses,
        "valid": jnp.ones_like(responses, bool),
        "style": style,
        "ahead": world.advantage(style, quality, prompts.info["direction"]),
    }


def random_lists(world: CyclicStyles, key: PRNGKeyArray, n: int, count: int) -> dict[str, Array]:
    """`n` lists of `count` responses in random styles."""
    style_key, key = jax.random.split(key)
    return styled_lists(world, key, jax.random.randint(style_key, (n, count), 0, world.styles))


def labelled_pairs(
    world: CyclicStyles, key: PRNGKeyArray, n: int, temperature: float
) -> dict[str, Array]:
    """`n` pairs, the response that an annotator of this temperature preferred first."""
    list_key, label_key = jax.random.split(key)
    lists = random_lists(world, list_key, n, 2)
    ahead = lists["ahead"][:, 0, 1]
    first = compare(label_key, ahead, jnp.zeros_like(ahead), temperature=temperature)
    order = jnp.where(first[:, None], jnp.array([0, 1]), jnp.array([1, 0]))
    columns = {name: lists[name] for name in ("prompt", "prompt_valid")}
    return columns | {name: reorder(lists[name], order) for name in ("responses", "valid")}


def win_rates(world: CyclicStyles, temperature: float) -> Float[Array, "styles styles"]:
    """How probably an annotator prefers a style (row) to a style (column), both of equal quality."""
    style = jnp.arange(world.styles)
    ahead = world.cycle(style[:, None], style).astype(jnp.float32)
    return preference_probability(ahead, jnp.zeros_like(ahead), temperature=temperature)


def judge_metrics(
    logits: Float[Array, "n responses responses"],
    style: Int[Array, "n responses"],
    ahead: Float[Array, "n responses responses"],
) -> dict[str, Float[Array, ""]]:
    """What logits of the row's response being preferred to the column's are worth.

    Returns:
      `cyclic_accuracy`, how often the better response wins, of pairs in two styles (a tie is half a win);
      `quality_accuracy`, the same of pairs in one style and of different quality;
      `asymmetry`, mean |P(i over j) + P(j over i) - 1| of different responses.
    """
    right = (logits * ahead > 0) + 0.5 * (logits == 0)
    across = style[:, :, None] != style[:, None, :]
    within = ~across & (ahead != 0)
    chances = jax.nn.sigmoid(logits) + jax.nn.sigmoid(logits.swapaxes(1, 2))
    others = ~jnp.eye(style.shape[1], dtype=bool)
    return {
        "cyclic_accuracy": jnp.mean(right, where=across),
        "quality_accuracy": jnp.mean(right, where=within),
        "asymmetry": jnp.mean(jnp.abs(chances - 1), where=others),
    }
