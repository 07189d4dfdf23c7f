"""OPRM and RgFT: ordinal probabilistic rewards from preferences (arXiv:2602.12660).

A scalar reward says neither how good a response is on any scale nor how sure that is. OPRM gives each
response a distribution over the ratings 1 .. 9, read from the logits at the last position, and makes
the pair's label likely under independent ratings S:

    loss = -log P(S_chosen > S_rejected) = -log sum_k p_chosen(k) P(S_rejected < k)

The reward is the mean rating, the variance its uncertainty. Region flooding tuning (RgFT) ties the
ratings to a scale: where a fifth of the pairs also says bad, normal or good of each response, the
sum is over those ratings alone, and within one region still over S_chosen > S_rejected.

Miniature: quality is the rank of gold utility, uniform on [0, 1], its thirds the three levels. Who
compares sees quality through noise, and through much more of it for half of the themes.
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from scipy import stats

from rewardjax import losses
from rewardjax.data.formats import names_preferences
from rewardjax.data.sources import ArraySource
from rewardjax.evaluation.accuracy import pairwise_accuracy
from rewardjax.evaluation.calibration import expected_calibration_error
from rewardjax.evaluation.verification import roc_auc
from rewardjax.experiment import Arm, Claim, Experiment, Paper
from rewardjax.losses import Loss
from rewardjax.losses.ordinal import UNKNOWN
from rewardjax.models.heads import RewardModel
from rewardjax.models.presets import QWEN25_7B
from rewardjax.recipes.levelled_pairs import levelled_pairs, told_levels
from rewardjax.recipes.objective_workloads import objective_training
from rewardjax.recipes.preference_lab import LabConfig, PreferenceLab
from rewardjax.recipes.supervised import Supervised, SupervisedConfig
from rewardjax.recipes.text_pairs import TextPairs, TextPairsConfig, head_of, inapplicable_to_text
from rewardjax.recipes.workloads import sequences_of
from rewardjax.statistics import Mean
from rewardjax.tasks.external import require_generated
from rewardjax.training.loop import LoopConfig, smoke
from rewardjax.training.optimizer import OptimizerConfig
from rewardjax.training.sharding import MeshConfig

Outputs = Float[Array, "batch 2 outputs"]  # chosen, rejected


@dataclasses.dataclass(frozen=True)
class Config:
    """Everything that the arms share.

    Attributes:
      data: "preference_world", preferences over text as `open_preferences` takes them, or what the
        paper's scale would need.
      lab: world, model, and the language model that reward models start from.
      levels, regions: ratings are 1 .. levels; each region is an equal share of them.
      train, test: pairs.
      labelled: share of the training pairs of which the regions are known.
      noise: of the two qualities in a comparison, as a standard deviation: clear themes, and others.
      fit: of a reward model.
      text: budgets where the data are text.
    """

    data: str = "preference_world"
    lab: LabConfig = LabConfig()
    levels: int = 9
    regions: int = 3
    train: int = 3000
    test: int = 3000
    labelled: float = 0.2
    noise: tuple[float, float] = (0.05, 0.5)
    fit: SupervisedConfig = SupervisedConfig(64, loop=LoopConfig(steps=240, steps_per_call=40))
    text: TextPairsConfig = TextPairsConfig()


def bt(config, outputs: Outputs, region) -> Float[Array, "batch"]:
    """A scalar."""
    return losses.bradley_terry(outputs[:, 0, 0] - outputs[:, 1, 0])


def oprm(config, outputs: Outputs, region) -> Float[Array, "batch"]:
    """The paper's loss, without levels."""
    return losses.ordinal(outputs[:, 0], outputs[:, 1])


def rgft(config, outputs: Outputs, region, *, flooded=True) -> Float[Array, "batch"]:
    """The paper's loss within the labelled regions; without labels as `oprm`."""
    cells = losses.region_cells(
        region[:, 0], region[:, 1], regions=config.regions, levels=config.levels, flooded=flooded
    )
    return losses.ordinal(outputs[:, 0], outputs[:, 1], cells)


def regression(config, outputs: Outputs, region) -> Float[Array, "batch"]:
    """The mean rating's squared distance to the middle of a labelled region; 0 without a label."""
    size = config.levels // config.regions
    middle = region * size + (size + 1) / 2
    error = (losses.rating_moments(outputs)[0] - middle) ** 2
    return jnp.mean(jnp.where(region == UNKNOWN, 0.0, error), axis=1)


