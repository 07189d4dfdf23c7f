"""Contrast Instructions, ConvexDA and RewardFusion: rewards that heed the instruction (arXiv:2309.16155).

A reward model that learned to tell good from clumsy answers may not ask what they answer. Two similar
instructions q, q' with answers a, a' show it:

    C_res = P(r(q, a) > r(q, a'))        C_ins = P(r(q, a) > r(q', a))

ConvexDA: each training pair's worse response gets n noisy variants, of which those at the corners of the
convex hull of their embeddings (in the plane of the two main components) are learned against the
better one. RewardFusion: with up to five training examples whose embeddings' cosine with (q, a) is above
0.9, r*(q, a) = (r(q, a) + sum_i s_i r(q_i, a_i)) / (1 + sum_i s_i).

Miniature: prompts ask for two themes of six. Nine worse responses of ten are clumsy, which shows without
the prompt; the others name a theme that nobody asked for. q' differs from q in one theme.
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from rewardjax.data.selection import hull_vertices, principal_plane
from rewardjax.evaluation.accuracy import pairwise_accuracy
from rewardjax.evaluation.protocols import consistency
from rewardjax.experiment import Arm, Claim, Experiment, Paper
from rewardjax.models.heads import RewardModel
from rewardjax.models.language_model import LanguageModel
from rewardjax.models.presets import LLAMA2_7B
from rewardjax.recipes.policy_gradient import PolicyGradientConfig
from rewardjax.recipes.preference_lab import TINY, LabConfig, PreferenceLab
from rewardjax.recipes.rollout_workloads import Rollouts
from rewardjax.recipes.supervised import SupervisedConfig
from rewardjax.recipes.workloads import imitation, reward_model_training
from rewardjax.rewards.retrieval import cosines, fused_rewards
from rewardjax.tasks.contrast import noised, similar_requests, spoilt
from rewardjax.tasks.external import require_generated
from rewardjax.tasks.preference_world import PreferenceWorld
from rewardjax.training.loop import LoopConfig, smoke
from rewardjax.training.optimizer import OptimizerConfig
from rewardjax.training.sharding import MeshConfig
from rewardjax.trajectory import respond

WORLD = PreferenceWorld(themes=6, requested=2, full_coverage=6, gaudy_max=0, min_length=8)
COLUMNS = ("tokens", "valid")
SIDES = ("better", "worse")
ITEM = ("score", "other_answer", "other_instruction")  # (q, a), (q, a'), (q', a)


@dataclasses.dataclass(frozen=True)
class Config:
    """Everything that the arms share.

    Attributes:
      data: "world", or what the paper's scale would need.
      lab: world, models; the first policy imitates writers of every quality.
      on_theme: share of good responses' tokens that are on a theme.
      train, test: pairs of a good response and a spoilt one; items of the contrast set are `test` as well.
      share: of a spoilt response's tokens that are.
      clumsy: share of the spoilt responses that are clumsy; others name a wrong theme.
      variants, noise: of a worse response, and tokens of it replaced in each.
      count, threshold: of RewardFusion.
      rl: of the policy; `prompts` counts responses.
      group_size: of them share a prompt.
      kl: weight of the KL penalty.
      evaluation_prompts: on which the policy is measured.
    """

    data: str = "world"
    lab: LabConfig = LabConfig(
        world=WORLD,
        model=dataclasses.replace(TINY, vocab=WORLD.vocab_size),
        reward_model=SupervisedConfig(64, loop=LoopConfig(steps=160, steps_per_call=40)),
    )
    on_theme: float = 0.9
    train: int = 1500
    test: int = 1000
    share: float = 0.3
    clumsy: float = 0.9
    variants: int = 5
    noise: int = 2
    count: int = 5
    threshold: float = 0.9
    rl: PolicyGradientConfig = PolicyGradientConfig(
        prompts=64,
        optimizer=OptimizerConfig(learning_rate=5e-4),
        loop=LoopConfig(steps=60, steps_per_call=20),
    )
    group_size: int = 4
    kl: float = 0.05
    evaluation_prompts: int = 256


class Pairs:
    """Who writes and who spoils: training pairs and the contrast set."""

    def __init__(self, config: Config):
        self.config, self.world = config, config.lab.world
        shares = (config.on_theme, config.on_theme)
        self.authors = dataclasses.replace(self.world, on_theme=shares)

    def answered(self, key, theme):
        """Good responses to these requests."""
        prompts = self.world.asking(theme)
        tokens, valid, _ = self.authors.writers(key, prompts)
        return prompts, tokens, valid

    def paired(self, prompts, valid, better, worse):
        """Two responses of the same length to each prompt as a batch of preferences."""
        rows = [respond(prompts, side, valid) for side in (better, worse)]
        return {name: jnp.stack([getattr(x, name) for x in rows], 1) for name in COLUMNS}

    def training(self, key, n):
        """Good and spoilt responses; as `variants` noisy ones; as `contrast` answers to similar requests."""
        keys, config = jax.random.split(key, 6), self.config
        theme = self.world.prompts(keys[0], n).info["theme"]
        prompts, tokens, valid = self.answered(keys[1], theme)
        worse = spoilt(
            self.world, keys[2], tokens, valid, theme, share=config.share, clumsy=config.clumsy
        )
        noise = partial(noised, self.world, tokens=worse, valid=valid, count=config.noise)
        each = [noise(key) for key in jax.random.split(keys[3], config.variants)]
        variants = [self.paired(prompts, valid, tokens, worse) for worse in each]
        other = similar_requests(self.world, keys[4], theme)
        _, elsewhere, ends = self.answered(keys[5], other)
        sides = respond(prompts, tokens, valid), respond(prompts, elsewhere, ends)
        return {
            "plain": self.paired(prompts, valid, tokens, worse),
            "variants": jax.tree.map(lambda *x: jnp.stack(x, 1), *variants),
            "contrast": {n: jnp.stack([getattr(x, n) for x in sides], 1) for n in COLUMNS},
        }

    def contrast_set(self, key, n):
        """(q, a), (q, a') and (q', a) by name, and where gold prefers the first to both."""
        keys = jax.random.split(key, 4)
        theme = self.world.prompts(keys[0], n).info["theme"]
        other = similar_requests(self.world, keys[1], theme)
        prompts, *own = self.answered(keys[2], theme)
        others, *elsewhere = self.answered(keys[3], other)
        sides = (prompts, own), (prompts, elsewhere), (others, own)
        found = {name: respond(asked, *rows) for name, (asked, rows) in zip(ITEM, sides)}
        gold = {k: self.world.gold(x.tokens, x.mask, x.info) for k, x in found.items()}
        preferred = gold[ITEM[0]] > jnp.maximum(gold[ITEM[1]], gold[ITEM[2]])
        return {k: {x: getattr(row, x) for x in COLUMNS} for k, row in found.items()}, preferred


# Further training pairs besides the plain ones, as flat columns.
def none(config, data, corners):
    """No more."""
    return {name: x[:0] for name, x in data["plain"].items()}


def every_variant(config, data, corners):
    """All noisy variants."""
    return {name: x.reshape(-1, *x.shape[2:]) for name, x in data["variants"].items()}


def convex_hull(config, data, corners):
    """The paper's: those at the corners of the hull."""
    return {name: x[corners] for name, x in data["variants"].items()}


