"""Trajectories as rows that a person can read."""

from collections.abc import Callable, Sequence

import numpy as np

from rewardjax.trajectory import Trajectory


def transcripts(
    traj: Trajectory,
    decode: Callable[[np.ndarray], str],
    *,
    columns: Sequence[str] = (),
    count: int = 8,
) -> list[dict]:
    """The first `count` rows of a language model's trajectory: prompt, response and numbers.

    Args:
      traj: on the device or the host.
      decode: token ids to text.
      columns: names of scalar `[batch]` columns of `traj.info` to show beside the text.
      count: rows.
    """
    tokens, mask, valid = (np.asarray(x[:count]) for x in (traj.actions, traj.mask, traj.valid))
    numbers = {name: np.asarray(traj.info[name][:count]) for name in columns}
    return [
        {
            "prompt": decode(tokens[i][valid[i] & ~mask[i]]),
            "response": decode(tokens[i][mask[i]]),
            **{name: round(float(values[i]), 4) for name, values in numbers.items()},
        }
        for i in range(len(tokens))
    ]
