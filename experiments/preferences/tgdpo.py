"""TGDPO: token-level reward guidance for direct preference optimisation (arXiv:2506.14574).

DPO pulls every token of a response with one strength. TGDPO asks a policy that was already trained on the
preferences what each token was worth, and weights the tokens' log-ratios by it:

    loss = -log sigmoid(beta sum_t f_w(r_t) l_t(chosen) - beta sum_t f_l(r_t) l_t(rejected))
    l_t = log pi(y_t) / pi_ref(y_t)       r_t = beta log pi_guide(y_t) / pi_ref(y_t), without gradient
    f_w(r) = 1 + alpha r                  f_l(r) = 1 - alpha r

so that good tokens of rejected responses are pushed down less, and bad ones of chosen responses up less;
alpha = 0 is DPO. Miniature: gold utility is a sum over tokens (a new token of the theme, a repetition, an
unwanted gaudy one), so that both responses of a pair have good and bad tokens and each one's is known.
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray

from rewardjax import losses
from rewardjax.data.sources import ArraySource
from rewardjax.evaluation.curves import at_kl, overoptimisation
from rewardjax.experiment import Arm, Claim, Experiment, Paper
from rewardjax.models.language_model import LanguageModel
from rewardjax.models.presets import LLAMA3_8B
from rewardjax.recipes.objectives import direct_preference
from rewardjax.recipes.preference_lab import LabConfig, PreferenceLab
from rewardjax.recipes.supervised import Supervised, SupervisedConfig
from rewardjax.recipes.token_guidance import (
    Tokens,
    coefficients,
    shuffle_rewards,
    token_logprobs,
    true_scores,
)
from rewardjax.recipes.workloads import imitation, preference_training
from rewardjax.sampling.transcripts import transcripts
from rewardjax.statistics import masked_mean, spearman
from rewardjax.tasks.external import require_generated
from rewardjax.tasks.preference_world import PreferenceWorld
from rewardjax.training.loop import LoopConfig, smoke
from rewardjax.training.optimizer import OptimizerConfig
from rewardjax.training.sharding import MeshConfig

WORLD = PreferenceWorld(
    gaudy_correlation=0.0, gaudy_effect=-0.15, gaudy_max=4, repetition_penalty=2.0
)


@dataclasses.dataclass(frozen=True)
class Config:
    """Everything that the arms share."""

    data: str = "world"
    lab: LabConfig = LabConfig(world=WORLD, comparisons=1024, label_noise=0.0)
    policy: SupervisedConfig = SupervisedConfig(
        32,
        optimizer=OptimizerConfig(learning_rate=3e-4, warmup=0.1),
        loop=LoopConfig(steps=300, steps_per_call=10, evaluate_every=10),
    )
    guide: SupervisedConfig = SupervisedConfig(
        32,
        optimizer=OptimizerConfig(learning_rate=3e-4),
        loop=LoopConfig(steps=100, steps_per_call=20),
    )
    beta: float = 0.5
    simpo_beta: float = 2.0
    simpo_margin: float = 1.0
    evaluation_prompts: int = 512
    kl_budget: float = 2.0  # nats a response, at which the arms are compared
    fitted: float = 0.4  # loss at which an arm counts as having fitted its pairs


# An arm's token rewards, of the pairs with what the guide (`guided`) and gold (`true`) say of each token.
def guided(pairs, key: PRNGKeyArray) -> Tokens:
    """The paper's: the log-ratio of the policy that DPO made."""
    return pairs["guided"]


def oracle(pairs, key: PRNGKeyArray) -> Tokens:
    """What each token added to gold utility, in the units of the annotators' Bradley-Terry model."""
    return pairs["true"]


def shuffled(pairs, key: PRNGKeyArray) -> Tokens:
    """The guide's rewards of other tokens of the same response."""
    return shuffle_rewards(pairs["guided"], pairs, key)


