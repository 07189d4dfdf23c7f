"""Finite Markov decision processes, solved exactly.

Everything is a pure function of one MDP in float32: `jax.vmap` makes it a batch. Policies are
evaluated by solving `(I - discount P) V = r` and improved by Howard's policy iteration (Puterman,
Markov Decision Processes, 1994, section 6.4), so that no accuracy is lost at discounts close to 1.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Int

EPSILON = float(jnp.finfo(jnp.float32).eps)


@struct.dataclass
class MDP:
    """A finite MDP without end: every episode is discounted for ever.

    Attributes:
      transition: `P(s' | s, a)`, [state, action, state]; rows sum to 1.
      reward: `R(s, a, s')`, [state, action, state].
      initial: the distribution of the first state, [state].
      discount: in [0, 1); static, so all MDPs of a batch share it.

    Raises:
      ValueError: a discount outside [0, 1).
    """

    transition: Float[Array, "state action state"]
    reward: Float[Array, "state action state"]
    initial: Float[Array, "state"]
    discount: float = struct.field(pytree_node=False)

    def __post_init__(self) -> None:
        if not 0 <= self.discount < 1:
            raise ValueError(f"discount: expected a number in [0, 1), found {self.discount}")

    def with_reward(self, reward: Float[Array, "*batch state action state"]) -> "MDP":
        """The same process (or batch of them) with other rewards."""
        return dataclasses.replace(self, reward=reward)


def softmax_transitions(
    key: Array, states: int, actions: int, *, threshold: float = -jnp.inf
) -> Float[Array, "state action state"]:
    """Random transitions: for each (s, a) the softmax of one standard normal a successor.

    Successors whose normal is at most `threshold` have probability 0; where none is above it, all
    are equally likely. 0.5 leaves 31% of the successors, 1 leaves 16%, no threshold all of them.
    """
    logits = jax.random.normal(key, (states, actions, states))
    kept = logits > threshold
    some = jnp.any(kept, axis=-1, keepdims=True)
    return jax.nn.softmax(jnp.where(some, jnp.where(kept, logits, -jnp.inf), 0.0), axis=-1)


def deterministic_transitions(
    key: Array, states: int, actions: int
) -> Float[Array, "state action state"]:
    """Random transitions with one successor for each (s, a), drawn uniformly."""
    return jax.nn.one_hot(jax.random.randint(key, (states, actions), 0, states), states)


def without_rewards(transition: Float[Array, "state action state"], discount: float) -> MDP:
    """An MDP whose rewards are 0, to be set later; all states are equally likely to be the first."""
    states = transition.shape[0]
    return MDP(transition, jnp.zeros_like(transition), jnp.full(states, 1 / states), discount)


def uniform_policy(mdp: MDP) -> Float[Array, "state action"]:
    """The policy that takes every action with the same probability."""
    states, actions, _ = mdp.transition.shape
    return jnp.full((states, actions), 1 / actions)


def expected_reward(mdp: MDP) -> Float[Array, "state action"]:
    """`E[R(s, a, S')]`, with `S'` drawn from the transitions."""
    return jnp.sum(mdp.transition * mdp.reward, axis=-1)


def centred(mdp: MDP) -> MDP:
    """The MDP with a constant taken off all rewards: its expected rewards average to 0.

    All returns change by the same amount, so policies compare as before. A large common reward
    would otherwise fill float32's digits with `constant / (1 - discount)`.
    """
    return mdp.with_reward(mdp.reward - jnp.mean(expected_reward(mdp)))


def policy_value(mdp: MDP, policy: Float[Array, "state action"]) -> Float[Array, "state"]:
    """`V(s)`: the expected discounted sum of rewards from each state under a policy."""
    flow = jnp.einsum("sa,sat->st", policy, mdp.transition, precision="highest")
    gained = jnp.sum(policy * expected_reward(mdp), axis=1)
    return jnp.linalg.solve(jnp.eye(len(gained)) - mdp.discount * flow, gained)


def action_value(mdp: MDP, value: Float[Array, "state"]) -> Float[Array, "state action"]:
    """`Q(s, a) = E[R(s, a, S') + discount V(S')]`."""
    return jnp.sum(mdp.transition * (mdp.reward + mdp.discount * value), axis=-1)


def advantage(mdp: MDP, policy: Float[Array, "state action"]) -> Float[Array, "state action"]:
    """`Q(s, a) - V(s)` of a policy: 0 on average over the policy's actions."""
    mdp = centred(mdp)
    value = policy_value(mdp, policy)
    return action_value(mdp, value) - value[:, None]