def contrasted(config, data, corners):
    """Answers to similar instructions: what the contrast set asks for."""
    return data["contrast"]


def embedding(model, params, tokens, valid):
    """Mean of a frozen language model's last states over a sequence, `[..., width]`."""
    flat = tokens.reshape(-1, tokens.shape[-1]), valid.reshape(-1, valid.shape[-1])
    states, _ = model.hidden(params, flat[0], flat[1].astype(jnp.int32))
    pooled = jnp.mean(states.astype(jnp.float32), axis=1, where=flat[1][..., None])
    return pooled.reshape(*tokens.shape[:-1], -1)


def prepare(config):
    """A policy, training pairs with their variants and the hull's corners, test pairs, the contrast set."""
    require_generated(config.data)
    lab, pairs = PreferenceLab(config.lab), Pairs(config)
    draw = jax.jit(pairs.training, static_argnums=1)
    contrast = jax.jit(pairs.contrast_set, static_argnums=1)
    embed = jax.jit(partial(embedding, lab.policy.model))

    @jax.jit
    def corners(params, variants):
        worse = (variants[name][:, :, 1] for name in COLUMNS)
        return hull_vertices(principal_plane(embedding(lab.policy.model, params, *worse)))

    def run_seed(run):
        reference = lab.sft(run.stage("sft"))
        data = jax.tree.map(np.asarray, draw(run.stage("train").key, config.train))
        test = draw(run.stage("test").key, config.test)["plain"]
        items, preferred = contrast(run.stage("contrast").key, config.test)
        asked = {name: (x["tokens"], x["valid"]) for name, x in items.items()}
        asked |= {name: (test["tokens"][:, i], test["valid"][:, i]) for i, name in enumerate(SIDES)}
        memory = data["plain"]["tokens"], data["plain"]["valid"]
        states = embed(reference, *memory)
        middle = jnp.mean(states, axis=(0, 1))
        flat = (states - middle).reshape(-1, states.shape[-1])
        return {
            "reference": reference,
            "data": data,
            "corners": np.asarray(corners(reference, data["variants"])),
            "asked": asked,
            "preferred": np.asarray(preferred),
            "memory": tuple(x.reshape(-1, x.shape[-1]) for x in memory),
            "near": {k: cosines(embed(reference, *x) - middle, flat) for k, x in asked.items()},
        }

    return run_seed


