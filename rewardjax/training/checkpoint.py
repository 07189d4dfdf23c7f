"""A thin wrapper over Orbax: asynchronous, atomic, keeps the newest few."""

import contextlib
from typing import Any

import jax
import orbax.checkpoint as ocp

from rewardjax.paths import AnyPath, absolute


class Checkpoints:
    """The checkpoints of one run, in `folder`.

    A checkpoint appears under its final name only once it is whole. Restoring tries the newest
    first; one that cannot be read is reported and the one before it is used.
    """

    def __init__(self, folder: AnyPath, *, keep: int = 2):
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=True)
        self._manager = ocp.CheckpointManager(absolute(folder), options=options)
        self.folder = folder

    def save(self, step: int, state: Any, source: dict | None) -> None:
        """Start writing the state and the data source's state as of `step`."""
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state), source=ocp.args.JsonSave(source or {})
            ),
        )

    def restore(self, like: Any, warn) -> tuple[Any, dict] | None:
        """The newest readable checkpoint's state and data-source state; None if there is none.

        Args:
          like: a state of the same structure; its shapes, types and shardings are restored onto.
          warn: called with a message for each checkpoint that cannot be read.
        """
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                found = self._manager.restore(
                    step,
                    args=ocp.args.Composite(
                        state=ocp.args.StandardRestore(abstract), source=ocp.args.JsonRestore()
                    ),
                )
            except (ValueError, KeyError, OSError) as error:
                reason = str(error).splitlines()[0][:200]
                warn(
                    f"{self.folder}: checkpoint {step} cannot be read ({reason}); trying the one before"
                )
                self._manager.delete(step)
                continue
            return found["state"], found["source"]
        return None

    def wait(self) -> None:
        """Return once what was saved is on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Finish writing and release the threads."""
        self._manager.close()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *error) -> None:
        with contextlib.ExitStack() as stack:
            stack.callback(self.close)
