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
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

from rewardjax import credit, losses, rewards
from rewardjax.experiment import Arm, Claim, Experiment, Paper
from rewardjax.models.language_model import LanguageModel
from rewardjax.models.presets import LLAMA3_3B
from rewardjax.models.transformer import TransformerConfig
from rewardjax.recipes.objectives import language_modelling
from rewardjax.recipes.policy_gradient import PolicyGradient, PolicyGradientConfig, scored
from rewardjax.recipes.preference_data import language_batch
from rewardjax.recipes.reference_answers import (
    answered,
    likelihood_loss,
    reference_evaluation,
    reference_transcripts,
    thoughtless,
)
from rewardjax.recipes.rollout_workloads import reinforcement
from rewardjax.recipes.supervised import Supervised, SupervisedConfig
from rewardjax.rewards import likelihood
from rewardjax.sampling.language_policy import LanguagePolicy
from rewardjax.tasks.arithmetic import Arithmetic
from rewardjax.tasks.external import require_generated
from rewardjax.training.loop import LoopConfig, smoke
from rewardjax.training.optimizer import OptimizerConfig
from rewardjax.training.sharding import MeshConfig
from rewardjax.trajectory import respond

WORLD = Arithmetic(modulus=16, min_steps=3, max_steps=3)
# Base RL and the KL penalty sum a row's tokens, as the exact gradient does.
PER_ROW = losses.by_constant(1.0)


@dataclasses.dataclass(frozen=True)
class Config:
    """Everything that the arms share."""

    data: str = "arithmetic"
    world: Arithmetic = WORLD
    model: TransformerConfig = TransformerConfig(vocab=WORLD.vocab_size, mlp_width=128)
    sft: SupervisedConfig = SupervisedConfig(
        64,
        optimizer=OptimizerConfig(learning_rate=3e-3),
        loop=LoopConfig(steps=500, steps_per_call=50),
    )
    rl: PolicyGradientConfig = PolicyGradientConfig(
        prompts=16,
        optimizer=OptimizerConfig(learning_rate=1e-3),
        loop=LoopConfig(steps=200, steps_per_call=25, evaluate_every=50),
    )
    group_size: int = 4
    kl: float = 0.001  # in setting V; the paper's main runs in setting L have none
    error_rate: float = 0.1  # of each step of a demonstration
    thought: int = 12  # longest scratchpad in tokens, "#" included
    derivation: int = 30  # tokens of a* in setting L
    evaluation_prompts: int = 256
    sampled_prompts: int = 32  # of these, prompts that get many thoughts
    thoughts: int = 32


# `reward` maps the log-probabilities of a row's tokens [batch, time] and a mask that is on at a* to
# what the row earns [batch], differentiably. JEPO's R is one number for each group of adjacent rows,
# and a row's credit what it adds to that.
REWARDS: dict[str, dict[str, Callable]] = {
    "prob": {"reward": likelihood.answer_probability},
    "avgprob": {"reward": likelihood.mean_probability},
    "logprob": {"reward": likelihood.answer_logprob},
    "avglogprob": {"reward": likelihood.mean_logprob},
    "jepo": {
        "reward": likelihood.answer_logprob,
        "group_reward": likelihood.group_logprob,
        "assign": credit.leave_one_out_log_mean,
    },
}


def language_policy(config, **settings):
    """The policy that writes a thought and stops after "#"; the settings change this."""
    world = config.world
    policy = LanguagePolicy(
        LanguageModel(config.model),
        max_new=config.thought,
        stop=(world.delimiter,),
        prompt_columns=world.prompt_length,
    )
    return dataclasses.replace(policy, **settings)


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


def evaluation(config, *, thinks=True):
    """The metrics of a policy on the questions that all arms share."""
    return reference_evaluation(
        language_policy(config),
        config.world.delimiter,
        sampled_prompts=config.sampled_prompts,
        thoughts=config.thoughts if thinks else 1,
        thinks=thinks,
    )


def prepare(config):
    """For each setting: a policy that knows the format, the evaluation's questions, its results.

    Raises:
      ValueError: the data are not the generated ones.
    """
    require_generated(config.data, "arithmetic")
    world, model = config.world, language_policy(config).model

    def demonstrations(long, key, n):
        ask_key, write_key = jax.random.split(key)
        prompts = ask(config, long)(ask_key, n)
        tokens, valid = world.demonstrations(write_key, prompts, error_rate=config.error_rate)
        if not long:
            return language_batch(respond(prompts, tokens, valid))
        ends = tokens == world.delimiter
        thought = valid & (jnp.cumsum(ends, axis=1) - ends == 0)
        traj = answered(respond(prompts, tokens, thought), world.delimiter)
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


def runner(config, program, *, long, thinks=True):
    """An arm's `run_seed`: its program from the shared policy, on the shared questions.

    Its results are the last evaluation, and by how much it is better than the shared policy.
    """
    world, policy = config.world, language_policy(config)

    def run_seed(run, shared):
        frozen, start = shared[long]
        stage = run.stage("long" if long else "short")
        params = program.run(stage, params=frozen["reference"], frozen=frozen).params
        few = jax.tree.map(lambda x: x[:4], frozen["questions"])
        traj = policy.rollout(params, few, stage.key) if thinks else thoughtless(few)
        rows = reference_transcripts(policy, params, traj, world.delimiter, world.decode)
        stage.samples(config.rl.loop.steps, rows)
        last = {name: float(stage.history(f"eval/{name}")[-1]) for name in start}
        return last | {"improvement": last["mc1"] - start["mc1"]}

    return run_seed


