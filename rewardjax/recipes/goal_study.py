"""What a reward model makes of held-out users of a grid: accuracy, plans, latents, good questions."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from rewardjax.envs.mdp import soft_optimal_policy, state_distribution
from rewardjax.models.latent_scorer import LatentScorer
from rewardjax.models.linear_probe import masked_ridge
from rewardjax.recipes.latent_preferences import UserReward, for_each
from rewardjax.sampling.queries import gaussian_information
from rewardjax.statistics import Mean
from rewardjax.tasks.goal_preferences import GoalPreferences, Users

# The answers to two questions: whether the first of two cells is preferred.
ANSWERS = ((False, False), (False, True), (True, False), (True, True))


@dataclasses.dataclass(frozen=True)
class GoalStudy:
    """The measurement; all methods are pure and can be jitted.

    Attributes:
      world: the grid and who wants what.
      users: held out, with a set of comparisons each.
      pairs: on which each user's preference is predicted.
      contexts: how many comparisons are shown; all metrics but the accuracy are of the last number.
      discount: of the planner.
      temperature: of the planner, as a share of the rewards' mean range: one for all users.
      horizon: steps after which a policy should be at the goal, or beside it.
      query_sets: sets of two questions that are chosen from.
      samples: of z from its prior, to tell how likely answers are.
    """

    world: GoalPreferences = GoalPreferences()
    users: int = 256
    pairs: int = 64
    contexts: tuple[int, ...] = (1, 2, 4, 8, 16)
    discount: float = 0.95
    temperature: float = 0.03
    horizon: int = 24
    query_sets: int = 32
    samples: int = 32

    @property
    def places(self) -> Float[Array, "cells 2"]:
        """What a model sees of the cells."""
        return jnp.asarray(self.world.places)

    def seen(self, users: Users) -> dict[str, Array]:
        """Users as a `UserReward` takes them."""
        sides = {name: self.places[getattr(users, name)] for name in ("preferred", "other")}
        return sides | {"kind": users.kind}

    def held_out(self, key: PRNGKeyArray) -> dict[str, Any]:
        """Users, pairs to test on, and the questions."""
        keys = jax.random.split(key, 3)
        return {
            "users": self.seen(self.world.users(keys[0], self.users, max(self.contexts))),
            "pairs": self.world.pairs(keys[1], self.users, self.pairs),
            "queries": self.world.pairs(keys[2], self.users, self.query_sets, 2),
        }

    def measure(self, model: UserReward, params, shared, key: PRNGKeyArray) -> dict[str, Array]:
        """Every metric; `shared` is what `held_out` drew, `key` answers the questions."""
        users, found = shared["users"], {}
        shown = jnp.arange(max(self.contexts))
        for count in self.contexts:
            present = jnp.broadcast_to(shown < count, users["preferred"].shape[:2])
            z = model.infer(params, users, present)
            found[f"accuracy_{count}"] = self.accuracy(model, params, shared, z)
        found["accuracy"] = found[f"accuracy_{self.contexts[-1]}"]
        found |= self.plans(model, params, users["kind"], z)
        if model.scorer is not None:
            found["z_probe"] = self.told(z, users["kind"])
            prior_key, label_key = jax.random.split(key)
            worth = self.information(model.scorer, params, shared["queries"], prior_key)
            found |= self.questions(model, params, shared, worth, label_key)
        return found

    def accuracy(self, model: UserReward, params, shared, z) -> Float[Array, ""]:
        """How often pairs that differ are ordered as their user would."""
        pairs = shared["pairs"]
        first, second = self.places[pairs[..., 0]], self.places[pairs[..., 1]]
        lead = model.logit(params, first, second, for_each(z, pairs.shape[1]))
        right, told_apart = self.world.correct(shared["users"]["kind"], pairs, lead)
        return Mean.of(right, told_apart).value

    def plans(
        self, model: UserReward, params, kind: Int[Array, "users"], z: Float[Array, "users _"]
    ) -> dict[str, Array]:
        """Where one planner's policies end for the users, and what their rewards are like.

        Returns:
          `success`, how often at the goal or beside it; `worst_success`, of the kind with the least;
          `range_ratio`, the largest of the kinds' mean ranges of rewards over the smallest;
          `correlation` of a user's rewards with their utilities.
        """
        kinds, truth = len(self.world.goals), jnp.asarray(self.world.utilities)[kind]
        process = self.world.process(self.discount)
        rewards = jax.lax.map(lambda z: model.score(params, self.places, z), z, batch_size=8)
        ranges = jnp.max(rewards, axis=1) - jnp.min(rewards, axis=1)
        temperature = self.temperature * jnp.mean(ranges)

        def end(reward):
            arriving = process.with_reward(jnp.broadcast_to(reward, process.transition.shape))
            policy = soft_optimal_policy(arriving, temperature)
            return state_distribution(process, policy, self.horizon)

        beside = -1 / (2 * (self.world.size - 1)) - 1e-6
        ends = jax.lax.map(end, rewards, batch_size=8)
        arrived = jnp.sum(ends * (truth >= beside), axis=1)

        def by_kind(values):
            return jnp.stack([Mean.of(values, kind == k).value for k in range(kinds)])

        related = jax.vmap(lambda a, b: jnp.corrcoef(a, b)[0, 1])(rewards, truth)
        return {
            "success": jnp.mean(arrived),
            "worst_success": jnp.min(by_kind(arrived)),
            "range_ratio": jnp.max(by_kind(ranges)) / jnp.min(by_kind(ranges)),
            "correlation": jnp.mean(related),
        }

    def told(self, z: Float[Array, "users latent"], kind: Int[Array, "users"]) -> Float[Array, ""]:
        """How often a linear probe, fitted to half of the users' z, tells the others' kinds."""
        inputs = jnp.concatenate([z, jnp.ones((len(z), 1))], axis=1)
        target, fitted = jax.nn.one_hot(kind, len(self.world.goals)), jnp.arange(len(z)) % 2 == 0
        seen = jnp.broadcast_to(fitted[:, None], target.shape)
        found = jnp.argmax(inputs @ masked_ridge(inputs, target, seen, 1e-3).T, axis=1)
        return Mean.of(found == kind, ~fitted).value

    def questions(
        self,
        model: UserReward,
        params,
        shared,
        worth: Float[Array, "users sets"],
        key: PRNGKeyArray,
    ) -> dict[str, Array]:
        """Accuracy after two answers: to each user's worthiest questions, and to any two."""
        queries, kind = shared["queries"], shared["users"]["kind"]

        def after(chosen: Int[Array, "users"]) -> Float[Array, ""]:
            pairs = jnp.take_along_axis(queries, chosen[:, None, None, None], axis=1)[:, 0]
            users = self.seen(self.world.comparisons(key, kind, pairs))
            z = model.infer(params, users, jnp.ones(pairs.shape[:2], bool))
            return self.accuracy(model, params, shared, z)

        best = jnp.argmax(worth, axis=1)
        active, random = after(best), after(jnp.zeros_like(best))
        return {"active_2": active, "random_2": random, "active_gain": active - random}

    def information(
        self,
        scorer: LatentScorer,
        params,
        queries: Int[Array, "users sets 2 2"],
        key: PRNGKeyArray,
    ) -> Float[Array, "users sets"]:
        """What the answers to each set of questions tell of z, in nats."""
        yes = jnp.array(ANSWERS)[..., None]
        ordered = jnp.where(yes, queries[:, :, None], queries[:, :, None, :, ::-1])
        first, second = self.places[ordered[..., 0]], self.places[ordered[..., 1]]
        q = scorer.posterior(params, first, second, jnp.ones(first.shape[:-1], bool))

        def odds(z):
            everywhere = jnp.broadcast_to(z, (*first.shape[:-1], scorer.latent))
            logits = scorer.logit(params, first, second, everywhere)
            return jnp.prod(jax.nn.sigmoid(logits), axis=-1)

        z = jax.random.normal(key, (self.samples, scorer.latent))
        likely = jnp.mean(jax.lax.map(odds, z), axis=0)
        return gaussian_information(likely, q.mean, q.log_std)