def trainer(config, lab, budget, evaluate=None):
    """Training on weighted log-ratios; `frozen` has the `base` of the ratios, `beta` and `margin`."""

    def loss(params, batch, frozen):
        def pair_loss(ratios, batch):
            difference = frozen["beta"] * (ratios[:, 0] - ratios[:, 1])
            return losses.bradley_terry(difference, margin=frozen["margin"])

        return direct_preference(lab.policy.model, pair_loss)(params, batch, frozen["base"])

    return Supervised(budget, init=lab.policy.model.boxed_init, loss=loss, evaluate=evaluate)


def dpo_terms(config, reference):
    """What `trainer` reads for DPO, and TGDPO."""
    return {"base": reference, "beta": jnp.float32(config.beta), "margin": jnp.float32(0.0)}


def prepare(config):
    """The SFT policy, compared pairs of its responses, and what the guide and gold say of each token.

    Raises:
      ValueError: the data are not the generated ones.
    """
    require_generated(config.data)
    lab = PreferenceLab(config.lab)
    model = lab.policy.model
    guide_training = trainer(config, lab, config.guide)

    @jax.jit
    def annotated(reference, guide, pairs):
        before, after = (token_logprobs(model, params, pairs) for params in (reference, guide))
        return {
            "guided": config.beta * jnp.where(pairs["mask"], after - before, 0.0),
            "true": true_scores(config.lab.world, pairs) / config.lab.temperature,
            "reference_logprobs": before,
        }

    def run_seed(run):
        reference = lab.sft(run.stage("sft"))
        pairs = lab.pairs(run.stage("comparisons"), reference)
        pairs = {name: pairs[name] for name in ("tokens", "valid", "mask", "theme")}
        same = pairs | {"token_weight": np.ones(pairs["mask"].shape, np.float32)}
        source = ArraySource(same, config.guide.batch_size, run.seed)
        frozen = dpo_terms(config, reference)
        stage = run.stage("guide")
        guide = guide_training.run(stage, params=reference, frozen=frozen, source=source).params
        return reference, pairs | annotated(reference, guide, pairs)

    return run_seed


def evaluator(config, lab):
    """Gold, KL to the SFT policy, and where good and bad tokens of the pairs were moved."""
    policy = lab.policy

    def evaluate(params, frozen, key):
        prompt_key, sample_key = jax.random.split(key)
        prompts = lab.world.prompts(prompt_key, config.evaluation_prompts)
        traj = policy.rollout(params, prompts, sample_key)
        before = policy.score(frozen["reference"], traj).logprobs
        pairs = frozen["pairs"]
        moved = token_logprobs(policy.model, params, pairs) - pairs["reference_logprobs"]
        good, bad = pairs["mask"] & (pairs["true"] > 0), pairs["mask"] & (pairs["true"] < 0)
        return {
            "gold": jnp.mean(lab.gold(traj)),
            "kl": jnp.mean(losses.log_ratio(traj.logprobs, before, traj.mask)),
            "bad_in_chosen": masked_mean(moved[:, 0], bad[:, 0]),
            "good_in_rejected": masked_mean(moved[:, 1], good[:, 1]),
        }

    return evaluate


def train(config, *, token_rewards=guided, alpha=0.5):
    """One arm: TGDPO with these token rewards."""

    def weights(pairs, key):
        return coefficients(token_rewards(pairs, key), alpha)

    return _train(config, weights, dpo_terms)


def simpo(config):
    """SimPO: mean log-probabilities, which are log-ratios to a model that finds all tokens alike."""

    def weights(pairs, key):
        count = jnp.sum(pairs["mask"], axis=-1, keepdims=True)
        return jnp.broadcast_to(1.0 / count, pairs["mask"].shape)

    def terms(config, reference):
        uniform = jax.tree.map(jnp.zeros_like, reference)
        beta, margin = jnp.float32(config.simpo_beta), jnp.float32(config.simpo_margin)
        return {"base": uniform, "beta": beta, "margin": margin}

    return _train(config, weights, terms)


