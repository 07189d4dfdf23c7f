"""A language model as a policy: how it acts, and how its actions are scored."""

import dataclasses
from functools import partial

from jaxtyping import PRNGKeyArray

from rewardjax.losses import Scores
from rewardjax.models.language_model import LanguageModel
from rewardjax.sampling.engine import generate_continuous
from rewardjax.sampling.generate import generate
from rewardjax.trajectory import Prompts, Trajectory


@dataclasses.dataclass(frozen=True)
class LanguagePolicy:
    """Pure functions of `params` that a policy-gradient recipe needs.

    Attributes:
      model: the language model.
      max_new: longest response in tokens.
      stop: token ids that end a response.
      group_size: responses a prompt, adjacent in the batch.
      temperature, top_k, top_p: of sampling; scores use the same temperature.
      prompt_columns: columns of a trajectory that are known to hold prompts: not scored.
      slots: responses decoded at a time, a finished one giving way to the next; all if None.
    """

    model: LanguageModel
    max_new: int
    stop: tuple[int, ...]
    group_size: int = 1
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    prompt_columns: int = 0
    slots: int | None = None

    def rollout(self, params, prompts: Prompts, key: PRNGKeyArray) -> Trajectory:
        """Sample `group_size` responses for each prompt."""
        decode = generate
        if self.slots is not None:
            decode = partial(generate_continuous, slots=self.slots)
        return decode(
            self.model,
            params,
            prompts,
            key,
            max_new=self.max_new,
            stop=self.stop,
            group_size=self.group_size,
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
        )

    def score(self, params, traj: Trajectory) -> Scores:
        """Log-probabilities and entropies of a trajectory's tokens under `params`."""
        logprobs, entropy = self.model.score(
            params,
            traj.tokens,
            traj.valid.astype("int32"),
            temperature=self.temperature or 1.0,
            start=self.prompt_columns,
            image=traj.info.get("image"),
        )
        return Scores(logprobs, entropy)
