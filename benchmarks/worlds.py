"""Speed of worlds, samplers and whole reinforcement-learning steps; no peers.

    python -m benchmarks.worlds [--only rlvr_1,lookup,...]

Prints one JSON line a benchmark, as `benchmarks.lm_steps` does; `unit` says of what `ours` is a
number. Batches are as large as in the experiments.
"""

import argparse
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.lm_steps import Shapes, config
from benchmarks.measure import report, seconds_per_call
from experiments.generation.turning_point_grpo import MINI as FLOW
from experiments.reasoning.tempo import MINI as TEMPO
from experiments.reasoning.tempo import task_of, verified
from rewardjax import credit, losses
from rewardjax.envs.control import gymnax_environment, point_mass
from rewardjax.envs.games import KuhnPoker, TicTacToe
from rewardjax.envs.lookup import LookupWorld
from rewardjax.models.flow import DiTConfig, FlowModel
from rewardjax.models.language_model import LanguageModel
from rewardjax.recipes.policy_gradient import PolicyGradient, scored
from rewardjax.rewards import outcome
from rewardjax.rewards.sql import query_rewards
from rewardjax.sampling import flow
from rewardjax.sampling.control import ControlPolicy
from rewardjax.sampling.language_policy import LanguagePolicy
from rewardjax.sampling.turns import TurnPolicy
from rewardjax.tasks.sql import SQLWorld
from rewardjax.trajectory import Prompts, respond

# What a benchmark is: a call to time, how much it does, and of what.
Benchmark = tuple[Callable, float, str]
STEPS = "RLVR steps a second"
ACTIONS = "environment steps a second"


def rlvr(seeds: int, *, together: bool = False) -> Benchmark:
    """TEMPO's step for one seed, or several: in turn with one program, or vmapped."""
    task = task_of(TEMPO)
    program = task.policy_gradient(
        TEMPO.rl,
        TEMPO.group_size,
        reward=partial(verified, TEMPO.world),
        credit=partial(credit.prefix_tree, group_size=TEMPO.group_size),
        loss=losses.policy_loss(surrogate=losses.clipped(0.2, 0.28)),
    )
    keys = jax.random.split(jax.random.key(0), seeds)
    if together:
        states = jax.vmap(program.start)(keys)
        step = jax.jit(jax.vmap(lambda state, key: program.step(state, None, None, key)))
        return lambda i: step(states, keys)[1], seeds, STEPS
    states = [program.start(key) for key in keys]
    step = jax.jit(lambda state, key: program.step(state, None, None, key))
    return lambda i: [step(s, key)[1] for s, key in zip(states, keys, strict=True)], seeds, STEPS