def train(config, *, more=none, fused=False):
    """One reward model, alone or fused with the training examples' rewards; and its policy, if alone."""
    lab = PreferenceLab(config.lab)
    score = jax.jit(lab.scorer.score)
    fuse = jax.jit(partial(fused_rewards, count=config.count, threshold=config.threshold))
    rl = lab.grpo(
        config.rl,
        group_size=config.group_size,
        kl=config.kl,
        evaluation_prompts=config.evaluation_prompts,
    )
    evaluate = jax.jit(partial(lab.evaluate, prompts=config.evaluation_prompts))

    def run_seed(run, shared):
        plain, extra = shared["data"]["plain"], more(config, shared["data"], shared["corners"])
        pairs = {name: np.concatenate([plain[name], extra[name]]) for name in COLUMNS}
        model = lab.reward_model(run.stage("reward_model"), shared["reference"], pairs)
        scores = {name: score(model, *x) for name, x in shared["asked"].items()}
        if fused:
            remembered = score(model, *shared["memory"])
            scores = {k: fuse(x, shared["near"][k], remembered) for k, x in scores.items()}
        metrics = measured(scores, shared["preferred"])
        metrics["extra"] = len(extra["tokens"]) / config.train
        if fused:
            return metrics
        frozen = {"reference": shared["reference"], "reward_model": model}
        stage = run.stage("rl")
        params = rl.run(stage, params=shared["reference"], frozen=frozen).params
        stage.samples(config.rl.loop.steps, lab.samples(params, frozen, stage.key))
        after = evaluate(params, frozen, stage.stage("evaluation").key)
        return metrics | {name: float(after[name]) for name in ("gold", "coverage", "kl")}

    return run_seed


def measured(scores, preferred) -> dict[str, float]:
    """Accuracy on plain test pairs; consistency on the contrast items that gold agrees with."""
    kept = {name: np.asarray(scores[name])[preferred] for name in ITEM}
    rows = [dict(zip(kept, row, strict=True)) for row in zip(*kept.values(), strict=True)]
    found = consistency(rows)
    return {
        "accuracy": pairwise_accuracy(*(np.asarray(scores[name]) for name in SIDES)),
        "response": found["response_consistency"],
        "instruction": found["instruction_consistency"],
    }


