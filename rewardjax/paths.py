"""Where a run's files lie: a folder, or a place in an object store (`gs://bucket/folder`)."""

from pathlib import Path
from typing import TypeAlias

from etils import epath

# Local paths stay `pathlib`'s: what is written there is written as ever.
AnyPath: TypeAlias = Path | epath.Path


def path_of(name: str) -> AnyPath:
    """A folder by its name, or a place in an object store by its address.

    Raises:
      ValueError: an address of another kind than `gs://`, `s3://` or `az://`.
    """
    if "://" not in name:
        return Path(name)
    try:
        return epath.Path(name)
    except KeyError:
        raise ValueError(
            f"expected a folder or an address in gs://, s3:// or az://, found {name!r}"
        ) from None


def absolute(path: AnyPath) -> AnyPath:
    """A folder's path from the root; an address as it is."""
    return path.absolute() if isinstance(path, Path) else path
