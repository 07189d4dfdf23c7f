"""What a training loop carries, and one update of it."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jaxtyping import Array, Float, Int

from rewardjax.losses import Loss
from rewardjax.statistics import Mean

Metrics = dict[str, Mean]
LossFunction = Callable[[Any, Any], Loss]


class TrainState(struct.PyTreeNode):
    """Everything that a step changes; all leaves are arrays.

    Attributes:
      step: updates done.
      params: the trained parameters.
      opt_state: the optimizer's state.
      learners: the states of models trained beside these parameters, by name.
    """

    step: Int[Array, ""]
    params: Any
    opt_state: Any
    learners: dict[str, Any] = struct.field(default_factory=dict)

    @classmethod
    def create(cls, params, tx: optax.GradientTransformation, learners=None) -> "TrainState":
        """The state before the first step."""
        return cls(jnp.zeros((), jnp.int32), params, tx.init(params), dict(learners or {}))


def objective(loss: Loss, weights: dict[str, Array]) -> Float[Array, ""]:
    """The scalar that is minimised: each term's sum over its weight in the whole batch."""
    return sum(
        (
            term.total / jnp.where(weights[name] == 0, 1.0, weights[name])
            for name, term in loss.terms.items()
        ),
        start=jnp.zeros(()),
    )


def gradients(loss: LossFunction, params, batch, micro_batches: int = 1) -> tuple[Any, Loss]:
    """The gradient of a loss over a batch, cut into `micro_batches` to save memory.

    A first pass collects every term's weight over the whole batch (it needs no forward pass: the
    compiler drops it); the second adds the gradients of `total / weight`. The result equals that of
    the uncut batch whatever the terms' masks are.

    Args:
      loss: maps parameters and a batch to a `Loss`.
      params: a pytree.
      batch: a pytree whose leaves have a leading batch axis.
      micro_batches: number of equal cuts.

    Raises:
      ValueError: the batch cannot be cut into equal parts.
    """
    if micro_batches == 1:
        return _slice_gradients(loss, params, batch, None)
    cuts = _cuts(batch, micro_batches)
    weights = jax.lax.map(
        lambda cut: {k: term.weight for k, term in loss(params, cut).terms.items()}, cuts
    )
    weights = jax.tree.map(lambda w: jnp.sum(w, axis=0), weights)

    def add(carry, cut):
        return jax.tree.map(jnp.add, carry, _slice_gradients(loss, params, cut, weights)), None

    shapes = jax.eval_shape(
        lambda cut: _slice_gradients(loss, params, cut, weights), jax.tree.map(lambda x: x[0], cuts)
    )
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    return jax.lax.scan(add, zeros, cuts)[0]


def in_cuts(function: Callable[[Any], Any], batch, cuts: int = 1) -> Any:
    """`function(batch)`, of one cut at a time: only a cut's activations are in memory.

    Args:
      function: maps a batch to a pytree whose leaves have a leading axis for its rows, in their order.
      batch: a pytree whose leaves have a leading batch axis.
      cuts: number of equal cuts.

    Raises:
      ValueError: the batch cannot be cut into equal parts.
    """
    if cuts == 1:
        return function(batch)
    found = jax.lax.map(function, _cuts(batch, cuts))
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), found)


def _cuts(batch, cuts):
    for x in jax.tree.leaves(batch):
        if x.shape[0] % cuts:
            raise ValueError(
                "expected cuts (micro_batches, batch_cuts, rollout_cuts) that divide a batch of"
                f" {x.shape[0]} rows, found {cuts}"
            )
    return jax.tree.map(lambda x: x.reshape(cuts, -1, *x.shape[1:]), batch)


def _slice_gradients(loss, params, batch, weights):
    def scalar(params):
        value = loss(params, batch)
        own = {name: jax.lax.stop_gradient(term.weight) for name, term in value.terms.items()}
        return objective(value, own if weights is None else weights), value

    return jax.grad(scalar, has_aux=True)(params)


def update(
    tx: optax.GradientTransformation, loss: LossFunction, params, opt_state, batch, micro_batches=1
) -> tuple[Any, Any, Metrics]:
    """One optimizer step: new parameters, new optimizer state, and the loss's metrics."""
    grads, value = gradients(loss, params, batch, micro_batches)
    updates, opt_state = tx.update(grads, opt_state, params)
    metrics = {f"loss_{name}": term for name, term in value.terms.items()}
    metrics |= value.metrics
    metrics["loss"] = Mean.of(sum((t.value for t in value.terms.values()), start=jnp.zeros(())))
    metrics["grad_norm"] = Mean.of(optax.global_norm(grads))
    return optax.apply_updates(params, updates), opt_state, metrics


def assembled(evaluate, assemble):
    """`evaluate(params, frozen, key)` of what `assemble` makes of trained and frozen parameters."""

    def evaluated(params, frozen, key):
        return evaluate(assemble(params, frozen), frozen, key)

    return evaluated
