"""ArmoRM: interpretable preferences by multi-objective rewards and a mixture of experts (arXiv:2406.12845).

A Bradley-Terry score does not say why, and likes length. ArmoRM predicts what people rate, one ridge
regression for each objective on a frozen backbone's features h, and learns how much each counts for a
prompt:

    r_k = w_k h(x, y)        r'_k = r_k - lambda_k r_verbosity        R = sum_k g_k(x) r'_k
    g(x) = softmax(MLP(h(x)) / temperature) * scale,    trained by -log sigmoid(R_chosen - R_rejected)

`lambda_k` is the smallest with which objective k no longer rises with verbosity. The authors' script
trains the gate on r and scores with r' (arm `late_debias`); the others that are debiased train on r'.

Miniature: four kinds of prompts ask for a correct, a safe, a polite or a varied response. Six objectives
are rated, each on 40% of the items; all ratings and all choices gain with length, which is worth nothing.
"""

import dataclasses
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from rewardjax import losses, rewards
from rewardjax.data.sources import ArraySource
from rewardjax.experiment import Arm, Claim, Experiment, Paper
from rewardjax.losses import Loss
from rewardjax.models.language_model import LanguageModel
from rewardjax.models.linear_probe import validated_ridge
from rewardjax.models.presets import LLAMA3_8B
from rewardjax.models.routed_scorer import Gate, Router
from rewardjax.recipes.feature_workloads import feature_extraction, feature_training
from rewardjax.recipes.frozen_backbone import BackboneConfig, FrozenBackbone
from rewardjax.recipes.rated_objectives import (
    OBJECTIVES,
    VERBOSE,
    RatingsConfig,
    accuracy,
    chosen_first,
    chosen_length,
    qualities,
    rated,
    responses,
)
from rewardjax.recipes.supervised import Supervised, SupervisedConfig
from rewardjax.statistics import Mean
from rewardjax.tasks.external import require_generated
from rewardjax.tasks.preference_world import PreferenceWorld
from rewardjax.training.loop import LoopConfig, smoke
from rewardjax.training.optimizer import OptimizerConfig


@dataclasses.dataclass(frozen=True)
class Config:
    """Everything that the arms share.

    Attributes:
      items: pairs of rated responses; a fifth of them chooses the probes' penalties.
      reference: pairs of responses on which the ratings' correlation with verbosity is measured.
      pairs, test: comparisons that train the gate, and that measure.
      prompts, samples: of best-of-n.
      threshold: of the correlation with verbosity.
      widths: of the gate, and of the Bradley-Terry head of its size.
      temperature, scale: of the gate; the scale is where its coefficients' sum starts. From the paper's 1
        it does not get in time to what these choices ask for, and one objective then takes all.
    """

    data: str = "world"
    backbone: BackboneConfig = BackboneConfig(
        PreferenceWorld(gaudy_correlation=0.0, sentiment_rate=0.3)
    )
    ratings: RatingsConfig = RatingsConfig()
    items: int = 2000
    reference: int = 500
    pairs: int = 3000
    test: int = 2000
    prompts: int = 256
    samples: int = 32
    threshold: float = 0.03
    penalties: tuple[float, ...] = tuple(10.0**power for power in range(-4, 5))
    widths: tuple[int, ...] = (64, 64, 64)
    temperature: float = 10.0
    scale: float = 10.0
    fit: SupervisedConfig = SupervisedConfig(
        256,
        optimizer=OptimizerConfig(learning_rate=1e-2, schedule="cosine"),
        loop=LoopConfig(steps=500, steps_per_call=50),
    )


