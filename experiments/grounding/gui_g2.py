"""GUI-G2: elements of a screen as Gaussians, and dense rewards from them (arXiv:2507.15846).

A policy answers an instruction with the box of the element that is meant. Whether the box hits is a
reward that is silent on near misses. GUI-G2 takes a box for a Gaussian around its centre with
deviations of half its width and height, and adds

    R_point    = the gold Gaussian at the predicted centre, 1 at its own
    R_coverage = the Bhattacharyya coefficient of the predicted and the gold Gaussian

Miniature: screens of 32 x 32 pixels with elements from 2 x 2 to 14 x 10, and a policy that has learned
from boxes of the right size in roughly the right place. Answers that are no box, or an inverted one,
earn 0 in every arm.
"""

import dataclasses
from functools import partial

import jax.numpy as jnp
import numpy as np

from rewardjax.experiment import Arm, Claim, Experiment, Paper
from rewardjax.models.presets import QWEN25_7B
from rewardjax.models.transformer import TransformerConfig
from rewardjax.models.vision import VisionConfig
from rewardjax.recipes.locating import Locator
from rewardjax.recipes.policy_gradient import PolicyGradientConfig
from rewardjax.recipes.rollout_workloads import Rollouts
from rewardjax.recipes.supervised import SupervisedConfig
from rewardjax.rewards import grounding
from rewardjax.tasks.external import require_generated
from rewardjax.tasks.screens import SIDE, SIZES, Screens
from rewardjax.training.loop import LoopConfig, smoke
from rewardjax.training.optimizer import OptimizerConfig
from rewardjax.training.sharding import MeshConfig

SMALL = TransformerConfig(
    vocab=Screens.vocab_size, width=64, heads=4, kv_heads=4, mlp_width=128, context=80, qk_norm=True
)
SEEING = VisionConfig(
    patch=2,
    mean=0.1,
    deviation=0.3,
    blocks=dataclasses.replace(SMALL, layers=0, mlp_width=64, causal=False),
    pooled=24,
)


@dataclasses.dataclass(frozen=True)
class Config:
    """Everything that the arms share."""

    data: str = "screens"
    model: TransformerConfig = SMALL
    vision: VisionConfig = SEEING
    # The start is made in stages, from bare screens to full ones; `crowds` says how full.
    sft: SupervisedConfig = SupervisedConfig(
        40, optimizer=OptimizerConfig(learning_rate=3e-3), loop=LoopConfig(200, steps_per_call=50)
    )
    crowds: tuple[float, ...] = (0.0, 0.2, 1.0)
    noise: int = 5  # pixels by which demonstrated boxes are moved, at most
    rl: PolicyGradientConfig = PolicyGradientConfig(
        prompts=8,
        optimizer=OptimizerConfig(learning_rate=5e-4),
        loop=LoopConfig(steps=200, steps_per_call=20, evaluate_every=40),
    )
    group_size: int = 8
    kl: float = 0.04
    evaluation_prompts: int = 1024


def locator(config):
    """The policy that answers with a box, on its screens."""
    return Locator.create(config.model, config.vision, config.evaluation_prompts)


def prepare(config):
    """A policy that knows roughly where things are; ValueError where the data are not generated."""
    require_generated(config.data, "screens")
    located = locator(config)
    stages = {
        f"crowd_{crowd}": located.supervised(config.sft, crowd=crowd, noise=config.noise)
        for crowd in config.crowds
    }

    def run_seed(run):
        params = None
        for name, program in stages.items():
            params = program.run(run.stage(name), params=params).params
        return params

    return run_seed


def train(config, *, judge):
    """One arm: GRPO on `judge(predicted boxes, gold boxes)`, from the seed's start."""
    located = locator(config)
    program = located.grpo(config.rl, config.group_size, config.kl, judge)

    def run_seed(run, shared):
        stage = run.stage("rl")
        params = program.run(stage, params=shared, frozen=shared).params
        stage.picture("boxes", located.picture(params, stage.key))
        names = ("hit", "distance", "iou", *(f"hit_{name}" for name in SIZES))
        found = {name: stage.history(f"eval/{name}")[-1] for name in names}
        found["silent"] = np.mean(stage.history("groups/silent"))
        found["closer"] = -np.mean(np.diff(stage.history("eval/distance")))
        return {name: float(value) for name, value in found.items()}

    return run_seed


def both(first, second):
    """The sum of two rewards."""
    return lambda boxes, gold: first(boxes, gold) + second(boxes, gold)


