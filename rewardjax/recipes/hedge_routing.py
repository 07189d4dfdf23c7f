"""A router fitted to Hedge's weights of scorers that are frozen (MiCRo, arXiv:2505.24846, stage 2)."""

import dataclasses
from typing import Any

import jax
import optax
from jaxtyping import Array, Bool, Float

from rewardjax import losses
from rewardjax.models.routed_scorer import RoutedScorer
from rewardjax.statistics import Mean
from rewardjax.training.optimizer import OptimizerConfig, make_optimizer


@dataclasses.dataclass(frozen=True)
class HedgeConfig:
    """Budget of the router.

    Attributes:
      rounds: how often targets are computed anew.
      steps: gradient steps on each round's targets.
      temperature: tau; a small one makes hard targets.
      optimizer: of the router.
    """

    rounds: int = 20
    steps: int = 10
    temperature: float = 1.0
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=1e-2)


def fit_router(
    config: HedgeConfig,
    scorer: RoutedScorer,
    params: Any,
    prompts: Float[Array, "rows width"],
    scorer_losses: Float[Array, "rows heads"],
    counted: Bool[Array, "rows"],
) -> Any:
    """Parameters with another router; pure, so that budgets can be vmapped over.

    Each round takes `hedge_targets` of the router's weights and fits the router to them by soft-label
    cross-entropy. At temperature 1 this is expectation-maximisation of the mixture's weights.

    Args:
      config: budget.
      scorer: heads and router.
      params: where the router starts; the heads stay.
      prompts: features of prompts that state what is wanted.
      scorer_losses: what each head alone loses on the prompt's labelled pair.
      counted: off for rows that are not to be used. Without any the router stays.
    """
    tx = make_optimizer(config.optimizer, config.rounds * config.steps)

    def route(router):
        return scorer.route(params | {"router": router}, prompts)

    def one_round(carry, _):
        targets = losses.hedge_targets(
            route(carry[0]), scorer_losses, temperature=config.temperature
        )

        def loss(router):
            return Mean.of(losses.soft_cross_entropy(route(router), targets), counted).value

        def step(carry, _):
            router, state = carry
            updates, state = tx.update(jax.grad(loss)(router), state, router)
            return (optax.apply_updates(router, updates), state), None

        return jax.lax.scan(step, carry, length=config.steps)

    start = params["router"], tx.init(params["router"])
    (router, _), _ = jax.lax.scan(one_round, start, length=config.rounds)
    return params | {"router": router}
