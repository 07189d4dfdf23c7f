"""GPM: general preference modeling with preference representations (arXiv:2410.02197).

A scalar reward ranks; where a beats b, b beats c and c beats a it can only guess. GPM gives each
response an embedding v of 2k numbers, one forward pass each, and compares by a skew-symmetric form

    s(i over j) = <R v_i, v_j> = sum_l g_l (v_i[2l] v_j[2l+1] - v_i[2l+1] v_j[2l])
    P(i over j) = sigmoid(s / tau),    loss = -log P(chosen over rejected)

so that P(i over j) + P(j over i) = 1 by construction; the gates g are 1, or the prompt's own. A model
that reads both responses at once (PairPM) needs a pass a pair and has no such symmetry. General
preference optimisation (GPO) regresses a policy's log-ratios on s / beta.

Miniature: five styles, each of which beats the next two. Where the circle turns, a quarter of the
prompts ask for the other direction, and `apart` is an embedding that does not see the prompt, so that
only gates can. Two judges improve a policy, which is a table over the styles.
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from rewardjax import losses
from rewardjax.data.formats import names_preferences
from rewardjax.data.sources import ArraySource
from rewardjax.evaluation.exploitability import matrix_exploitability
from rewardjax.experiment import Arm, Claim, Experiment, Paper
from rewardjax.models.presets import LLAMA3_8B
from rewardjax.models.transformer import TransformerConfig
from rewardjax.recipes.objective_workloads import lists_of, objective_training
from rewardjax.recipes.pair_judges import (
    COLUMNS,
    Judge,
    comparing,
    general_judge,
    paired_judge,
    scalar_judge,
)
from rewardjax.recipes.styled_lists import (
    judge_metrics,
    labelled_pairs,
    random_lists,
    styled_lists,
    win_rates,
)
from rewardjax.recipes.supervised import Supervised, SupervisedConfig
from rewardjax.recipes.table_policy import TableConfig, table_policies
from rewardjax.recipes.text_pairs import (
    SCALAR,
    PairHead,
    TextPairs,
    TextPairsConfig,
    head_of,
    inapplicable_to_text,
)
from rewardjax.tasks.cyclic_styles import CyclicStyles
from rewardjax.tasks.external import require_generated
from rewardjax.training.loop import LoopConfig, smoke
from rewardjax.training.optimizer import OptimizerConfig
from rewardjax.training.sharding import MeshConfig


@dataclasses.dataclass(frozen=True)
class Config:
    """Everything that the arms share.

    Attributes:
      data: "cyclic_styles", preferences over text as `open_preferences` takes them, or what the paper's
        scale would need.
    """

    data: str = "cyclic_styles"
    world: CyclicStyles = CyclicStyles(signature=4)
    turning: float = 0.25  # share of prompts, in the arms where the circle turns
    model: TransformerConfig = TransformerConfig(
        vocab=CyclicStyles().vocab_size,
        width=32,
        heads=2,
        kv_heads=2,
        mlp_width=64,
        context=64,
    )
    tau: float = 0.1  # of GPM's score
    fit: SupervisedConfig = SupervisedConfig(
        64,
        optimizer=OptimizerConfig(learning_rate=2e-3),
        loop=LoopConfig(steps=500, steps_per_call=50),
    )
    pairs: int = 16_384
    temperature: float = 0.3  # of the annotators, where a style that beats is 1 ahead
    prompts: int = 64  # held out
    ranked: int = 16  # responses to each, all of which are compared
    samples: int = 32  # of each style, whose scores are averaged for the policy
    policy: TableConfig = TableConfig()
    gpo_beta: float = 1.0
    dpo_beta: float = 0.1
    text: TextPairsConfig = TextPairsConfig()  # budgets where the data are text


def prepare(config):
    """Labelled pairs and held-out lists of both worlds, with the circle standing and turning."""
    if names_preferences(config.data):
        return TextPairs(config.data, config.text).prepare()
    require_generated(config.data, "cyclic_styles")

    @partial(jax.jit, static_argnums=0)
    def study(world, key):
        pair_key, list_key = jax.random.split(key)
        pairs = labelled_pairs(world, pair_key, config.pairs, config.temperature)
        return pairs, random_lists(world, list_key, config.prompts, config.ranked)

    def run_seed(run):
        turning = dataclasses.replace(config.world, turning=config.turning)
        worlds = {False: config.world, True: turning}
        return jax.tree.map(np.asarray, {x: study(world, run.key) for x, world in worlds.items()})

    return run_seed


def bt(config) -> Judge:
    """A scalar reward."""
    return scalar_judge(config.model)


def gpm(config, *, dimension, gated=False, apart=False) -> Judge:
    """The paper's, with embeddings of `dimension` numbers."""
    blocks = dimension // 2
    return general_judge(config.model, blocks=blocks, tau=config.tau, gated=gated, apart=apart)


