"""What a policy's scoring pass gives to a loss."""

from flax import struct
from jaxtyping import Array, Float


@struct.dataclass
class Scores:
    """A policy's view of a trajectory, aligned with it; 0 where the trajectory is not `valid`.

    Attributes:
      logprobs: log-probability of the trajectory's actions under the policy being trained (nats).
      entropy: entropy of the distribution that each action was drawn from (nats).
    """

    logprobs: Float[Array, "batch time"]
    entropy: Float[Array, "batch time"]
