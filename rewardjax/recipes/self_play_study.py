"""How a policy plays Kuhn poker and the bidding game, exactly, and how much that can be exploited."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from rewardjax.envs.environment import Message
from rewardjax.envs.games import Bidding, KuhnPoker
from rewardjax.evaluation.exploitability import (
    KUHN_EQUILIBRIUM,
    kuhn_exploitability,
    kuhn_value,
    matrix_exploitability,
)
from rewardjax.sampling.self_play import SelfPlay, action_probabilities
from rewardjax.training.run import Run


def strategies(
    player: SelfPlay, params
) -> tuple[Float[Array, "4 3"], Float[Array, "2 3"], Float[Array, ""]]:
    """Chip probabilities in Kuhn poker, claims and challenges in the bidding game, and legality.

    Args:
      player: at a table whose games are `KuhnPoker` and `Bidding`.
      params: of the policy.

    Returns:
      Strategies as in `rewardjax.evaluation.exploitability`, among legal moves; and the mean
      probability of a legal move, over all that a player may see.
    """
    kuhn = KuhnPoker()
    views = jax.tree.map(lambda x: x.reshape(-1, x.shape[-1]), kuhn.information_sets())
    moves = action_probabilities(player, params, 0, jnp.repeat(jnp.asarray(kuhn.roles), 3), views)
    chips, legal = kuhn.chip_probability(moves.reshape(len(kuhn.roles), 3, -1))
    nothing = Message(jnp.zeros((2, 0), jnp.int32), jnp.zeros((2, 0), bool))
    bids = action_probabilities(player, params, 1, jnp.arange(2), nothing)
    mass = jnp.sum(bids, axis=1, keepdims=True)
    return chips, bids / mass, jnp.mean(jnp.concatenate([legal.ravel(), mass.ravel()]))


def exploitabilities(player: SelfPlay, params) -> dict[str, Float[Array, ""]]:
    """Metrics of one policy: `kuhn` and `bidding` exploitability, `legal`, and every probability."""
    chips, bids, legal = strategies(player, params)
    found = {"kuhn": kuhn_exploitability(chips), "legal": legal}
    found["bidding"] = matrix_exploitability(Bidding().payoffs, *bids)
    found |= {f"chips/{i}": x for i, x in enumerate(chips.ravel())}
    return found | {f"bids/{i}": x for i, x in enumerate(bids.ravel())}


def average_play(run: Run) -> dict[str, float]:
    """What the average of a run's policies is worth, from the logged `exploitabilities`.

    Self-play cycles around an equilibrium: probabilities are averaged over the run's last half.

    Returns:
      `kuhn_exploitability`, `bidding_exploitability`; `kuhn_against_equilibrium` and
      `kuhn_against_random`, what the average wins in both roles; `kuhn_last`, `bidding_last`, the mean
      exploitability of the policies that were averaged.
    """

    def late(name: str) -> float:
        curve = run.history(f"eval/{name}")
        return float(np.mean(curve[len(curve) // 2 :]))

    chips = jnp.array([late(f"chips/{i}") for i in range(12)]).reshape(4, 3)
    bids = jnp.array([late(f"bids/{i}") for i in range(6)]).reshape(2, 3)
    found: dict[str, Any] = {
        "kuhn_exploitability": kuhn_exploitability(chips),
        "bidding_exploitability": matrix_exploitability(Bidding().payoffs, *bids),
        "kuhn_last": late("kuhn"),
        "bidding_last": late("bidding"),
    }
    rivals = {"equilibrium": jnp.array(KUHN_EQUILIBRIUM), "random": jnp.full((4, 3), 0.5)}
    for name, rival in rivals.items():
        found[f"kuhn_against_{name}"] = (kuhn_value(chips, rival) - kuhn_value(rival, chips)) / 2
    return {name: float(x) for name, x in found.items()}