def prepare(config):
    """A frozen backbone, probes for the objectives, what to take off, and responses as features."""
    require_generated(config.data)
    backbone, ratings = FrozenBackbone(config.backbone, qualities), config.ratings
    draw = jax.jit(partial(responses, ratings, backbone), static_argnums=(2, 3))
    choose, probe = jax.jit(partial(chosen_first, ratings)), jax.jit(partial(probes, config))

    def run_seed(run):
        params = backbone.train(run.stage("backbone"))

        def drawn(name, n, each=2):
            return draw(params, run.stage(name).key, n, each)

        items, reference = (drawn(name, getattr(config, name)) for name in ("items", "reference"))
        found = probe(items, reference, run.stage("ratings").key)
        columns = (np.asarray(found[name]) for name in ("ridge", "taken"))
        rows = zip(OBJECTIVES, *columns, strict=True)
        run.samples(0, [{"objective": k, "ridge": p, "taken": t} for k, p, t in rows])
        return {
            "probes": found,
            "train": choose(drawn("pairs", config.pairs), run.stage("choices").key),
            "test": drawn("test", config.test),
            "samples": drawn("samples", config.prompts, config.samples),
        }

    return run_seed


def probes(config, items, reference, key):
    """Stage 1: each objective's ridge regression, and how much of verbosity is taken off it."""
    features, seen, other = (
        x.reshape(-1, x.shape[-1])
        for x in (items["response"], items["quality"], reference["response"])
    )
    held_out, penalties = jnp.arange(len(seen)) % 5 == 0, jnp.array(config.penalties)
    ratings, known = rated(config.ratings, seen, key)
    weights, ridge = validated_ridge(features, ratings, known, held_out, penalties)
    taken = rewards.verbosity_penalties(other @ weights.T, VERBOSE, threshold=config.threshold)
    return {"weights": weights, "ridge": ridge, "taken": taken}


# A scorer: `init(key) -> params`, and `score(params, batch) -> [batch, responses]`, where a batch has
# the features `response` and `prompt` and the predicted `rating` of each response.
def gated(config, widths):
    """Ratings weighed by the prompt; without widths, the same weights for all prompts."""
    model = gate_of(config, widths)

    def score(params, batch):
        weights = model.coefficients(params, batch["prompt"])
        return jnp.sum(weights[:, None] * batch["rating"], axis=-1)

    return model.boxed_init, score


def gate_of(config, widths):
    """The gate on the backbone's features."""
    width = config.backbone.model.width
    return Gate(width, len(OBJECTIVES), widths, config.temperature, config.scale)


def head(config, widths):
    """Bradley-Terry on the response's feature, linear without widths."""
    module = Router(1, widths or ())

    def init(key):
        return module.init(key, jnp.zeros((1, config.backbone.model.width)))["params"]

    def score(params, batch):
        found: Any = module.apply({"params": params}, batch["response"])
        return found[..., 0]

    return init, score


def ranking(score):
    """`(params, batch, frozen) -> Loss`: Bradley-Terry on pairs, the preferred first."""

    def objective(params, batch, frozen=None):
        scores = score(params, batch)
        lead = scores[:, 0] - scores[:, 1]
        metrics = {"accuracy": Mean.of(lead > 0)}
        return Loss({"preference": Mean.of(losses.bradley_terry(lead))}, metrics)

    return objective


def train(config, *, scorer=gated, deep=False, fitted=True, debias_training=False, debias=False):
    """One arm: a scorer trained on comparisons; ratings are debiased, or not, in training and after."""
    init, score = scorer(config, config.widths if deep else None)
    program = Supervised(config.fit, init=init, loss=ranking(score))
    start = jax.jit(lambda key: nn.meta.unbox(init(key)))
    scores = jax.jit(score)

    @jax.jit
    def predicted(probes, batch, debiased):
        matrix = rewards.debiasing(debiased * probes["taken"], VERBOSE)
        rating = batch["response"] @ probes["weights"].T @ matrix
        return {name: batch[name] for name in ("response", "prompt")} | {"rating": rating}

    def run_seed(run, shared):
        if fitted:
            data = predicted(shared["probes"], shared["train"], debias_training)
            source = ArraySource(data, config.fit.batch_size, run.seed)
            params = program.run(run.stage("scorer"), source=source).params
        else:
            params = start(run.key)
        metrics: dict[str, float] = {}
        for name, measure in {"test": accuracy, "samples": chosen_length}.items():
            batch = predicted(shared["probes"], shared[name], debias)
            metrics |= measure(shared[name], np.asarray(scores(params, batch)))
        if scorer is gated and deep:
            metrics |= explained(config, run, params, shared["test"])
        return metrics

    return run_seed


