"""Three papers' credits under two rewards on TEMPO's task: one call, one table.

`partial_marks` pays for each decision that is right, where `verified` wants all of them.
"""

import jax.numpy as jnp

from experiments.reasoning.tempo import EXPERIMENT as TEMPO
from experiments.reasoning.tempo import verified
from rewardjax import credit, rewards
from rewardjax.statistics import masked_mean


def partial_marks(world, traj):
    """The share of the decisions that are right, at the response's end."""
    right, wrong = world.judge(traj)
    share = masked_mean(right.astype(jnp.float32), right | wrong, axis=-1)
    return rewards.outcome(share, traj.mask, name="marks")


EXPERIMENT = TEMPO.with_parts(
    "grpo",
    credit={
        "grpo": credit.group_relative,
        "rloo": credit.leave_one_out,
        "tempo": credit.prefix_tree,
    },
    reward={"verified": verified, "marks": partial_marks},
)
