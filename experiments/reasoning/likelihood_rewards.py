"""Rewards made of the likelihood of a reference answer (arXiv:2602.03979).

No verifier and no sampled answer: the policy pi writes a thought z, the reference answer a* is put
behind it, and the reward is a function of log pi(a*|p,z). As the reward depends on pi too, the
gradient has two terms, both taken here:

    grad E[R] = E[ R * grad log pi(z|p)  +  grad R ]

For R = log pi(a*|p,z) the second term is supervised learning of the answer given the thought.

Miniature: three steps of arithmetic modulo 16 with a scratchpad of up to 12 tokens that ends with
"#". In setting V a* is the number and eos; arms named `l_...` are in setting L, where a* is a
derivation of 30 tokens with so many equally likely forms that the probability of any is about e^-40.
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from rewardjax import credit, losses, rewards
from rewardjax.experiment import Arm, Claim, Experiment, Paper
from rewardjax.losses import Loss
from rewardjax.models.language_model import LanguageModel
from rewardjax.models.transformer import TransformerConfig
from rewardjax.recipes.objectives import language_modelling
from rewardjax.recipes.policy_gradient import PolicyGradient, PolicyGradientConfig, scored
from rewardjax.recipes.preference_data import language_batch
from rewardjax.recipes.supervised import Supervised, SupervisedConfig
from rewardjax.rewards import likelihood
from rewardjax.sampling.language_policy import LanguagePolicy
from rewardjax.statistics import Mean, log_mean_exp, to_groups
from rewardjax.tasks.arithmetic import Arithmetic
from rewardjax.training.loop import LoopConfig, smoke
from rewardjax.training.optimizer import OptimizerConfig
from rewardjax.trajectory import Prompts, Trajectory, append, respond

WORLD = Arithmetic(modulus=16, min_steps=3, max_steps=3)
# The sum over a row's tokens: what the exact gradient has.
PER_ROW = losses.by_constant(1.0)


@dataclasses.dataclass(frozen=True)
class Config:
    """Everything that the arms share."""

    data: str = "arithmetic"
    world: Arithmetic = WORLD
    model: TransformerConfig = TransformerConfig(vocab=WORLD.vocab_size, mlp_width=128)
    sft: SupervisedConfig = SupervisedConfig(
        128,
        optimizer=OptimizerConfig(learning_rate=3e-3),
        loop=LoopConfig(steps=350, steps_per_call=50),
    )
    rl: PolicyGradientConfig = PolicyGradientConfig(
        prompts=32,
        optimizer=OptimizerConfig(learning_rate=3e-4),
        loop=LoopConfig(steps=150, steps_per_call=25, evaluate_every=50),
    )
    group_size: int = 4
    kl: float = 0.001  # in setting V; the paper's main runs in setting L have none
    error_rate: float = 0.1  # of each step of a demonstration
    thought: int = 12  # longest scratchpad in tokens, "#" included
    derivation: int = 30  # tokens of a* in setting L
    evaluation_prompts: int = 512
    sampled_prompts: int = 64  # of these, prompts that get many thoughts
    thoughts: int = 32


# Each maps the log-probabilities of a row's tokens [batch, time], a mask that is on at a*, and the
# number of adjacent rows with one prompt to R [batch], differentiably.
REWARDS = {
    "prob": lambda logprobs, mask, size: likelihood.answer_probability(logprobs, mask),
    "avgprob": lambda logprobs, mask, size: likelihood.mean_probability(logprobs, mask),
    "logprob": lambda logprobs, mask, size: likelihood.answer_logprob(logprobs, mask),
    "avglogprob": lambda logprobs, mask, size: likelihood.mean_logprob(logprobs, mask),
    "jepo": lambda logprobs, mask, size: likelihood.group_logprob(logprobs, mask, group_size=size),
}


def jepo_credit(
    rewards: Float[Array, "batch time"], traj: Trajectory, *, group_size: int
) -> Float[Array, "batch time"]:
    """G (log mean of all - log mean of the others) of a group's pi(a*|p,z), on z's tokens.

    The factor G: the reward belongs to the group, whose every thought has a score-function term,
    while the loss is a mean over rows.
    """
    columns = traj.info["answer_logprobs"], traj.info["answer_mask"]
    groups = to_groups(likelihood.answer_logprob(*columns), group_size)
    own = jnp.eye(group_size, dtype=bool)
    others = jax.nn.logsumexp(jnp.where(own, -jnp.inf, groups[:, None, :]), axis=2)
    others = others - jnp.log(group_size - 1)
    advantages = group_size * (log_mean_exp(groups)[:, None] - others)
    return jnp.where(traj.mask, advantages.reshape(-1, 1), 0.0)


def two_term_loss(score, reward, policy_loss, *, group_size, answer_weight=1.0):
    """`(params, traj, advantages) -> Loss`, whose gradient is minus that of the mean E[R].

    Args:
      score: a policy's `score(params, traj)`.
      reward: one of `REWARDS`.
      policy_loss: the score-function term, on z; a row's tokens must be summed, not averaged.
      group_size: thoughts a prompt.
      answer_weight: of the second term, grad R; 0 leaves pure reinforcement learning of z.
    """

    def loss(params, traj, advantages):
        scores = score(params, traj)
        found = policy_loss(scores, traj, advantages)
        value = Mean.of(-reward(scores.logprobs, traj.info["answer_mask"], group_size))
        return Loss(found.terms | {"answer": value.scale(answer_weight)}, found.metrics)

    return loss


def language_policy(config, *, max_new=None, stop=None):
    """The policy that writes a thought and stops after "#"; the arguments change this."""
    return LanguagePolicy(
        LanguageModel(config.model),
        max_new=config.thought if max_new is None else max_new,
        stop=(config.world.delimiter if stop is None else stop,),
        prompt_columns=config.world.prompt_length,
    )


def ask(config, long):
    """`(key, n) -> Prompts` whose `info["reference"]` is a*, `[n, answer]`."""

    def prompts(key, n):
        prompt_key, form_key = jax.random.split(key)
        asked = config.world.prompts(prompt_key, n)
        if long:
            reference, _ = config.world.reference_derivation(form_key, asked, config.derivation)
        else:
            reference, _ = config.world.reference_answer(asked.info)
        return asked.replace(info=asked.info | {"reference": reference})

    return prompts


def answered(world: Arithmetic, traj: Trajectory) -> Trajectory:
    """Thoughts with a* behind them; one that was cut off gets the "#" that it lacks, off the mask."""
    unended = ~jnp.any(traj.mask & (traj.tokens == world.delimiter), axis=1, keepdims=True)
    traj = append(traj, jnp.full(unended.shape, world.delimiter), unended)
    reference = traj.info["reference"]
    return append(traj, reference, jnp.ones_like(reference, bool))


def thoughtless(prompts: Prompts) -> Trajectory:
    """Trajectories in which the policy has written nothing."""
    nothing = jnp.zeros((prompts.tokens.shape[0], 0), jnp.int32)
    return respond(prompts, nothing, nothing > 0)


def evaluation(config, *, thinks=True):
    """`(params, frozen, key) -> metrics` on the questions that all arms share.

    Log-probabilities are of a*, in nats, a mean over its tokens: `mc1` after one thought, `mc32` of
    the mean probability over 32 (a tighter bound). Greedy decoding of the answer is read off the
    teacher-forced pass: it gives a* exactly where every token of a* is the likeliest.
    """
    world, policy = config.world, language_policy(config)
    model, count = policy.model, config.sampled_prompts

    def answer(params, prompts, key, **sampling):
        if not thinks:
            return answered(world, thoughtless(prompts))
        return answered(
            world, dataclasses.replace(policy, **sampling).rollout(params, prompts, key)
        )

    def evaluate(params, frozen, key):
        prompts = frozen["questions"]
        greedy = answer(params, prompts, key, temperature=0.0)
        logits = model.logits(params, greedy.tokens, greedy.valid.astype(jnp.int32))
        likeliest = jnp.argmax(logits, axis=-1) == greedy.tokens
        found = {"greedy": jnp.mean(jnp.all(likeliest | ~greedy.info["answer_mask"], axis=1))}
        several = jax.tree.map(lambda x: x[:count], prompts)
        several = answer(params, several, key, group_size=config.thoughts if thinks else 1)
        logprobs = policy.score(params, several).logprobs
        values = likelihood.answer_logprob(logprobs, several.info["answer_mask"]).reshape(count, -1)
        length = prompts.info["reference"].shape[1]
        mc1 = jnp.mean(values) / length
        return found | {
            "sampled": jnp.mean(jnp.exp(values)),
            "mc1": mc1,
            "mc32": jnp.mean(log_mean_exp(values)) / length,
            "perplexity": jnp.exp(-mc1),
            "cot_length": jnp.mean(several.lengths.astype(jnp.float32)),
        }

    return evaluate


def prepare(config):
    """For each setting: a policy that knows the format, the evaluation's questions, its results.

    Raises:
      ValueError: the data are not the generated ones.
    """
    if config.data != "arithmetic":
        raise ValueError(f"data: expected 'arithmetic', found {config.data!r}")
    world, model = config.world, language_policy(config).model

    def demonstrations(long, key, n):
        ask_key, write_key = jax.random.split(key)
        prompts = ask(config, long)(ask_key, n)
        tokens, valid = world.demonstrations(write_key, prompts, error_rate=config.error_rate)
        if not long:
            return language_batch(respond(prompts, tokens, valid))
        ends = tokens == world.delimiter
        thought = valid & (jnp.cumsum(ends, axis=1) - ends == 0)
        traj = answered(world, respond(prompts, tokens, thought))
        return language_batch(traj.replace(mask=traj.mask | traj.info["answer_mask"]))

    programs = {
        long: Supervised(
            config.sft,
            init=model.boxed_init,
            loss=language_modelling(model),
            batches=partial(demonstrations, long),
        )
        for long in (False, True)
    }
    evaluate = jax.jit(evaluation(config))

    def run_seed(run):
        shared = {}
        for long, program in programs.items():
            stage = run.stage("sft_long" if long else "sft")
            key = jax.random.fold_in(stage.key, 1)
            questions = ask(config, long)(key, config.evaluation_prompts)
            frozen = {"reference": program.run(stage).params, "questions": questions}
            start = evaluate(frozen["reference"], frozen, key)
            shared[long] = frozen, {name: float(value) for name, value in start.items()}
        return shared

    return run_seed


def results(run, start):
    """The last evaluation of a run, and by how much it is better than the policy at the start."""
    last = {name: float(run.history(f"eval/{name}")[-1]) for name in start}
    return last | {"improvement": last["mc1"] - start["mc1"]}


def show(config, run, params, questions, *, thinks=True, rows=4):
    """Write some questions, thoughts and references for a reader."""
    world, policy = config.world, language_policy(config)
    prompts = jax.tree.map(lambda x: x[:rows], questions)
    traj = policy.rollout(params, prompts, run.key) if thinks else thoughtless(prompts)
    traj = answered(world, traj)
    logprobs = policy.score(params, traj).logprobs
    mask = traj.info["answer_mask"]
    lines = []
    for i in range(rows):
        line = {
            "prompt": world.decode(prompts.tokens[i]),
            "thought": world.decode(traj.tokens[i][traj.mask[i]]),
            "reference": world.decode(prompts.info["reference"][i]),
        }
        found = {name: REWARDS[name](logprobs, mask, 1)[i] for name in ("prob", "logprob")}
        lines.append(line | {name: float(value) for name, value in found.items()})
    run.samples(config.rl.loop.steps, lines)


def train(config, *, reward=None, long=False):
    """One arm: RLOO on a likelihood of a* with both terms, or on sampled answers (no `reward`)."""
    world, group_size = config.world, config.group_size
    policy = dataclasses.replace(language_policy(config), group_size=group_size)
    length = config.thought + world.reference_answer({"answer": jnp.zeros(1, int)})[0].shape[1]
    sampler = dataclasses.replace(policy, max_new=length, stop=(world.eos,))
    regularisers = () if long else (losses.kl_to_reference(config.kl, aggregate=PER_ROW),)
    policy_loss = losses.reinforce_loss(aggregate=PER_ROW, regularisers=regularisers)
    assign = jepo_credit if reward is REWARDS["jepo"] else credit.leave_one_out

    def rollout(params, prompts, key):
        if reward is None:
            return sampler.rollout(params, prompts, key)
        traj = answered(world, policy.rollout(params, prompts, key))
        return traj.with_info(answer_logprobs=policy.score(params, traj).logprobs)

    def judge(traj):
        if reward is None:
            return rewards.outcome(world.verify(traj), traj.mask, name="verified")
        values = reward(traj.info["answer_logprobs"], traj.info["answer_mask"], group_size)
        return rewards.outcome(values, traj.mask, name="likelihood")

    def annotate(frozen, traj):
        if long:
            return traj
        return traj.with_info(reference_logprobs=policy.score(frozen["reference"], traj).logprobs)

    program = PolicyGradient(
        config.rl,
        init=policy.model.boxed_init,
        prompts=ask(config, long),
        rollout=rollout,
        annotate=annotate,
        reward=judge,
        credit=partial(assign, group_size=group_size),
        loss=two_term_loss(policy.score, reward, policy_loss, group_size=group_size)
        if reward
        else scored(policy.score, policy_loss),
        evaluate=evaluation(config),
    )

    def run_seed(run, shared):
        frozen, start = shared[long]
        stage = run.stage("long" if long else "short")
        state = program.run(stage, params=frozen["reference"], frozen=frozen)
        show(config, stage, state.params, frozen["questions"])
        return results(stage, start)

    return run_seed


def imitate(config, *, long=False):
    """The SFT arms: cross-entropy on a* right after the prompt and "#"."""
    model = language_policy(config).model

    def batches(key, n):
        traj = answered(config.world, thoughtless(ask(config, long)(key, n)))
        return language_batch(traj.replace(mask=traj.info["answer_mask"]))

    program = Supervised(
        SupervisedConfig(config.rl.prompts, optimizer=config.rl.optimizer, loop=config.rl.loop),
        init=model.boxed_init,
        loss=language_modelling(model),
        batches=batches,
        evaluate=evaluation(config, thinks=False),
    )

    def run_seed(run, shared):
        frozen, start = shared[long]
        stage = run.stage("long" if long else "short")
        state = program.run(stage, params=frozen["reference"], frozen=frozen)
        show(config, stage, state.params, frozen["questions"], thinks=False)
        return results(stage, start)

    return run_seed


MINI = Config()
LLAMA_3B = TransformerConfig(
    vocab=128_256,
    layers=28,
    width=3072,
    heads=24,
    kv_heads=8,
    head_dim=128,
    mlp_width=8192,
    context=8192,
    rope_base=500_000.0,
    scan=True,
    dtype="bfloat16",
)
# Model, data, group and KL are the paper's (Table 1). Its main text does not give the learning rate,
# the batch, the number of steps and the longest thought: those here are ours.
PAPER = Config(
    data="MATH",
    model=LLAMA_3B,
    rl=PolicyGradientConfig(
        prompts=32,
        optimizer=OptimizerConfig(learning_rate=1e-6),
        loop=LoopConfig(steps=1000, steps_per_call=1, evaluate_every=100),
    ),
    group_size=32,
    thought=1024,
)
RL = ("prob", "avgprob", "logprob", "avglogprob", "jepo")
FAMILY = ("logprob", "avglogprob", "jepo")  # rewards that see the log-probability

EXPERIMENT = Experiment(
    paper=Paper(
        title="Likelihood-Based Reward Designs for General LLM Reasoning", arxiv="2602.03979"
    ),
    prepare=prepare,
    arms={
        "sft": Arm(imitate, "a* right after the prompt, no thought"),
        "base_rl": Arm(train, "sampled answers, verified"),
    }
    | {name: Arm(partial(train, reward=f)) for name, f in REWARDS.items()}
    | {"l_sft": Arm(partial(imitate, long=True), "a* right after the prompt, no thought")}
    | {f"l_{name}": Arm(partial(train, reward=f, long=True)) for name, f in REWARDS.items()},
    scales={
        "mini": MINI,
        "smoke": smoke(MINI, evaluation_prompts=16, sampled_prompts=4, thoughts=4),
        "paper": PAPER,
    },
    claims=[
        *(Claim("greedy", arm, ">=", "base_rl", 0.05, source="Table 1") for arm in RL),
        *(Claim("perplexity", arm, "<", "base_rl", source="Table 1") for arm in FAMILY),
        *(Claim("perplexity", arm, "<", "prob", source="Table 1") for arm in FAMILY),
        Claim("sampled", "base_rl", ">", "logprob", source="Table 1, T = 1"),
        Claim("greedy", "logprob", ">", "sft", source="Table 1"),
        Claim("improvement", "l_prob", "~", 0.0, 0.01, source="Table 2, NuminaProof"),
        Claim("mc1", "l_logprob", ">", "l_prob", 0.01, source="Table 2"),
        *(
            Claim("mc1", f"l_{name}", "~", "l_sft", 0.05, source="Table 2")
            for name in ("logprob", "avglogprob", "avgprob", "jepo")
        ),
        Claim("cot_length", "l_logprob", "<", "l_prob", 1.0, source="Sec. on non-verifiable data"),
    ],
    reported={
        "sft": {"greedy": 0.1443, "sampled": 0.10, "perplexity": 2.63},
        "base_rl": {"greedy": 0.4274, "sampled": 0.4136, "perplexity": 13.87},
        "prob": {"greedy": 0.4419, "sampled": 0.4139, "perplexity": 7.14},
        "avgprob": {"greedy": 0.4395, "sampled": 0.3838, "perplexity": 2.95},
        "logprob": {"greedy": 0.4330, "sampled": 0.3466, "perplexity": 2.21},
        "avglogprob": {"greedy": 0.4366, "sampled": 0.3483, "perplexity": 2.25},
        "l_sft": {"perplexity": 3.04},
        "l_prob": {"perplexity": 3.62},
        "l_avgprob": {"perplexity": 3.05},
        "l_logprob": {"perplexity": 3.04},
        "l_jepo": {"perplexity": 3.04},
    },
    first_arms=("sft", "base_rl", "prob", "logprob", "l_sft", "l_prob", "l_logprob"),
    curves=("eval/greedy", "eval/perplexity", "eval/mc1", "eval/cot_length"),
)
