"""Vectors of texts kept in a file: what is costly to compute is computed once."""

import hashlib
import io
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from jaxtyping import Float

from rewardjax.training.run import write_atomic

Compute = Callable[[list[str]], Float[np.ndarray, "texts width"]]


class KeptVectors:
    """`texts -> {text: vector}`, of which those in the file are not computed.

    Args:
      compute: `[texts] -> [texts, width]`.
      path: a `.npz` file, made with its folder when there is something to keep; None keeps vectors in
        memory only. Name it after what computes: it is not asked.

    Raises:
      ValueError: the file is there and holds something else.
    """

    def __init__(self, compute: Compute, path: Path | None = None):
        self._compute, self._path = compute, path
        self._known: dict[str, np.ndarray] = {}
        if path is not None and path.exists():
            try:
                with np.load(path) as file:
                    self._known = dict(zip(file["names"].tolist(), file["vectors"], strict=True))
            except (KeyError, ValueError, OSError, zipfile.BadZipFile) as error:
                raise ValueError(
                    f"{path}: expected names and vectors of texts, found {error}"
                ) from error

    def __call__(self, texts: Iterable[str]) -> dict[str, np.ndarray]:
        """Vectors of all `texts`; new ones are computed together and added to the file."""
        named = {text: hashlib.sha256(text.encode()).hexdigest() for text in texts}
        new = sorted(text for text, name in named.items() if name not in self._known)
        if new:
            self._known.update(zip((named[text] for text in new), self._compute(new)))
            self._keep()
        return {text: self._known[name] for text, name in named.items()}

    def _keep(self) -> None:
        if self._path is None:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        names, vectors = list(self._known), np.stack(list(self._known.values()))
        content = io.BytesIO()
        np.savez(content, names=np.array(names), vectors=vectors)
        write_atomic(self._path, content.getvalue())


def digest(folder: str | Path) -> str:
    """SHA-256 of the names and contents of a folder's files: another model has another one."""
    found = hashlib.sha256()
    for path in sorted(Path(folder).rglob("*")):
        if path.is_file():
            found.update(str(path.relative_to(folder)).encode())
            with path.open("rb") as file:
                found.update(hashlib.file_digest(file, "sha256").digest())
    return found.hexdigest()
