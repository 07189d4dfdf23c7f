"""TDPO: token-level direct preference optimisation (arXiv:2404.11999).

DPO sees a response only through the log-ratio of the tokens that were written, so the policy may
drift as far as it likes on rejected responses. TDPO adds to DPO's margin the sequential forward KL
along each response, over the whole vocabulary, D = sum_t KL(reference || policy):

    DPO     (u_w - u_l)                                 u = log policy(y|x) - log reference(y|x)
    TDPO1   (u_w - u_l) - (D_l - D_w)                   w the chosen response, l the rejected one
    TDPO2   (u_w - u_l) - alpha (D_l - sg[D_w])         sg stops the gradient

and the loss is -log sigmoid(beta * margin). Miniature: gold utility is the share of positive tokens
less that of negative ones (as in the paper's controlled sentiment task); of four samples of the SFT
policy the best and the worst are a pair.
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from rewardjax import losses
from rewardjax.data.sources import ArraySource
from rewardjax.evaluation.curves import at_kl
from rewardjax.experiment import Arm, Claim, Experiment, Paper
from rewardjax.models.language_model import LanguageModel, entropy_of
from rewardjax.models.transformer import TransformerConfig
from rewardjax.recipes.objectives import direct_preference, language_modelling
from rewardjax.recipes.preference_data import best_and_worst, demonstrations
from rewardjax.recipes.supervised import Supervised, SupervisedConfig
from rewardjax.recipes.workloads import imitation, preference_training
from rewardjax.sampling.language_policy import LanguagePolicy
from rewardjax.sampling.transcripts import transcripts
from rewardjax.statistics import masked_mean
from rewardjax.tasks.external import require_generated
from rewardjax.tasks.preference_world import ATTRIBUTES, PreferenceWorld
from rewardjax.training.loop import LoopConfig
from rewardjax.training.optimizer import OptimizerConfig

Sides = Float[Array, "batch 2"]  # chosen, rejected
MEASURED = ("gold", "kl", "entropy", "length", "accuracy", "d_chosen", "d_rejected", "d_gap")
WORLD = PreferenceWorld(markers=True, neutral=3, positive=2, negative=2, sentiment_rate=0.3)


@dataclasses.dataclass(frozen=True)
class Config:
    """Everything that the arms share."""

    data: str = "preference_world"
    world: PreferenceWorld = WORLD
    model: TransformerConfig = TransformerConfig(vocab=WORLD.vocab_size, mlp_width=128)
    sft: SupervisedConfig = SupervisedConfig(128, loop=LoopConfig(steps=200, steps_per_call=50))
    policy: SupervisedConfig = SupervisedConfig(
        32,
        optimizer=OptimizerConfig("rmsprop", 4e-5, b2=0.99, warmup=0.1, clip=10.0),
        loop=LoopConfig(steps=240, steps_per_call=20, evaluate_every=20),
    )
    pairs: int = 2048  # prompts of the training pairs
    held_out: int = 256  # prompts of the pairs on which D is measured
    samples: int = 4  # of the SFT policy, a prompt
    evaluation_prompts: int = 512
    kl_budget: float = 1.5  # nats a response, at which the arms are compared


def dpo(ratios: Sides, divergence: Sides) -> Float[Array, "batch"]:
    """DPO's margin: the divergence plays no part."""
    return ratios[:, 0] - ratios[:, 1]


def tdpo1(ratios: Sides, divergence: Sides) -> Float[Array, "batch"]:
    """The margin of the token-level Bradley-Terry model, with gradients on both sides."""
    return ratios[:, 0] - ratios[:, 1] - (divergence[:, 1] - divergence[:, 0])


def tdpo2(
    ratios: Sides, divergence: Sides, *, alpha: float = 0.5, stop_chosen: bool = True
) -> Float[Array, "batch"]:
    """TDPO1's with weight `alpha` on the divergences and, with `stop_chosen`, no gradient on D_w."""
    chosen, rejected = divergence[:, 0], divergence[:, 1]
    chosen = jax.lax.stop_gradient(chosen) if stop_chosen else chosen
    return ratios[:, 0] - ratios[:, 1] - alpha * (rejected - chosen)


def language_policy(config):
    """The policy, also the reference."""
    world = config.world
    return LanguagePolicy(
        LanguageModel(config.model),
        max_new=world.response_length,
        stop=(world.eos,),
        prompt_columns=world.prompt_length,
    )


