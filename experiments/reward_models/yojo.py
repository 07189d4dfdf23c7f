"""You only judge once: multi-response reward modeling in a single forward pass (arXiv:2604.10966).

A reward model that scores each response in a row of its own cannot compare, and reads the prompt N
times. Here all N responses are one row with separators between them; a response's score is read at
its last token (or from its mean state), where the earlier responses are seen, and the loss is the
cross-entropy of the best one, Bradley-Terry for N = 2:

    loss = -log softmax(s_1 .. s_N)[best]

Later responses see more than earlier ones, so that order matters: lists are shuffled for training, and
scores can be averaged over several orders.

Miniature: of four writers' responses the best is that with the highest gold utility (`_absolute`), or
with the highest of those at most 1.5 times as long as the shortest, which no score of a single response
can say. Lists come with the best response first more often than chance. The `_absolute` reward models
also score the groups of a policy's GRPO, jointly or each response alone.
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool

from rewardjax.compilation.layout import rows_of
from rewardjax.data.sources import ArraySource
from rewardjax.experiment import Arm, Claim, Experiment, Paper
from rewardjax.models.heads import RewardModel
from rewardjax.models.multi_response import MultiResponse, last_state, mean_state
from rewardjax.models.presets import QWEN3_4B
from rewardjax.recipes.objective_workloads import lists_of, objective_training
from rewardjax.recipes.policy_gradient import PolicyGradientConfig
from rewardjax.recipes.preference_lab import TINY, LabConfig, PreferenceLab
from rewardjax.recipes.response_lists import (
    COLUMNS,
    Utility,
    arranged,
    choosing,
    group_columns,
    order_metrics,
    written_lists,
)
from rewardjax.recipes.supervised import Supervised, SupervisedConfig
from rewardjax.tasks.external import require_generated
from rewardjax.tasks.preference_world import PreferenceWorld
from rewardjax.training.loop import LoopConfig, smoke
from rewardjax.training.optimizer import OptimizerConfig
from rewardjax.training.sharding import MeshConfig


@dataclasses.dataclass(frozen=True)
class Config:
    """Everything that the arms share."""

    data: str = "preference_world"
    lab: LabConfig = LabConfig(
        world=PreferenceWorld(
            themes=2,
            tokens_per_theme=8,
            full_coverage=5,
            on_theme=(0.7, 1.0),
            repetition_penalty=0.0,
            sentiment_rate=0.0,
            gaudy_max=0,
            response_length=6,
        ),
        model=dataclasses.replace(TINY, context=64),
        sft=SupervisedConfig(128, loop=LoopConfig(steps=100, steps_per_call=50)),
    )
    hidden: int = 32  # units of the reward model's head; its backbone is of the policy's size
    count: int = 4  # responses of a list, and of a group in GRPO
    train: int = 16_384  # lists
    test: int = 2048
    shortest: tuple[int, int] = (2, 3)  # fewest tokens of a list's responses; twice that, the most
    led: float = 0.5  # share of lists with the best response first, where they are not shuffled
    limit: float = 1.5  # times the shortest response's length that the best may have
    orders: int = 3  # over which scores are averaged, at test
    fit: SupervisedConfig = SupervisedConfig(
        32,
        optimizer=OptimizerConfig(learning_rate=3e-3, schedule="cosine", warmup=0.05),
        loop=LoopConfig(steps=1000, steps_per_call=50),
    )
    rl: PolicyGradientConfig = PolicyGradientConfig(
        prompts=64,
        optimizer=OptimizerConfig(learning_rate=5e-4),
        loop=LoopConfig(steps=60, steps_per_call=20, evaluate_every=20),
    )
    kl: float = 0.05
    evaluation_prompts: int = 512


def absolute(config, gold: Utility, valid: Bool[Array, "n responses time"]) -> Utility:
    """A response's own worth."""
    return gold


def relative(config, gold: Utility, valid: Bool[Array, "n responses time"]) -> Utility:
    """The same, but below all others where the response is too long beside the shortest."""
    length = jnp.sum(valid, axis=2)
    too_long = length > config.limit * jnp.min(length, axis=1, keepdims=True)
    return gold - 10.0 * too_long


def prepare(config):
    """By criterion, training lists shuffled and as they come, and test lists; the first policy."""
    require_generated(config.data, "preference_world")
    lab = PreferenceLab(config.lab)

    @jax.jit
    def study(key):
        keys = jax.random.split(key, 5)
        train, test = (
            written_lists(lab.world, key, n, config.count, config.shortest)
            for key, n in zip(keys[:2], (config.train, config.test))
        )

        def judged(criterion):
            train_lists, test_lists = (
                x | {"utility": criterion(config, x["utility"], x["valid"])} for x in (train, test)
            )
            return {
                "shuffled": arranged(train_lists, keys[2]),
                "ordered": arranged(train_lists, keys[3], config.led),
                "test": arranged(test_lists, keys[4]),
            }

        return {criterion.__name__: judged(criterion) for criterion in (absolute, relative)}

    def run_seed(run):
        found = jax.tree.map(np.asarray, study(run.stage("lists").key))
        return found | {"policy": lab.sft(run.stage("sft"))}

    return run_seed


def scorer(config, *, joint, pool=last_state):
    """The reward model and `(params, prompt, prompt_valid, responses, valid) -> [batch, responses]`."""
    model = RewardModel(config.lab.model, hidden=config.hidden, spread=0.01)
    reader = MultiResponse(model, config.lab.world.sep, pool)
    read = reader.joint if joint else reader.independent
    return model, lambda params, *columns: read(params, *columns)[..., 0]