MINI = Config()
SMOKE = smoke(
    MINI,
    lab=smoke(dataclasses.replace(MINI.lab, model=dataclasses.replace(MINI.lab.model, layers=1))),
    train=64,
    test=32,
    evaluation_prompts=16,
)
FIT = SupervisedConfig(
    64,
    optimizer=OptimizerConfig(learning_rate=2e-5, weight_decay=1e-3),
    loop=LoopConfig(steps=1000),
    mesh=MeshConfig(fsdp=4, tensor=4),
)
PAPER = Config(
    data="StackExchange, WMT, Twitter paraphrases, RealSumm",
    lab=LabConfig(model=LLAMA2_7B, sft=FIT, reward_model=FIT),
    rl=PolicyGradientConfig(
        prompts=128,
        minibatches=4,
        rollout_cuts=2,
        batch_cuts=4,
        optimizer=OptimizerConfig(learning_rate=5e-7),
        loop=LoopConfig(steps=400, steps_per_call=1),
        mesh=MeshConfig(fsdp=4, tensor=4),
    ),
)


def workloads(config):
    """The first policy, the reward model on pairs of 512 tokens, and the policy's training."""
    model, scorer = LanguageModel(config.lab.model), RewardModel(config.lab.model)
    rl = dataclasses.replace(config.rl, prompts=config.rl.prompts // config.group_size)
    return [
        imitation(model, config.lab.sft, 512),
        reward_model_training(scorer, config.lab.reward_model, 512),
        *Rollouts(model, rl, config.group_size, 256, 256, reward_model=True).workloads(),
    ]


BENCHMARK, TRICKLE = "Contrast Instructions", "trickle-down: policies by reward model"
AUGMENTED, FUSED = "ConvexDA", "RewardFusion"
BESIDE = "the tenth that names a wrong theme teaches some of it, more in some seeds than in others"
CLOSE = "0.008 below it with three fifths of the variants"
FAR = "all policies go 5 nats from the first one and over-optimise whatever reward model they have"
EXPERIMENT = Experiment(
    paper=Paper(
        title="The Trickle-down Impact of Reward (In-)consistency on RLHF",
        arxiv="2309.16155",
        code="github.com/shadowkiller33/Contrast-Instruction",
    ),
    prepare=prepare,
    arms={
        "vanilla": Arm(train),
        "naive_aug": Arm(partial(train, more=every_variant), "all variants of worse responses"),
        "convex_da": Arm(partial(train, more=convex_hull), "those at the corners of the hull"),
        "reward_fusion": Arm(partial(train, fused=True), "the vanilla model, read with examples"),
        "both": Arm(partial(train, more=convex_hull, fused=True)),
        "contrast_train": Arm(
            partial(train, more=contrasted), "an upper bound: answers to similar instructions"
        ),
    },
    scales={"mini": MINI, "smoke": SMOKE, "paper": PAPER},
    claims=[
        Claim("accuracy", "vanilla", ">", 0.85, source="accuracy on the usual test pairs"),
        Claim("response", "vanilla", "<", 0.65, source=BENCHMARK),
        Claim("instruction", "vanilla", "<", 0.65, 0.0, BENCHMARK, BESIDE),
        Claim("response", "convex_da", ">", "vanilla", source=AUGMENTED),
        Claim("response", "convex_da", ">=", "naive_aug", 0.02, AUGMENTED, CLOSE),
        Claim("extra", "convex_da", "<", "naive_aug", source="fewer samples"),
        Claim("response", "reward_fusion", ">", "vanilla", source=FUSED),
        Claim("response", "both", ">", "vanilla", source="ConvexDA and RewardFusion"),
        Claim("response", "contrast_train", ">", "vanilla", source="the answer can be known"),
        Claim("coverage", "convex_da", ">", "vanilla", 0.0, TRICKLE, FAR),
        Claim("coverage", "contrast_train", ">", "vanilla", 0.0, TRICKLE, FAR),
        Claim("gold", "convex_da", ">", "vanilla", 0.0, TRICKLE, FAR),
        Claim("gold", "contrast_train", ">", "vanilla", 0.0, TRICKLE, FAR),
    ],
    first_arms=("vanilla", "convex_da", "contrast_train"),
    workloads=workloads,
)