def sentiment(world, traj) -> Float[Array, "batch"]:
    """Gold utility: -1 to 1."""
    weights = jnp.asarray([float(name == "sentiment") for name in ATTRIBUTES])
    return world.gold(traj.tokens, traj.mask, traj.info, weights)


def prepare(config):
    """SFT on writers; pairs for training and for measuring, from the SFT policy's samples.

    Raises:
      ValueError: the data are not the generated ones.
    """
    require_generated(config.data, "preference_world")
    world, policy = config.world, language_policy(config)
    sampler = dataclasses.replace(policy, group_size=config.samples)
    sft = Supervised(
        config.sft,
        init=policy.model.boxed_init,
        loss=language_modelling(policy.model),
        batches=demonstrations(world.prompts, world.writers),
    )

    @partial(jax.jit, static_argnums=2)
    def sampled(params, key, n):
        prompt_key, sample_key = jax.random.split(key)
        traj = sampler.rollout(params, world.prompts(prompt_key, n), sample_key)
        return best_and_worst(traj, sentiment(world, traj), config.samples)

    def told_apart(pairs):
        kept = np.asarray(pairs["utility"][:, 0] > pairs["utility"][:, 1])
        return jax.tree.map(lambda x: np.asarray(x)[kept], pairs)

    def run_seed(run):
        reference = sft.run(run.stage("sft")).params
        train_key, held_out_key = jax.random.split(run.stage("pairs").key)
        pairs = told_apart(sampled(reference, train_key, config.pairs))
        held_out = told_apart(sampled(reference, held_out_key, config.held_out))
        return pairs, {"reference": reference, "held_out": held_out}

    return run_seed


def train(config, *, margin, beta=0.1):
    """One arm: the SFT policy trained on pairs with one of the margins."""
    world, policy = config.world, language_policy(config)

    def margin_loss(ratios, batch):
        return losses.bradley_terry(beta * margin(ratios, batch["divergence"]))

    objective = direct_preference(policy.model, margin_loss, divergence=losses.full_kl)

    def sample(params, key):
        prompt_key, sample_key = jax.random.split(key)
        prompts = world.prompts(prompt_key, config.evaluation_prompts)
        return policy.rollout(params, prompts, sample_key)

    def evaluate(params, frozen, key):
        traj = sample(params, key)
        found, reference = (
            policy.model.logits(p, traj.tokens, traj.valid.astype(jnp.int32))
            for p in (params, frozen["reference"])
        )
        drift = jnp.where(traj.mask, losses.full_kl(found, reference), 0.0)
        pairs = objective(params, frozen["held_out"], frozen["reference"]).metrics
        chosen, rejected = (pairs[f"{side}_divergence"].value for side in ("chosen", "rejected"))
        return {
            "gold": jnp.mean(sentiment(world, traj)),
            "kl": jnp.mean(jnp.sum(drift, axis=1)),
            "entropy": masked_mean(entropy_of(found), traj.mask),
            "length": jnp.mean(traj.lengths),
            "accuracy": pairs["accuracy"].value,
            "d_chosen": chosen,
            "d_rejected": rejected,
            "d_gap": rejected - chosen,
        }

    program = Supervised(
        config.policy,
        init=policy.model.boxed_init,
        loss=lambda params, batch, frozen: objective(params, batch, frozen["reference"]),
        evaluate=evaluate,
    )
    written = jax.jit(sample)

    def run_seed(run, shared):
        pairs, frozen = shared
        stage = run.stage("policy")
        source = ArraySource(pairs, config.policy.batch_size, run.seed)
        state = program.run(stage, params=frozen["reference"], frozen=frozen, source=source)
        curves = {name: stage.history(f"eval/{name}") for name in MEASURED}
        traj = written(state.params, run.key)
        rows = transcripts(
            traj.with_info(gold=sentiment(world, traj)), world.decode, columns=("gold",)
        )
        run.samples(config.policy.loop.steps, rows)
        matched = {
            f"{name}_at_kl": at_kl(curves["kl"], curves[name], config.kl_budget)
            for name in ("gold", "entropy", "d_gap", "kl")
        }
        return {name: float(values[-1]) for name, values in curves.items()} | matched

    return run_seed