def explained(config, run, params, pairs):
    """How often the largest coefficient is that of the objective that the prompt asks for."""
    gate = gate_of(config, config.widths)
    weights, own = np.asarray(gate.coefficients(params, pairs["prompt"])), np.asarray(pairs["own"])
    means = {OBJECTIVES[k]: weights[own == k].mean(axis=0) for k in np.unique(own)}
    run.samples(0, [{"asked": k} | dict(zip(OBJECTIVES, w)) for k, w in means.items()])
    return {"own_objective": np.mean(weights.argmax(axis=1) == own)}


MINI = Config()
SMOKE = smoke(
    MINI, items=256, reference=256, pairs=256, test=256, prompts=256, samples=2, widths=(8,)
)
PAPER = Config(
    data="RLHFlow/ArmoRM-Multi-Objective-Data-v0.1",
    backbone=dataclasses.replace(MINI.backbone, model=LLAMA3_8B),
    widths=(1024, 1024, 1024),
    scale=1.0,
    fit=SupervisedConfig(
        1024,
        optimizer=OptimizerConfig(learning_rate=1e-3, schedule="cosine"),
        loop=LoopConfig(steps=2000),
    ),
)


def workloads(config):
    """Features of 64 sequences of 4096 tokens from the frozen backbone, and the gate on pairs."""
    model, width = LanguageModel(config.backbone.model), config.backbone.model.width
    init, score = gated(config, config.widths)
    shapes = {"prompt": (width,), "rating": (2, len(OBJECTIVES))}
    return [
        feature_extraction(model, 64, 4096),
        feature_training(init, config.fit, ranking(score), shapes, "gate"),
    ]


def arm(note="", **settings):
    """An arm: what scores, and whether ratings are debiased."""
    return Arm(partial(train, **settings), note)


BENCH, DEBIASED = "RewardBench", "verbosity debiasing"

EXPERIMENT = Experiment(
    paper=Paper(
        title="Interpretable Preferences via Multi-Objective Reward Modeling and Mixture-of-Experts",
        arxiv="2406.12845",
        code="github.com/RLHFlow/RLHF-Reward-Modeling",
    ),
    prepare=prepare,
    arms={
        "bt": arm("a linear head on the backbone", scorer=head),
        "bt_mlp": arm("a head of the gate's size", scorer=head, deep=True),
        "uniform": arm("the mean of the ratings", fitted=False),
        "fixed": arm("the same coefficients for all prompts"),
        "gated": arm(deep=True),
        "gated_debias": arm(deep=True, debias_training=True, debias=True),
        "late_debias": arm(
            "as the authors' script: debiased after training", deep=True, debias=True
        ),
    },
    scales={"mini": MINI, "smoke": SMOKE, "paper": PAPER},
    claims=[
        Claim("accuracy", "gated_debias", ">", "bt", source=BENCH),
        Claim("accuracy", "gated", ">", "fixed", source="ablation: fixed coefficients"),
        Claim("accuracy", "fixed", ">", "uniform", source="ablation: fixed coefficients"),
        Claim("accuracy", "gated_debias", ">=", "gated", margin=0.02, source=DEBIASED),
        Claim("own_objective", "gated_debias", ">", 0.9, source="interpretation by coefficients"),
        Claim("length_correlation", "gated_debias", "<", 0.05, source=DEBIASED),
        Claim("length_correlation", "gated_debias", "<", "gated", source=DEBIASED),
        Claim("chosen_longer", "bt", ">", 0.0, margin=0.5, source="length bias of Bradley-Terry"),
        Claim("chosen_longer", "gated_debias", "<", "bt", source=DEBIASED),
    ],
    reported={"gated_debias": {"rewardbench": 0.890}, "bt": {"rewardbench": 0.836}},
    first_arms=("bt", "fixed", "gated", "gated_debias"),
    workloads=workloads,
)
