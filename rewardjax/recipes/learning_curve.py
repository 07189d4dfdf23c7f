"""What a curve of evaluations says of a run."""

import numpy as np

from rewardjax.training.loop import LoopConfig
from rewardjax.training.run import Run


def updates_to_target(stage: Run, metric: str, loop: LoopConfig, target: float) -> float:
    """The first evaluated update at which `eval/<metric>` is at least `target`.

    All of the loop's where it never is.
    """
    reached = np.flatnonzero(stage.history(f"eval/{metric}") >= target)
    return float(loop.evaluate_every * (reached[0] + 1) if reached.size else loop.steps)


def learning_curve(stage: Run, loop: LoopConfig, target: float) -> dict[str, float]:
    """What `eval/accuracy` says of a stage.

    Returns:
      `accuracy` at the end; `auc`, its mean over the evaluations; `updates_to_target`.
    """
    curve = stage.history("eval/accuracy")
    return {
        "accuracy": float(curve[-1]),
        "auc": float(np.mean(curve)),
        "updates_to_target": updates_to_target(stage, "accuracy", loop, target),
    }
