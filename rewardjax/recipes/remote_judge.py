"""Rewards from a model behind an HTTP endpoint: a judge that somebody else serves."""

import dataclasses
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from rewardjax import rewards
from rewardjax.services import Answer, Client, Messages
from rewardjax.trajectory import Trajectory

SCORE = re.compile(
    r"^[^\w\n]*score[^\w\n]*[:=][^\w\n]*?(-?\d+(?:\.\d+)?)[^\w\n]*$", re.IGNORECASE | re.MULTILINE
)


@dataclasses.dataclass(frozen=True)
class RemoteJudge:
    """Scores of responses by a served model.

    It fits a policy-gradient recipe as `on_host=judge.columns, reward=judge.reward`: the host asks between
    sampling and rewarding, and the reward reads what it was told. A score is a function of the
    answer, and answers are cached: a step that is done again is rewarded the same.

    Attributes:
      client: of the endpoint; open while the judge is used.
      decode: `traj -> rows`, a trajectory on the host to what each of its rows says.
      ask: `row -> messages`, what the judge is asked about it.
      parse: `text -> score`; None, NaN or a ValueError where the judge's answer holds none.
      unparsed: the score where `parse` finds none or the service refused the request.
      name: of the reward in the log and of its columns: `<name>`, the score, and `<name>_parsed`.
    """

    client: Client
    decode: Callable[[Trajectory], Sequence[Any]]
    ask: Callable[[Any], Messages]
    parse: Callable[[str], float | None]
    unparsed: float
    name: str = "judge"

    def reward(self, traj: Trajectory) -> rewards.Reward:
        """The score on the last step of each row; jittable, from what `columns` added to `info`.

        `parts` also has `<name>_parsed`: 1 where the score was read from an answer, 0 elsewhere.
        """
        found = rewards.outcome(traj.info[self.name], traj.mask, name=self.name)
        parsed = {f"{self.name}_parsed": traj.info[f"{self.name}_parsed"]}
        return found.replace(parts=found.parts | parsed)

    def columns(self, traj: Trajectory) -> dict[str, np.ndarray]:
        """The judge's scores, `[batch]`, and where they were read from an answer (1 or 0).

        Nothing is asked about rows in which the policy did not act.

        Args:
          traj: on the host.

        Raises:
          ServiceUnavailable: the service does not answer; what it did answer is cached.
          RequestRefused: the service takes no request with this key, model or path.
          ValueError: `decode` does not give one row for each of the batch.
        """
        return self.submit(traj)()

    def submit(self, traj: Trajectory) -> Callable[[], dict[str, np.ndarray]]:
        """Ask in the background: returns at once with a function that waits for the `columns`."""
        mask = np.asarray(traj.mask)
        rows, batch = self.decode(traj), len(mask)
        if len(rows) != batch:
            raise ValueError(f"decode: expected {batch} rows, found {len(rows)}")
        asked = np.flatnonzero(np.any(mask, axis=1)).tolist()
        pending = self.client.submit([self.ask(rows[i]) for i in asked])

        def wait() -> dict[str, np.ndarray]:
            scores = np.full(batch, self.unparsed, np.float32)
            parsed = np.zeros(batch, np.float32)
            for i, answer in zip(asked, pending.result()):
                if (score := self._score(answer)) is not None:
                    scores[i], parsed[i] = score, 1.0
            return {self.name: scores, f"{self.name}_parsed": parsed}

        return wait

    def _score(self, answer: Answer) -> float | None:
        if answer.refused:
            return None
        try:
            score = self.parse(answer.text)
        except ValueError:
            return None
        return score if score is not None and math.isfinite(score) else None


def read_score(text: str, *, low: float, high: float) -> float | None:
    """The number in the last line of the form "Score: 7.5", which may be decorated ("**Score:** 7").

    Args:
      text: a judge's answer.
      low: the lowest score that counts.
      high: the highest.

    Returns:
      None where there is no such line, or its number is out of range.
    """
    found = SCORE.findall(text)
    score = float(found[-1]) if found else math.nan
    return score if low <= score <= high else None
