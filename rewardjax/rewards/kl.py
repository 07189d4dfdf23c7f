"""The pull towards a reference policy, as a reward."""

from jaxtyping import Array, Float

from rewardjax.rewards.reward import Reward, dense
from rewardjax.trajectory import Trajectory


def kl_penalty(traj: Trajectory, *, coefficient: float | Float[Array, ""]) -> Reward:
    """`-coefficient (log p - log reference)` at each acted token (InstructGPT, arXiv:2203.02155).

    Args:
      traj: its `info["reference_logprobs"]`, `[batch, time]`, scores the same actions (nats).
      coefficient: reward per nat, usually positive.

    Raises:
      KeyError: `traj.info` lacks `reference_logprobs`.
    """
    if "reference_logprobs" not in traj.info:
        raise KeyError(
            "kl_penalty: traj.info lacks 'reference_logprobs' [batch, time]; "
            f"found {sorted(traj.info)}"
        )
    difference = traj.logprobs - traj.info["reference_logprobs"]
    return dense(-coefficient * difference, traj.mask, "kl_penalty")