def prepare(config):
    """A backbone; training pairs, some with levels; test pairs, all with theirs."""
    if names_preferences(config.data):
        return TextPairs(config.data, config.text).prepare()
    require_generated(config.data, "preference_world")
    lab = PreferenceLab(config.lab)

    @partial(jax.jit, static_argnums=1)
    def pairs(key, n):
        return levelled_pairs(lab, key, n, regions=config.regions, noise=config.noise)

    def run_seed(run):
        train, test = (
            jax.tree.map(np.asarray, pairs(run.stage(name).key, getattr(config, name)))
            for name in ("train", "test")
        )
        backbone = lab.sft(run.stage("sft"))
        known = {"some": train["lot"] < config.labelled, "all": np.ones(config.train, bool)}
        return backbone, {name: told_levels(train, x) for name, x in known.items()}, test

    return run_seed


def modelling(config, model, loss):
    """A loss on all that the head reads of a pair's two responses."""

    def objective(params, batch, frozen=None):
        outputs = model.scores(params, batch["tokens"], batch["valid"])
        values = loss(config, outputs, batch["region"])
        ratings, _ = read(config, outputs)
        return Loss(
            {"preference": Mean.of(values)}, {"accuracy": Mean.of(ratings[:, 0] > ratings[:, 1])}
        )

    return objective


def read(config, outputs):
    """Mean and variance of ratings 1 .. levels; a scalar's is its logistic function, and certain."""
    if outputs.shape[-1] > 1:
        return losses.rating_moments(outputs)
    rating = 1 + (config.levels - 1) * jax.nn.sigmoid(outputs[..., 0])
    return rating, jnp.zeros_like(rating)


def log_odds(outputs: Outputs) -> Float[Array, "batch"]:
    """That the first response is preferred; of two ratings, given that they differ."""
    if outputs.shape[-1] == 1:
        return outputs[:, 0, 0] - outputs[:, 1, 0]
    sides = outputs[:, 0], outputs[:, 1]
    above = losses.log_probability_higher(*sides)
    return above - losses.log_probability_higher(*reversed(sides))


def measured(config, outputs, test) -> dict[str, float]:
    """A reward model on the test pairs, against quality."""
    rating, variance = map(np.asarray, read(config, outputs))
    quality, level = test["utility"], test["level"]
    wrong = quality[:, :1] < quality[:, 1:]
    better, worse = np.where(wrong, rating[:, ::-1], rating).T
    told = quality[:, 0] != quality[:, 1]
    same = told & (level[:, 0] == level[:, 1])
    size = config.levels // config.regions
    borders = np.arange(1, config.regions) * size + 0.5
    scaled = (rating - 1) / (config.levels - 1)
    turned = np.arange(len(rating)) % 2 == 1
    stated = np.asarray(jax.nn.sigmoid(log_odds(outputs)))
    ends = np.asarray(jax.nn.softmax(outputs, axis=-1))[..., [0, -1]].sum(-1)
    found = {
        "accuracy": pairwise_accuracy(better[told], worse[told]),
        "same_level_accuracy": pairwise_accuracy(better[same], worse[same]),
        "mae": float(np.mean(np.abs(scaled - quality))),
        "spearman": float(stats.spearmanr(rating.ravel(), quality.ravel())[0]),
        "level_accuracy": float(np.mean(np.digitize(rating, borders) == level)),
        "ece": expected_calibration_error(np.where(turned, 1 - stated, stated), ~turned),
    }
    if outputs.shape[-1] == 1:
        return found
    ambiguous = test["ambiguous"].ravel()
    return found | {"ambiguity_auc": roc_auc(variance.ravel(), ambiguous), "ends": ends.mean()}


def train(config, *, loss, known="some"):
    """One reward model."""
    outputs = 1 if loss is bt else config.levels
    if names_preferences(config.data):
        plain = partial(loss, config, region=None)
        return TextPairs(config.data, config.text).arm(head_of(plain, outputs, log_odds))
    model = RewardModel(config.lab.model, outputs)
    objective = modelling(config, model, loss)
    program = Supervised(config.fit, init=model.boxed_init, loss=objective)
    score = jax.jit(model.scores)

    def run_seed(run, shared):
        backbone, pairs, test = shared
        source = ArraySource(pairs[known], config.fit.batch_size, run.seed)
        start = model.init(run.key, backbone)
        params = program.run(run.stage("fit"), params=start, source=source).params
        return measured(config, score(params, test["tokens"], test["valid"]), test)

    return run_seed


