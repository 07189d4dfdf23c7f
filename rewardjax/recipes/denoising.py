"""Reward models on preferences that may be wrong, or old: votes, views, and steps taken ahead.

Batches are those of `recipes.objectives`: `tokens` and `valid` `[batch, 2, time]`, preferred ones first.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from rewardjax import losses
from rewardjax.data.sources import ArraySource
from rewardjax.losses import Loss
from rewardjax.losses.contrastive import info_nce, separation, swapped_prediction
from rewardjax.models.ensemble import Ensemble
from rewardjax.models.heads import RewardModel, last_valid
from rewardjax.recipes.objectives import ScoreLoss
from rewardjax.recipes.supervised import Supervised, SupervisedConfig
from rewardjax.statistics import Mean
from rewardjax.training.meta import ascended
from rewardjax.training.run import Run

Views = Float[Array, "batch width"]
Prototypes = Float[Array, "prototypes width"]


@dataclasses.dataclass(frozen=True)
class ContrastConfig:
    """A contrastive loss beside a preference loss.

    Attributes:
      weight: of it.
      temperature: of its predictions.
      epsilon: of SwAV's assignments.
      prototypes: of SwAV.
      dropout: share of a state's entries that a view lacks.
    """

    weight: float = 0.1
    temperature: float = 0.1
    epsilon: float = 0.05
    prototypes: int = 16
    dropout: float = 0.1


def simcse(config: ContrastConfig, a: Views, b: Views, prototypes: Prototypes):
    """A view is told from other pairs' views: `losses.contrastive.info_nce`."""
    return info_nce(a, b, temperature=config.temperature)


def swav(config: ContrastConfig, a: Views, b: Views, prototypes: Prototypes):
    """A view predicts the other's assignment: `losses.contrastive.swapped_prediction`."""
    scales = {"temperature": config.temperature, "epsilon": config.epsilon}
    return swapped_prediction(a, b, prototypes, **scales)


# What two views of the pairs lose: one loss a row.
Contrast = Callable[[ContrastConfig, Views, Views, Prototypes], Float[Array, "batch"]]


class Panel:
    """Reward models that learn side by side, each its own pairs in its own order; compiled once.

    Args:
      config: budget; a step shows `batch_size` pairs to every member.
      scorer: of each member.
      members: how many.

    Raises:
      ValueError: gradients are clipped, by a norm that all members would share.
    """

    def __init__(self, config: SupervisedConfig, scorer: RewardModel, members: int):
        if config.optimizer.clip is not None:
            raise ValueError(f"optimizer.clip: expected None, found {config.optimizer.clip}")
        self.config, self.ensemble = config, Ensemble(scorer, members)
        self._fit = Supervised(config, init=self.ensemble.boxed_init, loss=self._loss)
        self._score = jax.jit(self.ensemble.score)

    def run(
        self,
        run: Run,
        pairs: Mapping[str, Any],
        rows: Int[np.ndarray, "rows members"],
        backbone: Any = None,
    ) -> Any:
        """The members' parameters after training.

        Args:
          run: folder and key.
          pairs: columns `tokens` and `valid`, `[pairs, 2, time]`.
          rows: which pairs each member learns, in this order, again and again.
          backbone: a language model's parameters, from which all start.
        """
        columns = {name: np.asarray(pairs[name])[rows] for name in ("tokens", "valid")}
        source = ArraySource(columns, self.config.batch_size, run.seed, shuffle=False)
        params = self.ensemble.init(run.key, backbone)
        return self._fit.run(run, params=params, source=source).params

    def differences(self, params: Any, pairs: Mapping[str, Any]) -> Float[Array, "members pairs"]:
        """By how much each member scores the preferred response above the other."""
        scores = self._score(params, pairs["tokens"], pairs["valid"])
        return scores[..., 0] - scores[..., 1]

    def _loss(self, params, batch, frozen=None):
        own = (jnp.moveaxis(batch[name], 1, 0) for name in ("tokens", "valid"))
        scores = self.ensemble.score_own(params, *own)
        wrong = jax.vmap(losses.bradley_terry)(scores[..., 0] - scores[..., 1])
        # A sum over members: each has the gradient that it would have alone.
        return Loss({"preference": Mean.of(jnp.sum(wrong, axis=0))}, {})


def relabelled(
    scores: Float[Array, "batch 2"], batch: Mapping[str, Array]
) -> Float[Array, "batch"]:
    """Bradley-Terry with each pair's own label and margin: columns `probability` and `margin`."""
    named = {name: batch[name] for name in ("probability", "margin")}
    return losses.bradley_terry(scores[:, 0] - scores[:, 1], **named)


def contrastive_modelling(
    scorer: RewardModel, score_loss: ScoreLoss, contrast: Contrast, config: ContrastConfig
):
    """A loss on pairs' scores, and one on views of the pairs' difference of states.

    Parameters are those of `with_prototypes`. A view is the difference of the states that the head reads,
    with some of its entries at 0. The batch has the pairs' numbers besides, `pair` `[batch]`:
    losses get no key, so these draw what is dropped.
    """

    def objective(params, batch, frozen=None):
        own, tokens, valid = params["scorer"], batch["tokens"], batch["valid"]
        flat = (x.reshape(-1, x.shape[-1]) for x in (tokens, valid.astype(jnp.int32)))
        states = scorer.states(own, *flat)[0]
        last = last_valid(states, valid.reshape(states.shape[:2])).astype(jnp.float32)
        last = last.reshape(*tokens.shape[:2], -1)
        scores = scorer.read(own, last)[..., 0]
        apart = last[:, 0] - last[:, 1]
        keys = jax.random.split(jax.random.key(jnp.sum(batch["pair"])))
        kept = (jax.random.bernoulli(key, 1.0 - config.dropout, apart.shape) for key in keys)
        first, second = (jnp.where(some, apart, 0.0) for some in kept)
        found = contrast(config, first, second, params["prototypes"])
        terms = {
            "preference": Mean.of(score_loss(scores, batch)),
            "contrast": Mean.of(found).scale(config.weight),
        }
        return Loss(terms, {"accuracy": Mean.of(scores[:, 0] > scores[:, 1])})

    return objective


def with_prototypes(scorer: RewardModel, count: int) -> Callable[..., Any]:
    """`(key, backbone) -> params` with logical axis names: a `scorer`, and normal `prototypes`."""

    def init(key: PRNGKeyArray, backbone: Any = None):
        keys = jax.random.split(key)
        prototypes = jax.random.normal(keys[1], (count, scorer.config.width))
        return {
            "scorer": scorer.boxed_init(keys[0], backbone),
            "prototypes": nn.LogicallyPartitioned(prototypes, (None, None)),
        }

    return init


def meta_modelling(scorer: RewardModel, score_loss: ScoreLoss):
    """A loss on pairs, derived a step of `frozen["rate"]` ahead towards scores that tell a group apart.

    MetaRM (arXiv:2405.00438). The batch has `group_tokens` and `group_valid` `[batch, responses, time]`
    besides: unlabelled responses of the current policy. With rate 0 the gradient is the loss's own.
    """

    def objective(params, batch, frozen):
        def apart(params):
            scores = scorer.score(params, batch["group_tokens"], batch["group_valid"])
            return jnp.mean(separation(scores))

        ahead = ascended(apart, params, frozen["rate"])
        scores = scorer.score(ahead, batch["tokens"], batch["valid"])
        terms = {"preference": Mean.of(score_loss(scores, batch))}
        return Loss(terms, {"accuracy": Mean.of(scores[:, 0] > scores[:, 1])})

    return objective
