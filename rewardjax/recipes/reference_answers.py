"""A reference answer behind a policy's thought: putting it there, and how likely it is.

The answers are `info["reference"]` `[batch, answer]` of prompts and trajectories.
"""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from rewardjax import losses
from rewardjax.rewards import likelihood
from rewardjax.sampling.language_policy import LanguagePolicy
from rewardjax.sampling.transcripts import transcripts
from rewardjax.statistics import log_mean_exp
from rewardjax.trajectory import Prompts, Trajectory, append, respond

# Of a row's log-probabilities and a mask that is on at the reference, differentiably.
LikelihoodReward = Callable[
    [Float[Array, "batch time"], Bool[Array, "batch time"]], Float[Array, "batch"]
]


def thoughtless(prompts: Prompts) -> Trajectory:
    """Trajectories in which the policy has written nothing."""
    nothing = jnp.zeros((prompts.tokens.shape[0], 0), jnp.int32)
    return respond(prompts, nothing, nothing > 0)


def answered(traj: Trajectory, delimiter: int) -> Trajectory:
    """Thoughts with the reference behind them, on `info["answer_mask"]` and off `mask`.

    A thought that does not hold `delimiter` (it was cut off) gets it before the reference, on
    neither mask.
    """
    unended = ~jnp.any(traj.mask & (traj.tokens == delimiter), axis=1, keepdims=True)
    traj = append(traj, jnp.full(unended.shape, delimiter), unended)
    reference = traj.info["reference"]
    return append(traj, reference, jnp.ones_like(reference, bool))


def likelihood_loss(
    reward: LikelihoodReward,
    *,
    coefficient: float = 1.0,
    regularisers: Sequence[losses.Regulariser] = (),
) -> losses.PolicyLoss:
    """A loss on answered thoughts whose gradient is minus that of the mean E[R], both terms of it.

    The score-function term is on the thought's tokens, with the advantages; it is exact where these
    estimate R less a baseline without bias, and the thoughts are the policy's own.

    Args:
      reward: R.
      coefficient: of the second term, grad R; 0 leaves pure reinforcement learning of the thought.
      regularisers: further terms.
    """

    def value(scores: losses.Scores, traj: Trajectory) -> Float[Array, "batch"]:
        return reward(scores.logprobs, traj.info["answer_mask"])

    terms = (losses.reward_gradient(value, coefficient), *regularisers)
    return losses.reinforce_loss(aggregate=losses.by_constant(1.0), regularisers=terms)


def reference_transcripts(
    policy: LanguagePolicy,
    params,
    traj: Trajectory,
    delimiter: int,
    decode: Callable[[np.ndarray], str],
) -> list[dict]:
    """Thoughts as rows that a person can read, with the reference and its likelihood after them."""
    full = answered(traj, delimiter)
    logprobs = policy.score(params, full).logprobs
    logprob = likelihood.answer_logprob(logprobs, full.info["answer_mask"])
    scored = traj.with_info(prob=jnp.exp(logprob), logprob=logprob)
    rows = transcripts(scored, decode, columns=("prob", "logprob"), count=len(logprob))
    references = np.asarray(traj.info["reference"])
    return [row | {"reference": decode(answer)} for row, answer in zip(rows, references)]


def reference_evaluation(
    policy: LanguagePolicy,
    delimiter: int,
    *,
    sampled_prompts: int,
    thoughts: int,
    thinks: bool = True,
):
    """`(params, frozen, key) -> metrics` on the prompts `frozen["questions"]`.

    Args:
      policy: writes one thought a prompt, up to `delimiter`.
      delimiter: the token between thought and answer.
      sampled_prompts: how many of the questions get `thoughts` thoughts each; all get one greedy one.
      thoughts: N of the Monte-Carlo estimates below.
      thinks: without it the answer follows right behind prompt and delimiter.

    Returns:
      `greedy`, the share of prompts whose answer, decoded greedily after a greedy thought, is the
      reference. For sampled thoughts z: `sampled`, the mean pi(a*|z); `mc1`, the mean of
      log pi(a*|z), and `mcN` of log mean pi(a*|z) over a prompt's thoughts (a tighter bound), in nats
      a token of the answer; `perplexity`, exp(-mc1); `cot_length`, tokens of a thought.
    """
    model = policy.model

    def answer(params, prompts, key, **sampling):
        if not thinks:
            return answered(thoughtless(prompts), delimiter)
        sampler = dataclasses.replace(policy, **sampling)
        return answered(sampler.rollout(params, prompts, key), delimiter)

    def evaluate(params, frozen, key):
        prompts = frozen["questions"]
        # Greedy decoding is read off one pass: it gives a* exactly where all of a* is the likeliest.
        traj = answer(params, prompts, key, temperature=0.0)
        logits = model.logits(params, traj.tokens, traj.valid.astype(jnp.int32))
        likeliest = jnp.argmax(logits, axis=-1) == traj.tokens
        greedy = jnp.all(likeliest | ~traj.info["answer_mask"], axis=1)
        several = jax.tree.map(lambda x: x[:sampled_prompts], prompts)
        traj = answer(params, several, key, group_size=thoughts)
        values = likelihood.answer_logprob(
            policy.score(params, traj).logprobs, traj.info["answer_mask"]
        ).reshape(sampled_prompts, -1)
        length = prompts.info["reference"].shape[1]
        mc1 = jnp.mean(values) / length
        return {
            "greedy": jnp.mean(greedy),
            "sampled": jnp.mean(jnp.exp(values)),
            "mc1": mc1,
            "mcN": jnp.mean(log_mean_exp(values)) / length,
            "perplexity": jnp.exp(-mc1),
            "cot_length": jnp.mean(traj.lengths.astype(jnp.float32)),
        }

    return evaluate