MINI = Config()
SMOKE = dataclasses.replace(
    MINI,
    model=dataclasses.replace(MINI.model, layers=1),
    sft=dataclasses.replace(MINI.sft, batch_size=16, loop=LoopConfig(steps=4)),
    policy=dataclasses.replace(
        MINI.policy, batch_size=16, loop=LoopConfig(steps=4, evaluate_every=2)
    ),
    pairs=64,
    held_out=16,
    evaluation_prompts=16,
)
# GPT-2 Large on IMDb: one epoch of 25,000 prompts, 150 steps of warm-up.
GPT2_LARGE = TransformerConfig(
    50257, 36, width=1280, heads=20, kv_heads=20, head_dim=64, mlp_width=5120, context=1024
)
GPT2_LARGE = dataclasses.replace(GPT2_LARGE, scan=True, remat="full", dtype="bfloat16")
ONE_EPOCH = SupervisedConfig(
    64,
    optimizer=OptimizerConfig("rmsprop", 5e-6, b2=0.99, warmup=150 / 390, clip=10.0),
    loop=LoopConfig(steps=390, evaluate_every=30),
)
PAPER = Config(
    "imdb", model=GPT2_LARGE, sft=ONE_EPOCH, policy=ONE_EPOCH, pairs=25_000, kl_budget=10.0
)


def workloads(config):
    """Training of the first policy, and on the token-level margin, with 512 tokens a response."""
    model = LanguageModel(config.model)
    pairs = preference_training(model, config.policy, 512, losses.full_kl, "tdpo")
    return [imitation(model, config.sft, 512), pairs]


AT_ONE_KL = "TDPO2's gap is small because it stays near: on the way there, at one KL, it is larger"
UNSTOPPED = "with gradients through D_w, TDPO1 lowers its loss by moving away on chosen responses"

EXPERIMENT = Experiment(
    paper=Paper(
        title="Token-level Direct Preference Optimization",
        arxiv="2404.11999",
        code="github.com/Vance0124/Token-level-Direct-Preference-Optimization",
    ),
    prepare=prepare,
    arms={
        "dpo": Arm(partial(train, margin=dpo)),
        "tdpo1": Arm(partial(train, margin=tdpo1)),
        "tdpo2": Arm(partial(train, margin=tdpo2), "alpha 0.5"),
        "tdpo2_no_sg": Arm(partial(train, margin=partial(tdpo2, stop_chosen=False))),
    }
    | {f"tdpo2_a{a}": Arm(partial(train, margin=partial(tdpo2, alpha=a))) for a in (0.3, 0.7, 1.0)}
    | {
        f"{name}_b{beta}": Arm(partial(train, margin=margin, beta=beta), "for the frontier")
        for name, margin in {"dpo": dpo, "tdpo2": tdpo2}.items()
        for beta in (0.05, 0.3)
    },
    scales={"mini": MINI, "smoke": SMOKE, "paper": PAPER},
    claims=[
        Claim("d_gap", "tdpo2", "<", "dpo", source="IMDb: sequential KL over training"),
        Claim("d_gap", "tdpo1", "<", "dpo", source="IMDb: sequential KL over training"),
        Claim("d_gap_at_kl", "tdpo2", "<", "dpo", source="the same, at equal KL", note=AT_ONE_KL),
        Claim("entropy", "tdpo2", ">", "dpo", source="Anthropic-HH: diversity"),
        Claim("entropy", "tdpo1", ">", "dpo", source="Anthropic-HH: diversity", note=UNSTOPPED),
        Claim("entropy_at_kl", "tdpo2", ">", "dpo", source="the same, at equal KL"),
        Claim("accuracy", "tdpo2", ">", "dpo", source="Anthropic-HH: accuracy"),
        Claim("gold_at_kl", "tdpo2", ">", "dpo", source="IMDb: reward-KL frontier"),
        Claim("gold_at_kl", "tdpo2", ">=", "dpo", 0.02, source="IMDb: reward-KL frontier"),
        Claim("gold_at_kl", "tdpo2", ">=", "tdpo1", 0.02, source="IMDb: reward-KL frontier"),
        Claim("gold_at_kl", "tdpo2_b0.05", ">=", "dpo_b0.05", 0.02, source="the same, beta 0.05"),
        Claim("gold_at_kl", "tdpo2_b0.3", ">=", "dpo_b0.3", 0.02, source="the same, beta 0.3"),
        Claim("d_chosen", "tdpo2_no_sg", ">", "tdpo2", source="why TDPO2 stops the gradient"),
    ],
    first_arms=("dpo", "tdpo1", "tdpo2"),
    curves=("gold", "kl", "entropy", "d_gap"),
    workloads=workloads,
)