def policy_gradient(config, *, rollout, judge, loss, long=False, assign=credit.leave_one_out):
    """What the RL arms share; `loss` takes regularisers and gives a policy loss."""
    policy = language_policy(config)
    kl = () if long else (losses.kl_to_reference(config.kl, aggregate=PER_ROW),)

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
        credit=partial(assign, group_size=config.group_size),
        loss=scored(policy.score, loss(regularisers=kl)),
        evaluate=evaluation(config),
    )
    return runner(config, program, long=long)


def base_rl(config):
    """RLOO on sampled answers that are verified."""
    world = config.world
    length = config.thought + 2  # the number and eos
    policy = language_policy(
        config, max_new=length, stop=(world.eos,), group_size=config.group_size
    )

    def judge(traj):
        return rewards.outcome(world.verify(traj), traj.mask, name="verified")

    loss = partial(losses.reinforce_loss, aggregate=PER_ROW)
    return policy_gradient(config, rollout=policy.rollout, judge=judge, loss=loss)


def train(config, *, reward, group_reward=None, assign=credit.leave_one_out, long=False):
    """Both terms of the gradient of a likelihood of a*."""
    size = config.group_size
    policy = language_policy(config, group_size=size)

    def rollout(params, prompts, key):
        traj = answered(policy.rollout(params, prompts, key), config.world.delimiter)
        return traj.with_info(answer_logprobs=policy.score(params, traj).logprobs)

    def judge(traj):
        values = reward(traj.info["answer_logprobs"], traj.info["answer_mask"])
        return rewards.outcome(values, traj.mask, name="likelihood")

    objective = partial(group_reward, group_size=size) if group_reward else reward
    loss = partial(likelihood_loss, objective)
    return policy_gradient(
        config, rollout=rollout, judge=judge, loss=loss, long=long, assign=assign
    )


def imitate(config, *, long=False):
    """The SFT arms: cross-entropy on a* right after the prompt and "#"."""
    model = language_policy(config).model

    def batches(key, n):
        traj = answered(thoughtless(ask(config, long)(key, n)), config.world.delimiter)
        return language_batch(traj.replace(mask=traj.info["answer_mask"]))

    program = Supervised(
        SupervisedConfig(config.rl.prompts, optimizer=config.rl.optimizer, loop=config.rl.loop),
        init=model.boxed_init,
        loss=language_modelling(model),
        batches=batches,
        evaluate=evaluation(config, thinks=False),
    )
    return runner(config, program, long=long, thinks=False)


MINI = Config()
# Model, data, group and KL are the paper's (Table 1). Its main text does not give the learning rate,
# the batch, the number of steps and the longest thought: those here are ours.
PAPER = Config(
    data="MATH",
    model=LLAMA3_3B,
    rl=PolicyGradientConfig(
        prompts=32,
        optimizer=OptimizerConfig(learning_rate=1e-6),
        micro_batches=32,
        rollout_cuts=8,
        batch_cuts=32,
        loop=LoopConfig(steps=1000, steps_per_call=1, evaluate_every=100),
        mesh=MeshConfig(fsdp=4, tensor=4),
    ),
    group_size=32,
    thought=1024,
)
RL = ("prob", "avgprob", "logprob", "avglogprob", "jepo")
FAMILY = ("logprob", "avglogprob", "jepo")  # rewards that see the log-probability
COLLAPSE = "Sec. on non-verifiable data"
REPEATED = "in the miniature a* repeats the results that a thought holds"
SMOKE = smoke(
    MINI,
    model=dataclasses.replace(MINI.model, layers=1),
    evaluation_prompts=16,
    sampled_prompts=4,
    thoughts=4,
)

EXPERIMENT = Experiment(
    paper=Paper(
        title="Likelihood-Based Reward Designs for General LLM Reasoning", arxiv="2602.03979"
    ),
    prepare=prepare,
    arms={
        "sft": Arm(imitate, "a* right after the prompt, no thought"),
        "base_rl": Arm(base_rl, "sampled answers, verified"),
    }
    | {name: Arm(partial(train, **settings)) for name, settings in REWARDS.items()}
    | {"l_sft": Arm(partial(imitate, long=True), "a* right after the prompt, no thought")}
    | {f"l_{name}": Arm(partial(train, long=True, **x)) for name, x in REWARDS.items()},
    scales={
        "mini": MINI,
        "smoke": SMOKE,
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
            Claim("mc1", f"l_{name}", "~", "l_sft", 0.05, source="Table 2", note=REPEATED)
            for name in ("logprob", "avglogprob", "jepo")
        ),
        Claim("mc1", "l_avgprob", "~", "l_sft", 0.05, source="Table 2"),
        Claim("cot_length", "l_logprob", "<", "l_prob", 1.0, source=COLLAPSE, note=REPEATED),
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
    workloads=lambda config: reinforcement(config, prompt=1024, response=config.thought + 512),
)