def pairpm(config) -> Judge:
    """Reads both responses."""
    return paired_judge(config.model, config.world.sep)


def gpo(config, log_ratio, scores) -> Float[Array, "batch group"]:
    """GPO on a group's log-ratios; `scores` are each sample's over each."""
    return losses.gpo(log_ratio, jnp.mean(scores, axis=2), beta=config.gpo_beta)


def dpo(config, log_ratio, scores) -> Float[Array, "batch"]:
    """DPO on a group's first two samples, labelled by the judge (a tie is a fair coin)."""
    label = (jnp.sign(scores[:, 0, 1]) + 1) / 2
    gap = log_ratio[:, 0] - log_ratio[:, 1]
    return losses.bradley_terry(config.dpo_beta * gap, probability=label)


def improvement(config, judge: Judge, loss):
    """A policy over the styles, improved by what the judge says: `(run, params) -> metrics`.

    Gold is the annotators' chance to prefer, less 1/2; an equilibrium of it is not exploitable.
    """
    world, gold = config.world, win_rates(config.world, config.temperature) - 0.5

    @jax.jit
    def study(params, key):
        list_key, key = jax.random.split(key)
        style = jnp.repeat(jnp.arange(world.styles), config.samples)[None]
        lists = styled_lists(world, list_key, style)
        logits = judge.logits(params, *(lists[name] for name in COLUMNS))[0] * config.tau
        scores = logits.reshape(world.styles, config.samples, world.styles, -1).mean(axis=(1, 3))
        policies = table_policies(config.policy, partial(loss, config), scores, key)
        average = jnp.cumsum(policies, axis=0) / jnp.arange(1, len(policies) + 1)[:, None]
        exploited = jax.vmap(partial(matrix_exploitability, gold))
        return {
            "exploitability": exploited(policies, policies),
            "average_exploitability": exploited(average, average),
            "favourite": jnp.max(policies, axis=1),
        }

    def improve(run, params):
        found = {name: np.asarray(x) for name, x in study(params, run.key).items()}
        for i in range(config.policy.rounds):
            run.log(i + 1, {name: float(x[i]) for name, x in found.items()})
        return {name: float(x[-1]) for name, x in found.items()}

    return improve


def embedded(config, *, dimension) -> PairHead:
    """The paper's, as a head on pairs of text."""

    def logit(outputs):
        return losses.preference_score(outputs[:, 0], outputs[:, 1]) / config.tau

    # A start at 0 would be a saddle of the bilinear score.
    spread = 1 / (config.text.text.model.width + 1)
    return head_of(lambda x: losses.bradley_terry(logit(x)), dimension, logit, spread)


def train(config, *, judge, turning=False, policy=None, on_text=None):
    """One judge on all pairs of held-out lists; with a `policy` loss, a policy that it improves.

    Of pairs of text, `on_text(config)` is the head.
    """
    if names_preferences(config.data):
        return TextPairs(config.data, config.text).arm(on_text(config))
    judge = judge(config)
    program = Supervised(config.fit, init=judge.model.boxed_init, loss=comparing(judge))
    improve = policy and improvement(config, judge, policy)

    @jax.jit
    def evaluate(params, lists):
        columns = tuple(lists[name] for name in COLUMNS)
        logits = jax.lax.map(lambda row: judge.logits(params, *(x[None] for x in row))[0], columns)
        return judge_metrics(logits, lists["style"], lists["ahead"])

    def run_seed(run, shared):
        pairs, lists = shared[turning]
        source = ArraySource(pairs, config.fit.batch_size, run.seed)
        params = program.run(run.stage("judge"), source=source).params
        found = {name: float(x) for name, x in evaluate(params, lists).items()}
        found |= improve(run.stage("policy"), params) if improve else {}
        return found | {"passes": judge.passes(config.ranked)}

    return run_seed


MINI = Config()
PAPER = Config(
    data="Skywork-Reward-Preference-80K",
    model=LLAMA3_8B,
    fit=SupervisedConfig(
        32,
        micro_batches=2,
        optimizer=OptimizerConfig(learning_rate=2e-6),
        loop=LoopConfig(steps=5000),
        mesh=MeshConfig(fsdp=16),
    ),
    pairs=80_000,
)