def _train(config, weights, terms):
    lab = PreferenceLab(config.lab)
    evaluate = evaluator(config, lab)
    program = trainer(config, lab, config.policy, evaluate)
    written = jax.jit(
        lambda params, key: lab.policy.rollout(params, lab.world.prompts(key, 8), key)
    )

    def run_seed(run, shared):
        reference, pairs = shared
        stage = run.stage("policy")
        weight = weights(pairs, run.stage("weights").key)
        columns = {name: pairs[name] for name in ("tokens", "valid", "mask")}
        batches = jax.tree.map(np.asarray, columns | {"token_weight": weight})
        source = ArraySource(batches, config.policy.batch_size, run.seed)
        measured = jax.tree.map(lambda x: x[: config.evaluation_prompts], pairs)
        frozen = terms(config, reference) | {"reference": reference, "pairs": measured}
        state = program.run(stage, params=reference, frozen=frozen, source=source)
        traj = written(state.params, run.key)
        rows = traj.with_info(gold=lab.gold(traj))
        run.samples(
            config.policy.loop.steps, transcripts(rows, lab.world.decode, columns=("gold",))
        )
        return summary(config, stage) | told(pairs, weight)

    return run_seed


def summary(config, stage):
    """The last evaluation, the best gold before it, what was measured at one KL, and how fast it fitted."""
    names = ("gold", "kl", "bad_in_chosen", "good_in_rejected")
    curves = {name: stage.history(f"eval/{name}") for name in names}
    window = min(10, config.policy.loop.steps)
    loss = np.convolve(stage.history("loss"), np.ones(window) / window, "valid")
    fitted = np.flatnonzero(loss <= config.fitted)
    over = overoptimisation(curves["gold"], curves["kl"])
    return (
        {name: float(values[-1]) for name, values in curves.items()}
        | {f"{n}_at_kl": at_kl(curves["kl"], curves[n], config.kl_budget) for n in names}
        | {"peak_gold": over["peak_gold"], "gold_drop": over["gold_drop"], "loss": float(loss[-1])}
        | {"steps_to_fit": float(window + (fitted[0] if fitted.size else loss.size))}
    )


def told(pairs, weight):
    """Rank correlation of the coefficients with the true scores of the chosen responses' tokens."""
    acted = np.asarray(pairs["mask"][:, 0])
    coefficient, true = (jnp.asarray(x)[:, 0][acted] for x in (weight, pairs["true"]))
    return {"correlation": float(spearman(coefficient, true))}


MINI = Config()
SMOKE = smoke(MINI, lab=smoke(MINI.lab, comparisons=32), evaluation_prompts=16)
TUNED = SupervisedConfig(
    128,
    micro_batches=8,
    optimizer=OptimizerConfig(learning_rate=7e-7, schedule="cosine", warmup=0.1),
    loop=LoopConfig(steps=468, steps_per_call=1, evaluate_every=117),
    mesh=MeshConfig(fsdp=16),
)
PAPER = Config(
    data="princeton-nlp/llama3-ultrafeedback",
    lab=LabConfig(model=LLAMA3_8B, sft=TUNED),
    policy=TUNED,
    guide=TUNED,
    beta=0.1,
    simpo_beta=2.5,
    simpo_margin=1.4,
)


def workloads(config):
    """The first policy's training and a preference step, with 2048 tokens a prompt and its response.

    The guide is trained by the same step; weights of the tokens are one more column of the batch.
    """
    model = LanguageModel(config.lab.model)
    pairs = preference_training(model, config.policy, 2048, name="tgdpo", token_weights=True)
    return [imitation(model, config.lab.sft, 2048), pairs]


