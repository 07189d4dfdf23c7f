"""Rewards that may depend on who asks: models, their training, and batches with annealed weights."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from rewardjax import losses
from rewardjax.data.sources import RecordSource
from rewardjax.losses import Loss
from rewardjax.losses.distributional import mean_variance_preference
from rewardjax.losses.latent import gaussian_kl
from rewardjax.models.actor_critic import MLP
from rewardjax.models.latent_scorer import LatentScorer
from rewardjax.statistics import Mean


class UserReward(NamedTuple):
    """A reward model that may know something of a user; z stands for what it knows.

    `users` is a dict of `kind` `[users]`, and `preferred` and `other` `[users, set, inputs]`, the items of
    each user's comparisons; a batch of the loss has the same columns.

    Attributes:
      init: `key -> params`, with logical axis names.
      loss: `(params, batch, frozen) -> Loss`.
      infer: `(params, users, present) -> z` `[users, latent]`; `present` `[users, set]` is off for
        comparisons that are not shown.
      logit: `(params, first, second, z) -> log-odds` that the first items are preferred.
      score: `(params, items, z) -> [items]`, the rewards of one user.
      scorer: where z has a posterior.
    """

    init: Callable[..., Any]
    loss: Callable[..., Loss]
    infer: Callable[..., Array]
    logit: Callable[..., Array]
    score: Callable[..., Array]
    scorer: LatentScorer | None = None


def for_each(z: Float[Array, "users latent"], count: int) -> Float[Array, "users count latent"]:
    """Each user's latent, once for each of their comparisons."""
    return jnp.broadcast_to(z[:, None], (len(z), count, z.shape[-1]))


def decoded(scorer: LatentScorer, params, batch, z) -> Float[Array, "sets"]:
    """`-sum_i log sigmoid(logit_i)` over each set's comparisons, given its latent."""
    first, second = batch["preferred"], batch["other"]
    logits = scorer.logit(params, first, second, for_each(z, first.shape[1]))
    return jnp.sum(losses.bradley_terry(logits.ravel()).reshape(logits.shape), axis=1)


def evidence_bound(scorer: LatentScorer):
    """`(params, batch, frozen) -> Loss`: `-sum_i log sigmoid(logit_i) + weight KL(q || N(0, 1))`, a set.

    A batch has `preferred` and `other` `[sets, set, inputs]`, `present` (which of them the encoder sees;
    all are decoded), `noise` `[sets, latent]` and `kl_weight` `[sets]`. VPL (arXiv:2408.10075).
    """

    def loss(params, batch, frozen=None):
        q = scorer.posterior(params, batch["preferred"], batch["other"], batch["present"])
        z, nats = q.mean + jnp.exp(q.log_std) * batch["noise"], gaussian_kl(q.mean, q.log_std)
        terms = {
            "preference": Mean.of(decoded(scorer, params, batch, z)),
            "kl": Mean.of(batch["kl_weight"] * nats),
        }
        return Loss(terms, {"nats": Mean.of(nats)})

    return loss


def of_kind(inputs: int, kinds: int, width: int, told: bool) -> UserReward:
    """Bradley-Terry given the user's kind, one of `kinds`; or, if it is not told, one for everybody."""
    scorer = LatentScorer(inputs, kinds, width)

    def infer(params, users, present):
        return jax.nn.one_hot(users["kind"], kinds) * told

    def loss(params, batch, frozen=None):
        z = infer(params, batch, None)
        return Loss({"preference": Mean.of(decoded(scorer, params, batch, z))}, {})

    return UserReward(scorer.boxed_init, loss, infer, scorer.logit, scorer.score)


def mean_variance(inputs: int, width: int) -> UserReward:
    """Distributional preference learning: a normal distribution of scores, its mean the reward.

    arXiv:2312.08358; it says where people differ and not who wants what.
    """
    module = MLP((width, width), 2)

    def init(key):
        return module.init(key, jnp.zeros((1, inputs)))["params"]

    def read(params, items):
        found: Any = module.apply({"params": params}, items)
        return found[..., 0], found[..., 1]

    def loss(params, batch, frozen=None):
        pairs = jnp.stack([batch["preferred"], batch["other"]], axis=2)
        values = mean_variance_preference(*read(params, pairs))
        return Loss({"preference": Mean.of(jnp.sum(values, axis=1))}, {})

    def infer(params, users, present):
        return jnp.zeros((len(present), 1))

    def logit(params, first, second, z):
        return read(params, first)[0] - read(params, second)[0]

    return UserReward(init, loss, infer, logit, lambda params, items, z: read(params, items)[0])


class StepColumns:
    """A source whose batches have further columns that depend on the step alone, so that it resumes.

    Args:
      source: of the other columns.
      columns: `step -> {name: array}`, counted from 0.
    """

    def __init__(self, source: RecordSource, columns: Callable[[int], Mapping[str, np.ndarray]]):
        self._source, self._columns = source, columns
        self.uniform, self.batch_size = source.uniform, source.batch_size

    def next(self) -> dict[str, Any]:
        """The next batch."""
        return self.next_rows(np.arange(self.batch_size))

    def next_rows(self, rows: np.ndarray) -> dict[str, Any]:
        """These rows of the next batch."""
        columns = self._columns(self._source.state()["step"])
        added = {name: column[rows] for name, column in columns.items()}
        return dict(self._source.next_rows(rows)) | added

    def state(self) -> dict[str, Any]:
        """The source's."""
        return self._source.state()

    def restore(self, state: Mapping[str, Any]) -> None:
        """The source's."""
        self._source.restore(state)
