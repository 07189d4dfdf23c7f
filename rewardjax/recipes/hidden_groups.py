"""Preferences of people of several kinds, who do not say of which kind they are.

Each group wants another attribute of a response. Which group asks depends on the prompt: that of its
theme (`theme % groups`) often, the others equally seldom. Labels come without the group; an instruction
in front of a prompt can state it.
"""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from rewardjax.losses import full_kl
from rewardjax.recipes.frozen_backbone import FrozenBackbone
from rewardjax.recipes.preference_data import comparisons
from rewardjax.tasks.annotators import compare, preference_probability
from rewardjax.tasks.preference_world import ATTRIBUTES
from rewardjax.trajectory import Prompts


@dataclasses.dataclass(frozen=True)
class GroupsConfig:
    """Who they are.

    Attributes:
      wanted: for each group an attribute, "-" before it for those who want little of it.
      own_share: how often a prompt comes from the group of its theme.
      temperature: of their choices, in standard deviations of an attribute.
    """

    wanted: tuple[str, ...] = ("coverage", "sentiment", "gaudy", "-length")
    own_share: float = 0.55
    temperature: float = 0.3

    @property
    def groups(self) -> int:
        """How many there are."""
        return len(self.wanted)

    @property
    def tastes(self) -> Float[np.ndarray, "attributes groups"]:
        """What each group gives for a standard deviation of each attribute: 1, -1 or 0."""
        columns = [[(a == w) - (f"-{a}" == w) for a in ATTRIBUTES] for w in self.wanted]
        return np.asarray(columns, np.float32).T

    def shares(self, theme: Int[Array, "n"]) -> Float[Array, "n groups"]:
        """How probable each group is for prompts of these themes."""
        own = jax.nn.one_hot(theme % self.groups, self.groups)
        return own * self.own_share + (1 - own) * (1 - self.own_share) / (self.groups - 1)

    def chosen_probability(self, utility: Float[Array, "n 2 groups"]) -> Float[Array, "n groups"]:
        """How probably each group prefers the first response."""
        return preference_probability(utility[:, 0], utility[:, 1], temperature=self.temperature)


def group_pairs(
    config: GroupsConfig,
    backbone: FrozenBackbone,
    params: Any,
    key: PRNGKeyArray,
    group: int | Int[Array, "n"],
) -> dict[str, Array]:
    """Labelled pairs of writers' responses as features.

    Args:
      config: who labels.
      backbone: the world, and whose features.
      params: the backbone's.
      key: consumed.
      group: whose the labels are; a number n for n pairs of hidden groups, drawn by the prompts' shares.

    Returns:
      The preferred response first: `response` `[n, 2, width]`, `prompt` `[n, width]`, `instructed`
      `[n, groups, width]`, the prompt's feature after each group's instruction; `utility` `[n, 2, groups]`
      of each response for each group; `share` `[n, groups]` and `group` `[n]`.
    """
    write_key, group_key, label_key = jax.random.split(key, 3)
    n = group if isinstance(group, int) else group.shape[0]
    traj = backbone.write(write_key, n)
    theme = traj.info["theme"][::2]
    share = config.shares(theme[:, 0])
    if isinstance(group, int):
        group = jax.random.categorical(group_key, jnp.log(share))
    utility = backbone.standardised(traj) @ config.tastes
    own = jnp.take_along_axis(utility, jnp.repeat(group, 2)[:, None], axis=1)[:, 0]
    features = backbone.features(params, traj)
    pairs = comparisons(
        traj.replace(info={"response": features.response, "by_group": utility}),
        own,
        partial(compare, temperature=config.temperature),
        label_key,
    )
    first = backbone.world.prompt_length
    tokens, valid = traj.tokens[::2, :first], traj.valid[::2, :first]
    instructed = [
        backbone.instructed(params, Prompts(tokens, valid), jnp.full(n, g))
        for g in range(config.groups)
    ]
    return {
        "response": pairs["response"],
        "prompt": features.prompt[::2],
        "instructed": jnp.stack(instructed, axis=1),
        "utility": pairs["by_group"],
        "share": share,
        "group": group,
    }


def group_accuracy(
    scores: Float[Array, "pairs #groups"], utility: Float[Array, "pairs 2 groups"]
) -> Float[Array, "groups"]:
    """How often the sign of a difference of scores is that of each group's utilities; ties left out."""
    better = utility[:, 0] - utility[:, 1]
    right = jnp.sum((scores * better > 0) & (better != 0), axis=0)
    return right / jnp.maximum(jnp.sum(better != 0, axis=0), 1)


def likelihood_gap(
    config: GroupsConfig,
    predicted: Float[Array, "pairs"],
    utility: Float[Array, "pairs 2 groups"],
    share: Float[Array, "pairs groups"],
) -> Float[Array, ""]:
    """Nats a label that `predicted`, the probability of the first response, loses to the truth.

    The truth knows each group's share of the prompt, not the group: its own loss is the floor.
    """
    truth = jnp.sum(share * config.chosen_probability(utility), axis=1)
    logits = [jnp.stack([jnp.log(p), jnp.log1p(-p)], axis=-1) for p in (truth, predicted)]
    return jnp.mean(full_kl(*logits))
