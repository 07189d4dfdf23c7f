"""Pretraining of flow models with the supervised recipe."""

from collections.abc import Callable

import jax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from rewardjax.losses import Loss
from rewardjax.losses.flow import flow_matching_loss, interpolate
from rewardjax.models.flow import FlowModel

# Draws samples of the data and the condition of each.
Draw = Callable[[PRNGKeyArray, int], tuple[Float[Array, "n *event"], Int[Array, "n"]]]


def flow_matching(model: FlowModel):
    """The loss of a batch with columns `data`, `noise`, `time` and `condition`."""

    def loss(params, batch, frozen=None):
        x = interpolate(batch["data"], batch["noise"], batch["time"])
        velocity = model.velocity(params, x, batch["time"], batch["condition"])
        return Loss({"flow": flow_matching_loss(velocity, batch["data"], batch["noise"])}, {})

    return loss


def noised(draw: Draw) -> Callable[[PRNGKeyArray, int], dict[str, Array]]:
    """Fresh data, standard normal noise and uniform times for each step: `(key, n) -> batch`."""

    def batches(key: PRNGKeyArray, n: int) -> dict[str, Array]:
        data_key, noise_key, time_key = jax.random.split(key, 3)
        data, condition = draw(data_key, n)
        noise = jax.random.normal(noise_key, data.shape)
        time = jax.random.uniform(time_key, (n,))
        return {"data": data, "noise": noise, "time": time, "condition": condition}

    return batches
