"""A preference lab whose responses are so few that expectations are sums over all of them."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from rewardjax.recipes.preference_lab import LabConfig, PreferenceLab
from rewardjax.sampling.enumerate import respond_in_every_way
from rewardjax.trajectory import Trajectory


class EnumeratedLab(PreferenceLab):
    """Besides what the lab has: the posterior of the reward, and exact distances from it.

    Raises:
      ValueError: prompts ask for several themes, or there are more than a million responses.
    """

    def __init__(self, config: LabConfig):
        if config.world.requested != 1:
            raise ValueError(f"world.requested: expected 1, found {config.world.requested}")
        super().__init__(config)
        self._survey = jax.jit(self._surveyed)

    def survey(self, frozen: dict[str, Any], beta: float) -> dict[str, Any]:
        """What is known of every response to every prompt, beside `frozen`'s own columns.

        Args:
          frozen: `reference` and `reward_model`.
          beta: of the posterior, `reference(y) exp(proxy(y) / beta) / Z`.

        Returns:
          `space`, a trajectory of all prompts with all responses; `gold`, `proxy`, and the log-probabilities
          `prior` and `posterior`, `[prompts, responses]`.
        """
        return frozen | self._survey(frozen, beta)

    def exact(self, params, frozen, key) -> dict[str, Array]:
        """Expected gold and proxy reward of a policy, and KL divergences in nats, averaged over prompts.

        `kl` is KL(policy || prior), `kl_posterior` KL(posterior || policy). `frozen` is what `survey` made;
        `key` is not read.
        """
        log_q = self._logprobs(params, frozen["space"]).reshape(frozen["prior"].shape)
        q, posterior = jnp.exp(log_q), frozen["posterior"]
        found = {
            "gold": q * frozen["gold"],
            "proxy": q * frozen["proxy"],
            "kl": q * (log_q - frozen["prior"]),
            "kl_posterior": jnp.exp(posterior) * (posterior - log_q),
        }
        return {name: jnp.mean(jnp.sum(x, axis=1)) for name, x in found.items()}

    def _logprobs(self, params, traj: Trajectory) -> Float[Array, "batch"]:
        logprobs = self.policy.score(params, traj).logprobs
        return jnp.sum(jnp.where(traj.mask, logprobs, 0.0), axis=1)

    def _surveyed(self, frozen, beta):
        world = self.world
        prompts = world.asking(jnp.arange(world.themes)[:, None])
        space = respond_in_every_way(prompts, world.vocab_size, world.response_length, world.eos)
        columns = {
            "gold": self.gold(space),
            "proxy": self.scorer.score(frozen["reward_model"], space.tokens, space.valid),
            "prior": self._logprobs(frozen["reference"], space),
        }
        found = {name: x.reshape(world.themes, -1) for name, x in columns.items()}
        posterior = jax.nn.log_softmax(found["prior"] + found["proxy"] / beta, axis=1)
        return found | {"space": space, "posterior": posterior}