def inapplicable(config):
    """Arms that need more than the data have."""
    return inapplicable_to_text(config.data, EXPERIMENT.arms, ON_TEXT, "levels of responses")


MINI = Config()
PAPER = Config(
    data="130k preference pairs",
    lab=LabConfig(model=QWEN25_7B),
    train=130_000,
    fit=SupervisedConfig(
        128,
        micro_batches=8,
        optimizer=OptimizerConfig(learning_rate=1e-6),
        loop=LoopConfig(steps=1000),
        mesh=MeshConfig(fsdp=16),
    ),
)


def workloads(config):
    """Training on pairs of 2048 tokens each, a fifth of them with levels."""
    model, size = RewardModel(config.lab.model, config.levels), config.fit.batch_size

    def loss(params, batch):
        region = jnp.full((batch["tokens"].shape[0], 2), UNKNOWN)
        return modelling(config, model, rgft)(params, batch | {"region": region})

    def batch(mesh):
        return sequences_of(mesh, size, 2, 2048)

    return [objective_training(model, config.fit, loss, batch, "rgft")]


ON_TEXT = ("bt", "oprm")
SCALE, FLOODED = "calibrated absolute scores", "why regions are flooded"
ENDS = (
    "qualities are uniform, a fifth of them belongs to the two ends; 240 steps move 1% more there"
)
FEW = "a fifteenth of the pairs has levels that are the same; where all have, the next claim, it shows"
EXPERIMENT = Experiment(
    paper=Paper(
        title="Learning Ordinal Probabilistic Reward from Preferences",
        arxiv="2602.12660",
        code="github.com/ritzz-ai/OPRM",
    ),
    prepare=prepare,
    arms={
        "bt": Arm(partial(train, loss=bt), "a scalar; 1 + 8 sigmoid(r) as its rating"),
        "oprm": Arm(partial(train, loss=oprm)),
        "rgft": Arm(partial(train, loss=rgft), "a fifth of the pairs with levels"),
        "hard_region": Arm(
            partial(train, loss=partial(rgft, flooded=False)),
            "the whole block of the two levels, whatever the order in it",
        ),
        "rgft_all": Arm(partial(train, loss=rgft, known="all"), "all pairs with levels"),
        "hard_region_all": Arm(
            partial(train, loss=partial(rgft, flooded=False), known="all"), "all pairs with levels"
        ),
        "regression": Arm(partial(train, loss=regression), "on the fifth with levels alone"),
    },
    scales={
        "mini": MINI,
        "smoke": smoke(MINI, train=256, test=128),
        "paper": PAPER,
    },
    claims=[
        Claim("accuracy", "oprm", ">=", "bt", 0.01, source="RewardBench, PPE, RMB"),
        Claim("accuracy", "rgft", ">=", "oprm", 0.01, source="RMB, with and without levels"),
        Claim("accuracy", "rgft", ">", "regression", source="preferences and levels together"),
        Claim("mae", "oprm", "<", "bt", source=SCALE),
        Claim("mae", "rgft", "<", "oprm", source=SCALE),
        Claim("level_accuracy", "rgft", ">", "oprm", source=SCALE),
        Claim("ambiguity_auc", "oprm", ">", 0.6, source="the variance is an uncertainty"),
        Claim("ambiguity_auc", "rgft", ">", 0.6, source="the variance is an uncertainty"),
        Claim("ece", "oprm", "<=", "bt", 0.01, source="a probabilistic reward"),
        Claim(
            "ends", "rgft", "<", "oprm", source="without levels, mass moves to the ends", note=ENDS
        ),
        Claim("same_level_accuracy", "rgft", ">", "hard_region", source=FLOODED, note=FEW),
        Claim("same_level_accuracy", "rgft_all", ">", "hard_region_all", source=FLOODED),
        Claim(
            "accuracy",
            "rgft",
            "~",
            "rgft_all",
            0.02,
            source="RMB: a fifth of labels is enough",
            note="levels are without noise here and comparisons are not: each more of them helps",
        ),
    ],
    reported={"rgft": {"rmb": 0.738}, "oprm": {"rmb": 0.712}},
    curves=("accuracy",),
    inapplicable=inapplicable,
    workloads=workloads,
)