def overlaps(boxes, gold):
    """1 where the intersection is more than half of the union."""
    return (grounding.iou(boxes, gold) > 0.5).astype(jnp.float32)


def inside(boxes, gold):
    """The point reward where the centre hits, else 0: dense, but no help to a near miss."""
    return grounding.gaussian_point(boxes, gold) * grounding.point_in_box(boxes, gold)


DIAGONAL = SIDE * 2**0.5
SPARSE = ("point01", "iou05", "point01_iou05", "inside_gauss")  # silent on near misses
JUDGES = {
    "point01": grounding.point_in_box,
    "iou05": overlaps,
    "point01_iou05": both(grounding.point_in_box, overlaps),
    "distance": partial(grounding.distance_reward, reach=DIAGONAL),
    "inside_gauss": inside,
    "gauss_pt": grounding.gaussian_point,
    "gauss_cov": grounding.gaussian_coverage,
    "gui_g2": both(grounding.gaussian_point, grounding.gaussian_coverage),
}

MINI = Config()
# Qwen2.5-VL-7B: the decoder, and its encoder as far as this one goes (its 14-pixel patches, merged in
# fours, with global attention) on screens of 1008 x 1008. 100 thousand instructions once.
LARGE = dataclasses.replace(QWEN25_7B, layers=32, width=1280, heads=16, kv_heads=16, head_dim=80)
PAPER = Config(
    data="Widget Captioning, UI RefExp, ShowUI-web, OmniAct",
    model=QWEN25_7B,
    vision=VisionConfig(
        height=1008,
        width=1008,
        patch=28,
        blocks=dataclasses.replace(LARGE, mlp_width=3420, qkv_bias=True, causal=False),
    ),
    noise=0,
    rl=PolicyGradientConfig(
        prompts=8,
        micro_batches=8,
        batch_cuts=8,
        optimizer=OptimizerConfig(learning_rate=1e-6),
        loop=LoopConfig(steps=12_500, steps_per_call=1, evaluate_every=500),
        mesh=MeshConfig(fsdp=4, tensor=4),
    ),
)
SMOKE = smoke(
    MINI,
    model=dataclasses.replace(SMALL, layers=1, width=16, mlp_width=16),
    vision=dataclasses.replace(SEEING, patch=8, pooled=2),
    crowds=(0.0, 1.0),
    evaluation_prompts=16,
)
TABLE = "Table of reward variants, ScreenSpot-v2"
CENTRE = "a hit asks for the centre alone; in miniature coverage buys overlap (see iou) instead"
EXTENT = "not the paper's: coverage asks for the extent of the element too"
TREND = "Figure: mean distance of the centres on ten hard items"
REPORTED = {"point01": 0.874, "iou05": 0.858, "point01_iou05": 0.865, "inside_gauss": 0.884}
REPORTED |= {"gauss_pt": 0.921, "gauss_cov": 0.902, "gui_g2": 0.933}

EXPERIMENT = Experiment(
    paper=Paper(
        title="GUI-G2: Gaussian Reward Modeling for GUI Grounding",
        arxiv="2507.15846",
        code="github.com/ZJU-REAL/GUI-G2",
    ),
    prepare=prepare,
    arms={name: Arm(partial(train, judge=judge)) for name, judge in JUDGES.items()},
    scales={"mini": MINI, "smoke": SMOKE, "paper": PAPER},
    claims=[
        *(Claim("hit", "gui_g2", ">", x, source=TABLE) for x in SPARSE),
        Claim("hit", "gui_g2", ">=", "gauss_pt", 0.02, "Figure: without coverage", CENTRE),
        Claim("hit", "gui_g2", ">=", "gauss_cov", 0.02, "Figure: without point"),
        Claim("hit", "gui_g2", ">=", "distance", 0.02, "Table: distance-based rewards"),
        Claim("closer", "gui_g2", ">", "point01", source=TREND),
        Claim("silent", "gui_g2", "<", "point01", source="Sec. 1: sparse signals"),
        Claim("iou", "gui_g2", ">", "point01", source=EXTENT),
        Claim("iou", "gui_g2", ">", "gauss_pt", source=EXTENT),
    ],
    reported={name: {"hit": share} for name, share in REPORTED.items()},
    first_arms=("point01", "gui_g2"),
    first_seeds=1,
    curves=("eval/hit", "eval/distance", "groups/silent"),
    workloads=lambda c: Rollouts.of(locator(c).policy, c.rl, c.group_size).workloads(),
)