def workloads(config):
    """GPM with embeddings of 4 numbers, as the 8B model of the paper: pairs of 2048 tokens each."""
    judge, rows = gpm(config, dimension=4), config.fit.batch_size
    batch = partial(lists_of, rows=rows, responses=2, prompt=1024, response=1024)
    return [objective_training(judge.model, config.fit, comparing(judge), batch, "gpm")]


def inapplicable(config):
    """Arms that need more than the data have."""
    return inapplicable_to_text(
        config.data, EXPERIMENT.arms, ON_TEXT, "several responses to compare"
    )


ON_TEXT = ("bt", "gpm_d2", "gpm_d4")
D2, D4 = partial(gpm, dimension=2), partial(gpm, dimension=4)
TURNING, CYCLIC = partial(train, turning=True), "cyclic preference data sets"
PAIRWISE, GATES, GPO = "pairwise models, section 1", "gate ablation", "GPO, AlpacaEval 2.0"
SEES = "an embedding that sees the prompt turns by itself: gates are needed only where it does not"
EXPERIMENT = Experiment(
    paper=Paper(
        title="Beyond Bradley-Terry Models: A General Preference Model for Language Model Alignment",
        arxiv="2410.02197",
        code="github.com/general-preference/general-preference-model",
    ),
    prepare=prepare,
    arms={
        "bt": Arm(
            partial(train, judge=bt, policy=dpo, on_text=lambda config: SCALAR),
            "its policy: DPO on its labels",
        ),
        "pairpm": Arm(partial(train, judge=pairpm), "trained on both orders"),
        "gpm_d2": Arm(
            partial(train, judge=D2, policy=gpo, on_text=partial(embedded, dimension=2)),
            "its policy: GPO on its scores",
        ),
        "gpm_d4": Arm(partial(train, judge=D4, on_text=partial(embedded, dimension=4))),
        "gpm_d4_turning": Arm(partial(TURNING, judge=D4)),
        "gpm_d4_apart": Arm(
            partial(TURNING, judge=partial(D4, apart=True)), "embeddings do not see the prompt"
        ),
        "gpm_gate_apart": Arm(
            partial(TURNING, judge=partial(D4, apart=True, gated=True)), "the same; the gates do"
        ),
    },
    scales={
        "mini": MINI,
        "smoke": smoke(
            MINI, pairs=256, prompts=4, ranked=4, samples=2, policy=TableConfig(rounds=3)
        ),
        "paper": PAPER,
    },
    claims=[
        Claim("cyclic_accuracy", "bt", "~", 0.5, 0.05, source=CYCLIC),
        Claim("cyclic_accuracy", "gpm_d2", ">", 0.95, source=CYCLIC),
        Claim("cyclic_accuracy", "gpm_d2", ">", "bt", 0.3, source=CYCLIC),
        Claim("quality_accuracy", "gpm_d4", ">=", "bt", 0.02, source="RewardBench: no worse"),
        Claim("quality_accuracy", "gpm_d4", ">", "gpm_d2", source="embedding dimension"),
        Claim("cyclic_accuracy", "pairpm", ">", 0.95, source=PAIRWISE),
        Claim("asymmetry", "gpm_d4", "<", "pairpm", source=PAIRWISE),
        Claim("asymmetry", "gpm_d4", "~", 0.0, 1e-5, source=PAIRWISE),
        Claim("passes", "gpm_d4", "<", "pairpm", source="linear, not quadratic, in responses"),
        Claim("cyclic_accuracy", "gpm_gate_apart", ">", "gpm_d4_apart", source=GATES),
        Claim("cyclic_accuracy", "gpm_gate_apart", ">", "gpm_d4_turning", source=GATES, note=SEES),
        Claim("average_exploitability", "gpm_d2", "<", "bt", source=GPO),
        Claim("favourite", "bt", ">", 0.9, source="a scalar reward has one best style"),
        Claim("favourite", "gpm_d2", "<", "bt", source="a mixed equilibrium"),
    ],
    reported={"bt": {"rewardbench_gain": 0.0}, "gpm_d4": {"rewardbench_gain": 0.01}},
    first_arms=("bt", "pairpm", "gpm_d2", "gpm_d4", "gpm_gate_apart"),
    curves=("accuracy", "exploitability", "average_exploitability"),
    inapplicable=inapplicable,
    workloads=workloads,
)
