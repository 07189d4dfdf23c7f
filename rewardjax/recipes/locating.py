"""A policy that answers with a box: how it is trained, rewarded, examined and looked at."""

import dataclasses
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from rewardjax import credit, rewards
from rewardjax.losses import Loss, cross_entropy
from rewardjax.models.transformer import TransformerConfig
from rewardjax.models.vision import VisionConfig, VisionLanguageModel
from rewardjax.pictures import grid
from rewardjax.recipes.agents import silent_groups
from rewardjax.recipes.grpo import grpo
from rewardjax.recipes.policy_gradient import PolicyGradient, PolicyGradientConfig
from rewardjax.recipes.supervised import Supervised, SupervisedConfig
from rewardjax.rewards import grounding
from rewardjax.sampling.language_policy import LanguagePolicy
from rewardjax.statistics import masked_mean
from rewardjax.tasks.screens import SIZES, Screens, picture
from rewardjax.trajectory import Trajectory

# What predicted boxes earn beside gold ones.
BoxReward = Callable[
    [Float[Array, "batch 4"], Float[Array, "batch 4"]],
    Float[Array, "batch"],
]
PREDICTED, GOLD = (1.0, 0.2, 1.0), (1.0, 1.0, 1.0)  # colours of outlines: pink, white


@dataclasses.dataclass(frozen=True)
class Locator:
    """Pure functions of a policy's `params`; only `picture` runs on the host.

    Attributes:
      world: the screens.
      policy: answers with boxes.
      screens: in an examination.
    """

    world: Screens
    policy: LanguagePolicy
    screens: int = 512

    @classmethod
    def create(
        cls, model: TransformerConfig, vision: VisionConfig, screens: int = 512
    ) -> "Locator":
        """A fresh model's policy, which stops at the end of a box."""
        world = Screens(vision.length)
        policy = LanguagePolicy(
            VisionLanguageModel(model, vision, world.image_token),
            max_new=world.max_response,
            stop=(world.eos,),
            prompt_columns=world.prompt_length,
        )
        return cls(world, policy, screens)

    def supervised(self, config: SupervisedConfig, *, crowd: float, noise: int) -> Supervised:
        """Training on `Screens.surveys` of this `crowd` and `noise`."""
        return Supervised(
            config,
            init=self.policy.model.boxed_init,
            loss=self.survey_loss,
            batches=partial(self.world.surveys, crowd=crowd, noise=noise),
        )

    def grpo(
        self, config: PolicyGradientConfig, group_size: int, kl: float, judge: BoxReward
    ) -> PolicyGradient:
        """GRPO on what `judge` gives, with a penalty on the distance from the frozen parameters.

        It logs `groups/silent`, the share of groups whose answers all earn the same.
        """
        assign = partial(credit.group_relative, group_size=group_size)
        return grpo(
            config,
            self.policy,
            group_size,
            kl,
            prompts=self.world.prompts,
            reward=partial(self.reward, judge=judge),
            learners={"groups": silent_groups(assign, group_size)},
            evaluate=self.examine,
        )

    def survey_loss(self, params, batch: Trajectory, frozen=None) -> Loss:
        """Next-token loss on the boxes of `Screens.surveys`."""
        # Names are asked for in between, so that scores start with the image's end.
        policy = dataclasses.replace(self.policy, prompt_columns=self.world.patches + 1)
        return Loss({"nll": cross_entropy(policy.score(params, batch).logprobs, batch.mask)}, {})

    def reward(self, traj: Trajectory, judge: BoxReward) -> rewards.Reward:
        """What `judge` gives for each box; 0 for an answer that is not one."""
        boxes, proper = self.world.answered(traj)
        values = jnp.where(proper, judge(boxes, traj.info["box"]), 0.0)
        return rewards.outcome(values, traj.mask, name="box")

    def examine(self, params, frozen, key: PRNGKeyArray) -> dict[str, Array]:
        """Greedy answers on fresh screens.

        Returns:
          `hit`: share of answers whose centre is in the gold box; `hit_large`, `hit_middle` and
          `hit_tiny` by the element's size. `distance`: of the centres, in pixels. `iou`: in [0, 1].
          `proper`: share of answers that are boxes.
        """
        greedy = dataclasses.replace(self.policy, temperature=0.0)
        traj = greedy.rollout(params, self.world.prompts(key, self.screens), key)
        (boxes, proper), gold, size = self.world.answered(traj), traj.info["box"], traj.info["size"]
        hit = grounding.point_in_box(boxes, gold) * proper
        return {
            "hit": jnp.mean(hit),
            "distance": jnp.mean(grounding.distance(boxes, gold)),
            "iou": jnp.mean(grounding.iou(boxes, gold) * proper),
            "proper": jnp.mean(proper),
        } | {f"hit_{name}": masked_mean(hit, size == i) for i, name in enumerate(SIZES)}

    def picture(self, params, key: PRNGKeyArray, count: int = 12) -> np.ndarray:
        """Screens with the gold boxes in white and greedy answers in pink: uint8 pixels."""
        greedy = dataclasses.replace(self.policy, temperature=0.0)
        traj = jax.jit(greedy.rollout)(params, self.world.prompts(key, count), key)
        columns = traj.info["image"], traj.info["box"], self.world.answered(traj)[0]
        rows = zip(*map(np.asarray, columns))
        drawn = [picture(x, [(gold, GOLD), (box, PREDICTED)]) for x, gold, box in rows]
        return grid(drawn, columns=4, gap=4)