def turns(rounds: int) -> Benchmark:
    """The lookup agent's rollout in `rounds` turns of 12 / `rounds` written tokens each.

    One round is plain generation. Nothing ends an action early, so that all write as many tokens.
    """
    world, batch, tokens = LookupWorld(max_turns=12), 128, 12
    model = LanguageModel(config(Shapes(vocab=world.vocab_size)))
    policy = LanguagePolicy(model, max_new=tokens // rounds, stop=(-1,))
    acting = TurnPolicy(policy, world, rounds)
    params, key = model.init(jax.random.key(0)), jax.random.key(1)
    play = jax.jit(lambda key: acting.rollout(params, acting.starts(key, batch), key).tokens)
    return lambda i: play(jax.random.fold_in(key, i)), batch * tokens, "written tokens a second"


def plain() -> Benchmark:
    """Generation of as many tokens as `turns` writes, behind prompts of the same length."""
    world, batch, tokens = LookupWorld(), 128, 12
    model = LanguageModel(config(Shapes(vocab=world.vocab_size)))
    policy = LanguagePolicy(model, max_new=tokens, stop=(-1,))
    ids = jnp.full((batch, world.prompt_length), 3)
    params, key = model.init(jax.random.key(0)), jax.random.key(1)
    write = jax.jit(lambda key: policy.rollout(params, Prompts(ids, ids > 0), key).tokens)
    return lambda i: write(jax.random.fold_in(key, i)), batch * tokens, "written tokens a second"


def control(environment) -> Benchmark:
    """Random actions of a fresh policy in 256 episodes."""
    policy, episodes = ControlPolicy(environment), 256
    params = policy.actor.init(jax.random.key(0), jnp.zeros((1, environment.observation_size)))
    params, key = jax.tree.map(jnp.asarray, params["params"]), jax.random.key(1)

    def play(key):
        return policy.rollout(params, environment.reset(key, episodes), key).logprobs

    call = jax.jit(play)
    steps = episodes * environment.time_limit
    return lambda i: call(jax.random.fold_in(key, i)), steps, ACTIONS


def game(world) -> Benchmark:
    """Legal moves at random in 1024 games."""
    games = 1024

    def play(key):
        state = world.init(key)
        for i in range(world.max_turns):
            legal = jnp.where(world.legal(state), 0.0, -jnp.inf)
            move = jax.random.categorical(jax.random.fold_in(key, i), legal)
            state = world.step(state, move)
        return world.returns(state)

    call = jax.jit(jax.vmap(play))
    keys = jax.random.split(jax.random.key(0), games)
    return lambda i: call(keys), games * world.max_turns, ACTIONS


def lookup() -> Benchmark:
    """A scripted agent in 1024 episodes, without a model."""
    world, episodes = LookupWorld(), 1024

    def play(key):
        state, _ = world.reset(key)
        for i in range(world.max_turns):
            action = world.teacher(state, jax.random.fold_in(key, i))
            state, *_ = world.step(state, *action)
        return state.correct

    call = jax.jit(jax.vmap(play))
    keys = jax.random.split(jax.random.key(0), episodes)
    return lambda i: call(keys), episodes * world.max_turns, ACTIONS


def digit_policy(group_size: int = 8) -> tuple[FlowModel, flow.FlowPolicy]:
    """A transformer on 8 x 8 pictures that denoises in ten steps."""
    model = FlowModel(DiTConfig(layers=3))
    return model, flow.FlowPolicy(model.velocity, model.config.event, group_size=group_size)


def images() -> Benchmark:
    """Sampling of 128 pictures."""
    model, policy = digit_policy()
    params, key = model.init(jax.random.key(0)), jax.random.key(1)
    call = jax.jit(lambda key: policy.samples(policy.rollout(params, jnp.zeros(16, int), key)))
    return lambda i: call(jax.random.fold_in(key, i)), 128, "images a second"


def image_update() -> Benchmark:
    """Sampling of 128 pictures and the policy-gradient update on them."""
    model, policy = digit_policy()
    program = PolicyGradient(
        FLOW.rl,
        init=model.boxed_init,
        rollout=policy.rollout,
        prompts=lambda key, n: jnp.zeros(16, int),
        reward=lambda traj: outcome(jnp.mean(policy.samples(traj), axis=(1, 2)), traj.mask),
        credit=partial(credit.group_relative, group_size=8),
        loss=scored(policy.score, losses.policy_loss(surrogate=losses.clipped(0.2))),
    )
    state = program.start(jax.random.key(0))
    step = jax.jit(lambda key: program.step(state, None, None, key)[1])
    return lambda i: step(jax.random.key(i)), 128, "images a second"


def sql() -> Benchmark:
    """Rewards of 256 different responses to questions, each query run."""
    world, count = SQLWorld(), 256
    prompts = world.prompts(jax.random.key(0), count)
    traj = jax.device_get(respond(prompts, *world.demonstrations(jax.random.key(1), prompts)))
    references, databases = world.references(traj), traj.info["database"].tolist()

    def call(i: int):
        opened = world.open_databases()  # nothing is remembered from the last call
        responses = world.responses(traj)
        rows = zip(responses, references, databases, strict=True)
        return np.array([query_rewards(*row[:2], opened[row[2]])["execution"] for row in rows])

    return call, count, "SQL rewards a second"


BENCHMARKS: dict[str, Callable[[], Benchmark]] = {
    "rlvr_1": partial(rlvr, 1),
    "rlvr_8_in_turn": partial(rlvr, 8),
    "rlvr_8_vmapped": partial(rlvr, 8, together=True),
    "turns_plain_generation": plain,
    "turns_1": partial(turns, 1),
    "turns_4": partial(turns, 4),
    "point_mass": lambda: control(point_mass()),
    "pendulum": lambda: control(gymnax_environment("Pendulum-v1")),
    "kuhn_poker": lambda: game(KuhnPoker()),
    "tic_tac_toe": lambda: game(TicTacToe()),
    "lookup": lookup,
    "image_sampling": images,
    "image_update": image_update,
    "sql_rewards": sql,
}


def main() -> None:
    """Run the benchmarks named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", help="comma-separated names", default=",".join(BENCHMARKS))
    parser.add_argument("--repeats", type=int, default=10)
    arguments = parser.parse_args()
    for name in arguments.only.split(","):
        if name not in BENCHMARKS:
            parser.error(f"--only: expected some of {', '.join(BENCHMARKS)}, found {name!r}")
        call, amount, unit = BENCHMARKS[name]()
        seconds, first = seconds_per_call(call, arguments.repeats)
        report(name, round(amount / seconds, 1), None, unit, first - seconds)


if __name__ == "__main__":
    main()