EARLY = "2 nats are reached after some 25 of 300 updates; gold is no better there with true scores either"
MISLED = (
    "the guide learned from the same pairs and its mistakes lead too: TGDPO goes twice as far as DPO;"
    " its best is above DPO's, and with true token scores also its end"
)
SETTLES = "0.03 is what the best of 30 noisy evaluations is above the last anyway; beta 0.5 keeps DPO near"
UNBOUND = (
    "DPO settles where the noise of its labels lets it; weights that differ between two responses let TGDPO"
    " fit all pairs by moving tokens that both have, and it goes on"
)
MAIN = "Tables 1 and 2"
EQUAL = "the same, at equal KL"
TOKENS = "where the weights of tokens act, at equal KL"
GUIDED = "guidance by token rewards"
CONVERGED = "trained to convergence of the loss"
FASTER = "larger alpha converges faster"
EXPERIMENT = Experiment(
    paper=Paper(
        title="TGDPO: Harnessing Token-Level Reward Guidance for Enhancing Direct Preference Optimization",
        arxiv="2506.14574",
        code="github.com/dvlab-research/TGDPO",
    ),
    prepare=prepare,
    arms={
        "dpo": Arm(partial(train, alpha=0.0), "alpha 0"),
        "simpo": Arm(simpo),
        "tgdpo": Arm(train, "alpha 0.5"),
        "tgdpo_shuffled": Arm(partial(train, token_rewards=shuffled), "rewards of other tokens"),
        "tgdpo_oracle": Arm(partial(train, token_rewards=oracle), "true token scores"),
        **{f"tgdpo_a{a}": Arm(partial(train, alpha=a)) for a in (0.25, 1.0, 2.0)},
    },
    scales={"mini": MINI, "smoke": SMOKE, "paper": PAPER},
    claims=[
        Claim("bad_in_chosen_at_kl", "tgdpo", "<", "dpo", source=TOKENS, note=EARLY),
        Claim("good_in_rejected_at_kl", "tgdpo", ">", "dpo", source=TOKENS, note=EARLY),
        Claim("good_in_rejected_at_kl", "tgdpo_oracle", ">", "dpo", source=TOKENS),
        Claim("good_in_rejected", "tgdpo_oracle", ">", "tgdpo", source=GUIDED),
        Claim("correlation", "tgdpo", ">", "tgdpo_shuffled", source=GUIDED),
        Claim("gold", "tgdpo", ">", "dpo", source=MAIN, note=MISLED),
        Claim("gold", "tgdpo", ">", "simpo", source=MAIN),
        Claim("gold_at_kl", "tgdpo", ">", "dpo", source=EQUAL, note=EARLY),
        Claim("peak_gold", "tgdpo", ">", "dpo", source="the best of each run"),
        Claim("gold_at_kl", "tgdpo_oracle", ">=", "tgdpo", 0.02, source=GUIDED),
        *(Claim("gold", "tgdpo_oracle", ">", x, source=GUIDED) for x in ("tgdpo", "dpo")),
        Claim("gold_at_kl", "tgdpo", ">", "tgdpo_shuffled", source=GUIDED, note=EARLY),
        Claim("gold", "tgdpo", ">", "tgdpo_shuffled", source=GUIDED, note=MISLED),
        Claim("gold_at_kl", "tgdpo_shuffled", "~", "dpo", 0.03, source=GUIDED),
        Claim("gold_drop", "simpo", ">", 0.0, 0.03, source=CONVERGED),
        Claim("gold_drop", "dpo", ">", 0.0, 0.03, source=CONVERGED, note=SETTLES),
        Claim("gold_drop", "tgdpo", "<", "simpo", source=CONVERGED, note=UNBOUND),
        Claim("gold_drop", "tgdpo", "<", "dpo", source=CONVERGED, note=UNBOUND),
        *(
            Claim("steps_to_fit", more, "<", less, source=FASTER)
            for less, more in (("dpo", "tgdpo"), ("tgdpo", "tgdpo_a1.0"))
        ),
        *(
            Claim("gold", arm, "~", "tgdpo", 0.03, source="robust to alpha")
            for arm in ("tgdpo_a1.0", "tgdpo_a2.0")
        ),
    ],
    first_arms=("dpo", "simpo", "tgdpo"),
    curves=("gold", "kl", "bad_in_chosen", "good_in_rejected"),
    workloads=workloads,
)
