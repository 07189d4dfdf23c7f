"""STARC: quantifying differences between reward functions (arXiv:2309.15257).

Is a learned reward good enough? A distance of rewards answers if it is small exactly where the
regret is: where a policy that is optimal for one reward loses little under the other. STARC
canonicalises rewards (here the uniform policy's advantage, VAL; or the smallest reward that orders
policies alike), scales them to norm 1 and halves the norm of the difference:

    d(R1, R2) = 1/2 |c(R1) / |c(R1)| - c(R2) / |c(R2)||

EPIC and DARD do the same with canonical rewards that ignore which transitions are possible, in part
or wholly. No training: random MDPs are solved exactly; in each, the way from one random reward to
another is cut into steps, and the distance from its start is correlated with the regret.

Miniature: 16 states, not 32; thresholds keep 5 successors of each state and action and 6 rewards of
a sparse reward, about as many as at the published size. `paper` is that size, and runs here.
"""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from scipy import stats

from rewardjax.envs.mdp import MDP, deterministic_transitions, softmax_transitions, without_rewards
from rewardjax.evaluation import reward_distance as rd
from rewardjax.experiment import Arm, Claim, Experiment, Paper


@dataclasses.dataclass(frozen=True)
class Config:
    """What is drawn.

    Attributes:
      mdps, pairs: random MDPs of each kind, and pairs of rewards in each.
      interpolations: steps from the first of a pair to the second, which is the last.
      transition_threshold: successors whose standard normal is below it are impossible.
      sparse_threshold: in a sparse reward, what is below it is 0.
      sparse, scaled, translated, shaped: how often a random reward is.
    """

    states: int = 16
    actions: int = 4
    discount: float = 0.95
    mdps: int = 64
    pairs: int = 4
    interpolations: int = 8
    transition_threshold: float = 0.5
    sparse_threshold: float = 2.5
    sparse: float = 0.2
    scaled: float = 0.7
    translated: float = 0.3
    shaped: float = 0.5


def shaped_by_chance(config: Config, reward: Array, key: Array) -> Array:
    """Shaped by a normal potential whose standard deviation is up to 10."""
    normal, scale, shift = jax.random.split(key, 3)
    potential = 10 * jax.random.uniform(scale) * jax.random.normal(normal, (config.states,))
    return rd.potential_shaped(reward, potential + jax.random.uniform(shift), config.discount)


def random_reward(config: Config, key: Array) -> Float[Array, "state action state"]:
    """Standard normal; each of sparse, scaled, translated and potential-shaped or not, by chance."""
    normal, chance, scale, shift, potential = jax.random.split(key, 5)
    reward = jax.random.normal(normal, (config.states, config.actions, config.states))
    often = jnp.array([config.sparse, config.scaled, config.translated, config.shaped])
    sparse, scaled, translated, shaped = jax.random.uniform(chance, (4,)) < often
    reward = jnp.where(sparse & (reward <= config.sparse_threshold), 0.0, reward)
    reward = reward * jnp.where(scaled, 10 * jax.random.uniform(scale), 1.0)
    reward = reward + jnp.where(translated, 10 * jax.random.uniform(shift), 0.0)
    return jnp.where(shaped, shaped_by_chance(config, reward, potential), reward)


def interpolated(config: Config, pair: Float[Array, "2 state action state"], measure: Any) -> Array:
    """`measure(first, between)` on the way from a pair's first reward to its second, which is last."""
    fractions = jnp.arange(1, config.interpolations + 1) / config.interpolations
    return jax.vmap(lambda part: measure(pair[0], pair[0] + part * (pair[1] - pair[0])))(fractions)


def equivalent(config: Config, key: Array, mdp: MDP) -> tuple[Array, Array]:
    """A reward, and the same S'-redistributed, potential-shaped and scaled by up to 10."""
    normal, potential, scale = jax.random.split(key, 3)
    reward, change = jax.random.normal(normal, (2, *mdp.reward.shape))
    other = shaped_by_chance(config, rd.redistributed(reward, change, mdp), potential)
    return reward, 10 * jax.random.uniform(scale) * other


def prepare(config):
    """MDPs of each kind, pairs of rewards, and the mean regrets of what lies between them."""
    kinds: dict[str, Any] = {
        "": partial(softmax_transitions, threshold=config.transition_threshold),
        "_dense": softmax_transitions,
        "_deterministic": deterministic_transitions,
    }

    def study(transition: Array, key: Array) -> dict[str, Any]:
        mdp = without_rewards(transition, config.discount)
        rewards, other = jax.random.split(key)
        keys = jax.random.split(rewards, (config.pairs, 2))
        pairs = jax.vmap(jax.vmap(partial(random_reward, config)))(keys)

        def regret(first: Array, between: Array) -> Array:
            return jnp.mean(jnp.stack(rd.regrets(first, between, mdp)))

        lost = jax.vmap(lambda pair: interpolated(config, pair, regret))(pairs)
        same = equivalent(config, other, mdp)
        return {"transition": transition, "pairs": pairs, "regret": lost, "equivalent": same}

    # One MDP at a time: the interpolated rewards of all of them would fill the memory.
    solve = jax.jit(lambda *drawn: jax.lax.map(lambda each: study(*each), drawn))

    def run_seed(run):
        shared = {}
        for kind, make in kinds.items():
            keys = jax.random.split(run.stage(f"mdps{kind}").key, (2, config.mdps))
            draw = partial(make, states=config.states, actions=config.actions)
            shared[kind] = solve(jax.vmap(draw)(keys[0]), keys[1])
        return shared

    return run_seed