def improvement(config, score):
    """GRPO on scores of whole groups: `(run, reference, reward_model) -> metrics`, gold among them."""

    def proxy(frozen, traj):
        columns = group_columns(traj, config.lab.world.prompt_length, config.count)
        return score(frozen["reward_model"], *columns).reshape(-1)

    lab = PreferenceLab(config.lab, proxy=proxy, together=config.count)
    program = lab.grpo(
        config.rl,
        group_size=config.count,
        kl=config.kl,
        evaluation_prompts=config.evaluation_prompts,
    )

    def improve(run, reference, reward_model):
        frozen = {"reference": reference, "reward_model": reward_model}
        program.run(run, params=reference, frozen=frozen)
        return {name: float(run.history(f"eval/{name}")[-1]) for name in ("gold", "kl", "length")}

    return improve


def train(config, *, criterion, joint, pool=last_state, data="shuffled"):
    """One reward model, and what it makes of lists in an order, and in several."""
    model, score = scorer(config, joint=joint, pool=pool)
    program = Supervised(config.fit, init=model.boxed_init, loss=choosing(score))
    start = jax.jit(model.init)
    evaluate = jax.jit(partial(order_metrics, score, count=config.orders))
    improve = improvement(config, score) if criterion is absolute else None

    def run_seed(run, shared):
        lists, policy = shared[criterion.__name__], shared["policy"]
        columns = {name: lists[data][name] for name in (*COLUMNS, "best")}
        source = ArraySource(columns, config.fit.batch_size, run.seed)
        stage = run.stage("fit")
        params = program.run(stage, params=start(stage.key, policy), source=source).params
        found = {k: float(x) for k, x in evaluate(params, lists["test"], run.key).items()}
        return found | (improve(run.stage("rl"), policy, params) if improve else {})

    return run_seed


MINI = Config()
PAPER = Config(
    data="Molmo2 preference lists",
    lab=LabConfig(model=QWEN3_4B),
    hidden=1024,
    fit=SupervisedConfig(
        64,
        micro_batches=4,
        optimizer=OptimizerConfig(learning_rate=1e-5),
        loop=LoopConfig(steps=3000),
        mesh=MeshConfig(fsdp=16),
    ),
)


def workloads(config):
    """Four responses of 512 tokens to a prompt of 2048, in one row: 64 such rows a step."""
    model, score = scorer(config, joint=True)
    loss, rows = choosing(score), config.fit.batch_size

    def batch(mesh):
        lists = lists_of(mesh, rows, config.count, prompt=2048, response=512)
        return lists | {"best": rows_of(mesh, jnp.int32, rows)}

    return [objective_training(model, config.fit, loss, batch, "multi_response")]


SINGLE = partial(train, joint=False, criterion=relative)
JOINT = partial(train, joint=True, criterion=relative)
REWARDS, ORDER = "multi-response against single-response reward model", "later responses see more"
GRPO, ALIGNED = (
    "GRPO: WildVision, LLaVA-Bench",
    "the best by its own worth; then GRPO on its scores",
)
LATE = "after 500 updates, the budget first recorded, not yet: -0.010 [-0.045, 0.025]"
ALIKE = "a group's responses are about equally long; both arms go from about 0.70 to 0.73"
EXPERIMENT = Experiment(
    paper=Paper(
        title="You Only Judge Once: Multi-response Reward Modeling in a Single Forward Pass",
        arxiv="2604.10966",
        code="github.com/yinuoyang01/multi-response-rm",
    ),
    prepare=prepare,
    arms={
        "single_ce": Arm(SINGLE),
        "multi_last": Arm(JOINT),
        "multi_mean": Arm(partial(JOINT, pool=mean_state)),
        "multi_noshuffle": Arm(partial(JOINT, data="ordered"), "lists in the order they came in"),
        "single_ce_absolute": Arm(partial(SINGLE, criterion=absolute), ALIGNED),
        "multi_last_absolute": Arm(partial(JOINT, criterion=absolute), ALIGNED),
    },
    scales={
        "mini": MINI,
        "smoke": smoke(MINI, train=128, test=32, evaluation_prompts=16),
        "paper": PAPER,
    },
    claims=[
        Claim("best_of_n", "multi_last", ">", "single_ce", source=REWARDS, note=LATE),
        Claim("averaged_best_of_n", "multi_last", ">", "single_ce", source=REWARDS),
        Claim("best_of_n", "multi_mean", ">", "single_ce", source=REWARDS),
        Claim("pair_accuracy", "multi_last", ">", "single_ce", source=REWARDS),
        Claim("best_of_n", "multi_last_absolute", "~", "single_ce_absolute", 0.03, source=REWARDS),
        Claim("first_chosen", "multi_noshuffle", ">", "multi_last", source=ORDER),
        Claim("position_gap", "multi_noshuffle", ">", "multi_last", source=ORDER),
        Claim("bias_removed", "multi_last", ">", 0.0, source="average over 3 orders"),
        Claim("averaging_gains", "multi_last", ">", 0.0, source="average over 3 orders"),
        Claim("gold", "multi_last_absolute", ">", "single_ce_absolute", source=GRPO, note=ALIKE),
    ],
    reported={
        "multi_last": {"average": 0.712},
        "single_ce_absolute": {"wildvision": 55.8, "llava_bench": 91.6},
        "multi_last_absolute": {"wildvision": 60.2, "llava_bench": 97.0},
    },
    curves=("accuracy", "eval/gold"),
    workloads=workloads,
)
