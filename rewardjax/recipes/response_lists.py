"""Lists of several responses to a prompt, in some order, of which one is the best.

A batch holds `prompt`, `prompt_valid`, `responses` and `valid` as `models.multi_response` takes them,
`utility` `[batch, responses]`, and `best`, the place of the best response.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from rewardjax import losses
from rewardjax.losses import Loss
from rewardjax.models.multi_response import average_over_orders, reorder
from rewardjax.statistics import Mean, to_groups
from rewardjax.tasks.preference_world import PreferenceWorld
from rewardjax.trajectory import Trajectory

COLUMNS = ("prompt", "prompt_valid", "responses", "valid")

Utility = Float[Array, "n responses"]


def written_lists(
    world: PreferenceWorld, key: PRNGKeyArray, n: int, count: int, shortest: tuple[int, int]
) -> dict[str, Array]:
    """`n` prompts with `count` writers' responses each, in random order, and gold as their `utility`.

    A list has a length of its own, drawn from the range `shortest` (both included), and its responses
    are cut to one to two times as many tokens, `eos` included: what is long in one list is short in
    another.
    """
    keys = jax.random.split(key, 4)
    prompts = world.prompts(keys[0], n)
    each = jax.tree.map(lambda x: jnp.repeat(x, count, axis=0), prompts)
    tokens, valid, _ = world.writers(keys[1], each)
    own = jax.random.randint(keys[2], (n, 1), shortest[0], shortest[1] + 1)
    length = jax.random.randint(keys[3], (n, count), own, 2 * own + 1).reshape(-1, 1)
    place = jnp.arange(tokens.shape[1])
    ends = valid & (place == length - 1)
    valid &= place < length
    tokens = jnp.where(ends, world.eos, jnp.where(valid, tokens, world.pad))
    gold = world.gold(tokens, valid, each.info)
    columns = {"responses": tokens, "valid": valid, "utility": gold}
    lists = {name: x.reshape(n, count, *x.shape[1:]) for name, x in columns.items()}
    return {"prompt": prompts.tokens, "prompt_valid": prompts.valid} | lists


def arranged(columns: dict[str, Array], key: PRNGKeyArray, led: float = 0.0) -> dict[str, Array]:
    """Each list in a new random order, with `best`: of equals a random one.

    In a share `led` of the lists the best response comes first, as where stronger systems are listed
    before weaker ones.
    """
    utility = columns["utility"]
    led_key, order_key, tie_key = jax.random.split(key, 3)
    top = utility == jnp.max(utility, axis=1, keepdims=True)
    target = jnp.argmax(jnp.where(top, jax.random.uniform(tie_key, utility.shape), -1.0), axis=1)
    is_best = jnp.arange(utility.shape[1]) == target[:, None]
    leads = jax.random.bernoulli(led_key, led, (len(utility), 1))
    place = jax.random.uniform(order_key, utility.shape)
    order = jnp.argsort(jnp.where(leads & is_best, -1.0, place), axis=1)
    moved = {name: reorder(columns[name], order) for name in ("responses", "valid", "utility")}
    return columns | moved | {"best": jnp.argmax(reorder(is_best, order), axis=1)}


def choosing(score: Callable[..., Utility]) -> Callable[..., Loss]:
    """Cross-entropy of each list's best response: a loss of the supervised recipe.

    Args:
      score: `(params, prompt, prompt_valid, responses, valid) -> scores`.
    """

    def loss(params: Any, batch: dict[str, Array], frozen: Any = None) -> Loss:
        scores, best = score(params, *(batch[name] for name in COLUMNS)), batch["best"]
        value = losses.listwise_cross_entropy(scores, best)
        right = Mean.of(jnp.argmax(scores, axis=1) == best)
        return Loss({"best": Mean.of(value)}, {"accuracy": right})

    return loss


def list_metrics(scores: Utility, utility: Utility) -> dict[str, Float[Array, ""]]:
    """How scores do on lists.

    Returns:
      `best_of_n`, how often the highest score is a best response; `pair_accuracy`, of pairs that differ;
      `position_gap`, between the places where a (sole) best response is found most and least often;
      `first_chosen`, how often the first response scores highest.
    """
    top = utility == jnp.max(utility, axis=1, keepdims=True)
    chosen = jnp.argmax(scores, axis=1)
    right = jnp.take_along_axis(top, chosen[:, None], axis=1)[:, 0]
    places = jnp.arange(scores.shape[1])
    here = top & (jnp.sum(top, axis=1, keepdims=True) == 1)
    found = jnp.sum(here & (chosen[:, None] == places), axis=0)
    by_place = found / jnp.maximum(jnp.sum(here, axis=0), 1)
    ahead = utility[:, :, None] > utility[:, None, :]
    return {
        "best_of_n": jnp.mean(right),
        "pair_accuracy": jnp.mean(scores[:, :, None] > scores[:, None, :], where=ahead),
        "position_gap": jnp.max(by_place) - jnp.min(by_place),
        "first_chosen": jnp.mean(chosen == 0),
    }


def order_metrics(
    score: Callable[..., Utility],
    params,
    lists: dict[str, Array],
    key: PRNGKeyArray,
    *,
    count: int,
) -> dict[str, Float[Array, ""]]:
    """`list_metrics` of lists as they stand, and of mean scores over `count` random orders.

    Args:
      score: `(params, prompt, prompt_valid, responses, valid) -> scores`, which count within a list only.
      params: of the reward model.
      lists: with their `utility`.
      key: draws the orders.
      count: at least 1.

    Returns:
      `list_metrics`; the same of the mean scores as `averaged_...`; `order_change`, how often another
      order makes another response score highest; `averaging_gains`, of `best_of_n`; `bias_removed`, of
      `position_gap`.
    """
    draws = jax.random.uniform(key, (count, *lists["utility"].shape))
    orders = jnp.argsort(draws, axis=2)

    def centred(responses, valid):
        scores = score(params, lists["prompt"], lists["prompt_valid"], responses, valid)
        return scores - jnp.mean(scores, axis=1, keepdims=True)

    columns = lists["responses"], lists["valid"]
    once, other = centred(*columns), average_over_orders(centred, *columns, orders[:1])
    found = list_metrics(once, lists["utility"])
    averaged = list_metrics(average_over_orders(centred, *columns, orders), lists["utility"])
    return {
        **found,
        **{f"averaged_{name}": x for name, x in averaged.items()},
        "order_change": jnp.mean(jnp.argmax(once, axis=1) != jnp.argmax(other, axis=1)),
        "averaging_gains": averaged["best_of_n"] - found["best_of_n"],
        "bias_removed": found["position_gap"] - averaged["position_gap"],
    }


def group_columns(traj: Trajectory, prompt_columns: int, size: int) -> tuple[Array, ...]:
    """A policy's groups as lists: the arrays named by `COLUMNS`.

    Args:
      traj: prompts in the first `prompt_columns` columns; `size` adjacent rows share one.
      prompt_columns: as said.
      size: responses a prompt.
    """
    groups = [to_groups(x, size) for x in (traj.tokens, traj.valid)]
    prompts = (x[:, 0, :prompt_columns] for x in groups)
    return (*prompts, *(x[:, :, prompt_columns:] for x in groups))