def compare(config, *, canonicalise: rd.Canonicalise, norm: rd.Norm):
    """One arm: a distance, its correlation with regret, and what it says of equivalent rewards."""

    def study(drawn: dict[str, Any]) -> tuple[Array, Array, Array]:
        mdp = without_rewards(drawn["transition"], config.discount)
        distance = partial(rd.starc_distance, mdp=mdp, canonicalise=canonicalise, norm=norm)
        reward, same = drawn["equivalent"]
        along = jax.vmap(lambda pair: interpolated(config, pair, distance))(drawn["pairs"])
        return along, distance(reward, same), distance(reward, -reward)

    compute = jax.jit(partial(jax.lax.map, study))

    def run_seed(run, shared):
        metrics, pairs = {}, []
        for kind, drawn in shared.items():
            lost = np.asarray(drawn["regret"]).ravel()
            along, equal, negative = (np.asarray(values).ravel() for values in compute(drawn))
            pairs.append([equal, negative])
            log_points(run.stage(f"tenths{kind}"), along, lost)
            metrics[f"correlation{kind}"] = stats.pearsonr(along, lost)[0]
        metrics["drop"] = metrics["correlation_dense"] - metrics["correlation_deterministic"]
        same, opposite = np.array(pairs).swapaxes(0, 1)
        metrics |= {"invariance": same.mean(), "invariance_max": same.max()}
        return metrics | {"negative_error": np.abs(opposite - 1).max()}

    return run_seed


def log_points(run, distance: np.ndarray, regret: np.ndarray) -> None:
    """Mean distance and regret of each tenth of the points, nearest first; one point of each."""
    tenths = np.array_split(np.argsort(distance), 10)
    for step, rows in enumerate(tenths, start=1):
        run.log(step, {"distance": distance[rows].mean(), "regret": regret[rows].mean()})
    some = [rows[0] for rows in tenths[::-1]]
    run.samples(10, [{"distance": distance[i], "regret": regret[i]} for i in some])


ARMS = {
    "val_w2": (rd.val, rd.WEIGHTED_L2, "STARC; norms weighted by the transitions"),
    "val_l2": (rd.val, rd.L2, "the same distance: VAL does not depend on s'"),
    "minimal_l2": (rd.minimal, rd.L2, "STARC; the least-squares problem solved exactly"),
    "epic": (rd.epic, rd.L2, "blind to the transitions"),
    "epic_w2": (rd.epic, rd.WEIGHTED_L2, "ablation: impossible transitions left out of the norms"),
    "dard": (rd.dard, rd.L2, "blind to S'-redistribution"),
    "none": (rd.identity, rd.L2, "rewards scaled to norm 1"),
}
FIGURE, CLASS = "correlation with regret", "one canonical reward for all equivalent ones"

EXPERIMENT = Experiment(
    paper=Paper(
        title="STARC: A General Framework For Quantifying Differences Between Reward Functions",
        arxiv="2309.15257",
        code="github.com/lucyfarnik/starc",
    ),
    prepare=prepare,
    arms={k: Arm(partial(compare, canonicalise=c, norm=n), t) for k, (c, n, t) in ARMS.items()},
    scales={
        "mini": Config(),
        "smoke": Config(mdps=4, pairs=2),
        "paper": Config(32, 4, 0.95, 128, 8, 16, transition_threshold=1.0, sparse_threshold=3.0),
    },
    claims=[
        *(Claim("correlation", "val_w2", ">", other, source=FIGURE) for other in ("epic", "dard")),
        *(Claim("correlation", arm, ">", "none", source=FIGURE) for arm in ("epic", "dard")),
        Claim("drop", "epic", ">", 0.0, source="EPIC weights impossible transitions"),
        Claim("drop", "epic", ">", "val_w2", source="EPIC weights impossible transitions"),
        *(Claim("invariance_max", arm, "~", 0.0, 1e-4, CLASS) for arm in ("val_w2", "minimal_l2")),
        *(Claim("invariance", arm, ">", 0.0, 0.05, CLASS) for arm in ("epic", "dard")),
        Claim("negative_error", "val_w2", "~", 0.0, 1e-4, source="d(R, -R) is the largest, 1"),
    ],
    reported={"epic": {"correlation": 0.859}, "dard": {"correlation": 0.863}},
    curves=("distance", "regret"),
)
