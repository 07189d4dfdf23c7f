"""SPIRAL: self-play on zero-sum games with role-conditioned advantages (arXiv:2506.24119).

One policy plays both roles against itself. Whoever is ahead by a game's rules would see everything it
does reinforced. So each role of each game has its own moving average of outcomes, read before:

    A_{g,p} = R_p - b_{g,p}        b_{g,p} <- alpha b_{g,p} + (1 - alpha) R_p

Miniature: Kuhn poker, where role 0 loses 1/18 on average, and a bidding game in which it is ahead by
0.7, played by one small transformer that knows the rules. Exploitability is computed exactly.
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from rewardjax import losses, rewards
from rewardjax.credit import discounted_returns
from rewardjax.credit.role_baseline import baseline_advantages
from rewardjax.envs.games import Bidding, KuhnPoker, Table
from rewardjax.experiment import Arm, Claim, Experiment, Paper
from rewardjax.models.language_model import LanguageModel
from rewardjax.models.presets import QWEN3_4B
from rewardjax.models.transformer import TransformerConfig
from rewardjax.recipes.objectives import language_modelling
from rewardjax.recipes.policy_gradient import PolicyGradient, PolicyGradientConfig, scored
from rewardjax.recipes.preference_data import language_batch
from rewardjax.recipes.role_baseline import ema_baseline
from rewardjax.recipes.rollout_workloads import reinforcement
from rewardjax.recipes.self_play_study import average_play, exploitabilities
from rewardjax.recipes.supervised import Supervised, SupervisedConfig
from rewardjax.sampling.language_policy import LanguagePolicy
from rewardjax.sampling.self_play import SelfPlay, demonstrate, uniform_opponent
from rewardjax.sampling.transcripts import transcripts
from rewardjax.statistics import Mean
from rewardjax.tasks.external import require_generated
from rewardjax.training.loop import LoopConfig, smoke
from rewardjax.training.optimizer import OptimizerConfig

TABLE = Table((KuhnPoker(), Bidding()))
ROLES = 2


@dataclasses.dataclass(frozen=True)
class Config:
    """Everything that the arms share."""

    data: str = "kuhn_poker and bidding"
    table: Table = TABLE
    model: TransformerConfig = TransformerConfig(
        vocab=TABLE.vocab_size, layers=1, mlp_width=128, context=16
    )
    sft: SupervisedConfig = SupervisedConfig(
        64, optimizer=OptimizerConfig(learning_rate=3e-3), loop=LoopConfig(100, steps_per_call=50)
    )
    rl: PolicyGradientConfig = PolicyGradientConfig(
        prompts=32,  # games of each kind
        epochs=2,
        optimizer=OptimizerConfig(learning_rate=2e-3, schedule="linear"),
        loop=LoopConfig(steps=400, steps_per_call=10, evaluate_every=10),
    )
    decay: float = 0.95  # alpha
    entropy: float = 0.1  # weight of an entropy bonus
    max_response: int = 3  # thoughts and the move


def player(config, opponent=None):
    """The policy at the table."""
    table = config.table
    policy = LanguagePolicy(
        LanguageModel(config.model),
        max_new=config.max_response,
        stop=table.stop,
        prompt_columns=table.columns,
    )
    return SelfPlay(policy, table, opponent)


def prepare(config):
    """A policy that knows the rules, and nothing else; raises ValueError where data are not generated."""
    require_generated(config.data, "kuhn_poker and bidding")
    table, model = config.table, LanguageModel(config.model)
    random_play = partial(demonstrate, table, uniform_opponent, max_new=config.max_response)

    def batches(key, n):
        start_key, key = jax.random.split(key)
        return language_batch(random_play(jax.random.split(start_key, n), key))

    loss = language_modelling(model)
    program = Supervised(config.sft, init=model.boxed_init, loss=loss, batches=batches)
    return lambda run: program.run(run.stage("sft")).params


def role_in_game(traj):
    """RAE: a baseline for each role of each game."""
    return ROLES * traj.info["game"] + traj.info["role"]


def either_role(traj):
    """One baseline for all."""
    return jnp.zeros_like(traj.info["game"])


def train(config, *, baseline, credit=baseline_advantages, opponent=None):
    """One arm: the clipped surrogate on outcomes, less the average whose number is `baseline(traj)`."""
    play = player(config, opponent)
    learner = ema_baseline(
        baseline,
        ROLES * len(config.table.games),
        counted=lambda traj: traj.info["opening"],
        decay=config.decay,
    )
    bonus = losses.entropy_bonus(config.entropy)
    program = PolicyGradient(
        config.rl,
        init=play.policy.model.boxed_init,
        rollout=play.rollout,
        prompts=play.starts,
        reward=lambda traj: rewards.outcome(traj.info["outcome"], traj.mask, name="won"),
        credit=credit,
        loss=scored(
            play.score, losses.policy_loss(surrogate=losses.clipped(0.2), regularisers=(bonus,))
        ),
        learners={"baseline": learner},
        measure=lambda traj: {"invalid": Mean.of(traj.info["invalid"], jnp.any(traj.mask, axis=1))},
        evaluate=lambda params, frozen, key: exploitabilities(player(config), params),
    )
    rollout = jax.jit(play.rollout)

    def run_seed(run, shared):
        stage = run.stage("rl")
        params = program.run(stage, params=shared).params
        traj = rollout(params, play.starts(stage.key, 4), stage.key)
        rows = transcripts(traj, config.table.decode, columns=("role", "outcome"), count=20)
        stage.samples(config.rl.loop.steps, [row for row in rows if row["response"]])
        found = average_play(stage) | {"advantage_std": np.mean(stage.history("advantage_std"))}
        for name in ("invalid", "entropy", "response_length"):
            found[name] = stage.history(name)[-1]
        return found

    return run_seed


MINI = Config()
# 32 games of each kind are about the paper's batch of 128 turns; the rest is the paper's, but for its
# games (Kuhn poker, tic-tac-toe, simple negotiation), which are played in words through TextArena.
PAPER = Config(
    data="textarena",
    model=QWEN3_4B,
    rl=PolicyGradientConfig(
        prompts=32,
        epochs=2,
        micro_batches=2,
        optimizer=OptimizerConfig(learning_rate=1e-6),
        loop=LoopConfig(steps=400, steps_per_call=1, evaluate_every=16),
    ),
    entropy=0.0,
    max_response=4096,
)
SMOKE = smoke(MINI, model=dataclasses.replace(MINI.model, layers=1))

VARIANCE, COLLAPSE = "method: role means leave the advantage", "ablation without RAE"
EVEN = "what Kuhn's roles expect differs by 1/9 only, its outcomes by up to 4"
BONUS = "every arm has an entropy bonus, which the paper has not"

EXPERIMENT = Experiment(
    paper=Paper(
        title="SPIRAL: Self-Play on Zero-Sum Games Incentivizes Reasoning via Multi-Agent "
        "Multi-Turn Reinforcement Learning",
        arxiv="2506.24119",
        code="github.com/spiral-rl/spiral",
    ),
    prepare=prepare,
    arms={
        "rae": Arm(partial(train, baseline=role_in_game), "a baseline for each role of each game"),
        "no_baseline": Arm(
            partial(train, baseline=either_role, credit=discounted_returns), "the outcome itself"
        ),
        "shared_ema": Arm(partial(train, baseline=either_role), "one baseline"),
        "fixed_random_opponent": Arm(
            partial(train, baseline=role_in_game, opponent=uniform_opponent), "legal random moves"
        ),
    },
    scales={"mini": MINI, "smoke": SMOKE, "paper": PAPER},
    claims=[
        Claim("advantage_std", "rae", "<", "no_baseline", source=VARIANCE),
        Claim("advantage_std", "rae", "<", "shared_ema", source=VARIANCE),
        Claim("kuhn_exploitability", "rae", "<", "no_baseline", source=COLLAPSE, note=EVEN),
        Claim("bidding_exploitability", "rae", "<", "no_baseline", source=COLLAPSE),
        Claim("bidding_exploitability", "rae", "<", "shared_ema", source=COLLAPSE),
        Claim("entropy", "rae", ">", "no_baseline", source=COLLAPSE, note=BONUS),
        Claim("kuhn_exploitability", "fixed_random_opponent", ">", "rae", source="fixed opponents"),
        Claim("kuhn_against_random", "fixed_random_opponent", ">", 0.0, source="fixed opponents"),
    ],
    curves=("eval/kuhn", "eval/bidding", "advantage_std", "entropy"),
    workloads=partial(reinforcement, prompt=2048, group_size=1, reference=False),
)
