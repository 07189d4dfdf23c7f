"""What programs for agents of several turns share: scripted episodes, belief in the answer, group health."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from rewardjax.credit import Credit
from rewardjax.envs.environment import Environment, Message
from rewardjax.models.language_model import LanguageModel
from rewardjax.recipes.policy_gradient import Learner
from rewardjax.recipes.preference_data import language_batch
from rewardjax.rewards.information_gain import answer_beliefs, information_gain
from rewardjax.sampling.turns import Script, demonstrate
from rewardjax.statistics import Mean, to_groups
from rewardjax.trajectory import Trajectory


def scripted_episodes(
    env: Environment, script: Script, *, max_turns: int
) -> Callable[[PRNGKeyArray, int], dict[str, Array]]:
    """Fresh demonstrations by a script for each step of language modelling: `(key, n) -> batch`."""

    def batches(key: PRNGKeyArray, n: int) -> dict[str, Array]:
        start_key, key = jax.random.split(key)
        starts = jax.random.split(start_key, n)
        return language_batch(demonstrate(env, script, starts, key, max_turns=max_turns))

    return batches


def with_gain(
    model: LanguageModel,
    params,
    traj: Trajectory,
    answer_of: Callable[[Int[Array, "batch"]], Message],
    belief: Callable[[Float[Array, "batch turns"]], Float[Array, "batch turns"]] = jnp.exp,
) -> Trajectory:
    """Adds `info["gain"]` `[batch, turns]`, each turn's information gain about `info["gold"]`.

    Args:
      model: the policy's.
      params: of the policy that sampled.
      traj: episodes with as many turns as `info["turn_rewards"]` has.
      answer_of: the gold answers as the policy would write them; their first token is format.
      belief: of the answer's mean log-probability: its probability, by default.
    """
    answer, valid = answer_of(traj.info["gold"])
    turns, scored = traj.info["turn_rewards"].shape[1], valid.at[:, 0].set(False)
    logprobs = answer_beliefs(model, params, traj, answer, valid, scored, turns=turns)
    return traj.with_info(gain=information_gain(belief(logprobs)))


def silent_groups(credit: Credit, group_size: int) -> Learner:
    """A learner that learns nothing and logs `silent`, the share of groups without any advantage.

    Args:
      credit: `(rewards, traj) -> advantages`, what is watched.
      group_size: adjacent rows to a group.
    """

    def look(state, traj, rewards, key):
        heard = to_groups(jnp.any(credit(rewards, traj) != 0, axis=1), group_size)
        return state, {"silent": Mean.of(~jnp.any(heard, axis=1))}

    return Learner(lambda key: {}, lambda state, traj, key: (state, traj, {}), look)