def expected_return(mdp: MDP, policy: Float[Array, "state action"]) -> Float[Array, ""]:
    """`J`: a policy's value, averaged over the first state."""
    return jnp.sum(mdp.initial * policy_value(mdp, policy))


def optimal_policy(mdp: MDP, iterations: int = 100) -> Float[Array, "state action"]:
    """A deterministic policy whose value no policy exceeds in any state; one-hot.

    Policy iteration: an action is exchanged for one that is better by more than the rounding error
    of the values, `4 eps span / (1 - discount)`, with `span` the range of the expected rewards;
    so actions that are equally good cannot take turns. It ends when none is; a few iterations do.

    Args:
      mdp: the process.
      iterations: the most improvements.
    """
    mdp = centred(mdp)
    actions = mdp.transition.shape[1]
    rewards = expected_reward(mdp)
    rounding = 4 * EPSILON * (jnp.max(rewards) - jnp.min(rewards)) / (1 - mdp.discount)

    def improve(
        state: tuple[Int[Array, ""], Int[Array, "state"], Array],
    ) -> tuple[Int[Array, ""], Int[Array, "state"], Array]:
        count, chosen, _ = state
        values = action_value(mdp, policy_value(mdp, jax.nn.one_hot(chosen, actions)))
        current = jnp.take_along_axis(values, chosen[:, None], axis=1)[:, 0]
        better = jnp.max(values, axis=1) > current + rounding
        return count + 1, jnp.where(better, jnp.argmax(values, axis=1), chosen), jnp.any(better)

    first = (jnp.zeros((), jnp.int32), jnp.argmax(rewards, axis=1), jnp.ones((), bool))
    _, chosen, _ = jax.lax.while_loop(
        lambda state: state[2] & (state[0] < iterations), improve, first
    )
    return jax.nn.one_hot(chosen, actions)


def soft_optimal_policy(
    mdp: MDP, temperature: float | Float[Array, ""], iterations: int = 100
) -> Float[Array, "state action"]:
    """The policy that is best with `temperature` times its entropy added to the rewards.

    Soft value iteration: `V = temperature logsumexp(Q / temperature)`; the policy is the softmax. Unlike
    an optimal policy it changes with the scale of the rewards.

    Args:
      mdp: the process.
      temperature: above 0, in units of reward.
      iterations: how often values are backed up; the error shrinks by the discount each time.
    """

    def backup(_: Array, value: Float[Array, "state"]) -> Float[Array, "state"]:
        return temperature * jax.nn.logsumexp(action_value(mdp, value) / temperature, axis=1)

    value = jax.lax.fori_loop(0, iterations, backup, jnp.zeros(mdp.transition.shape[0]))
    return jax.nn.softmax(action_value(mdp, value) / temperature, axis=1)


def state_distribution(
    mdp: MDP, policy: Float[Array, "state action"], steps: int
) -> Float[Array, "state"]:
    """Where the process is after `steps` steps of a policy from the first state."""
    flow = jnp.einsum("sa,sat->st", policy, mdp.transition, precision="highest")

    def move(_: Array, where: Float[Array, "state"]) -> Float[Array, "state"]:
        return jnp.matmul(where, flow, precision="highest")

    return jax.lax.fori_loop(0, steps, move, mdp.initial)


def optimal_value(mdp: MDP, iterations: int = 100) -> Float[Array, "state"]:
    """`V*(s)`: the value of an optimal policy."""
    return policy_value(mdp, optimal_policy(mdp, iterations))
