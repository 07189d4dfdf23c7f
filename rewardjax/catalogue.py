"""Where experiments are: `experiments/<family>/<slug>.py`, each with a module-level `EXPERIMENT`."""

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import rewardjax
from rewardjax.experiment import Experiment
from rewardjax.overrides import near_names


class CatalogueError(ValueError):
    """No such experiment, or a file that does not hold one."""


class Entry(NamedTuple):
    """An experiment's place: `path` is `experiments/<family>/<slug>.py`."""

    family: str
    slug: str
    path: Path

    @property
    def results(self) -> Path:
        """Where its recorded results belong: `results/<family>/<slug>.json` beside `experiments`."""
        return self.path.absolute().parents[2] / "results" / self.family / f"{self.slug}.json"


def experiments_folder() -> Path:
    """`./experiments` if there is one, else the one beside the installed package.

    Raises:
      CatalogueError: there is neither.
    """
    folders = [Path("experiments"), Path(rewardjax.__file__).parents[1] / "experiments"]
    for folder in folders:
        if folder.is_dir():
            return folder
    raise CatalogueError(f"no experiments folder: looked for {' and '.join(map(str, folders))}")


def find(root: Path) -> list[Entry]:
    """The experiments under `root`, by family and slug; files named `_*.py` are none."""
    paths = sorted(root.glob("[!_.]*/[!_.]*.py"))
    return [Entry(path.parent.name, path.stem, path) for path in paths]


def locate(file_or_slug: str) -> Entry:
    """The experiment named by its file, by `family/slug` or by its slug alone.

    Raises:
      CatalogueError: there is none (near names are given), or the slug is in several families.
    """
    path = Path(file_or_slug)
    if path.suffix == ".py":
        if path.is_file():
            return Entry(path.absolute().parent.name, path.stem, path)
        known = [it.stem for it in path.parent.glob("*.py")]
        raise CatalogueError(f"{path}: no such file; {near_names(path.stem, known)}")
    entries = find(experiments_folder())
    found = [it for it in entries if file_or_slug in (it.slug, f"{it.family}/{it.slug}")]
    if len(found) > 1:
        names = " or ".join(f"{it.family}/{it.slug}" for it in found)
        raise CatalogueError(f"experiment {file_or_slug!r} is in several families: {names}")
    if not found:
        by_family = "/" in file_or_slug
        known = [f"{it.family}/{it.slug}" if by_family else it.slug for it in entries]
        raise CatalogueError(f"no experiment {file_or_slug!r}; {near_names(file_or_slug, known)}")
    return found[0]


def load(file_or_slug: str) -> tuple[Entry, Experiment]:
    """Import an experiment; see `locate` for how it may be named.

    Raises:
      CatalogueError: it cannot be found, its `EXPERIMENT` is missing, or refuses its definition.
    """
    entry = locate(file_or_slug)
    return entry, load_entry(entry)


def load_entry(entry: Entry) -> Experiment:
    """Import the experiment at an entry; errors as `load`."""
    name = f"experiments.{entry.family}.{entry.slug}"
    spec = importlib.util.spec_from_file_location(name, entry.path)
    if spec is None or spec.loader is None:
        raise CatalogueError(f"{entry.path}: expected a Python file")
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their module up to read annotations that are strings.
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except ValueError as error:
        raise CatalogueError(f"{entry.path}: {error}") from error
    experiment = getattr(module, "EXPERIMENT", None)
    if not isinstance(experiment, Experiment):
        found = "none" if experiment is None else f"a {type(experiment).__name__}"
        raise CatalogueError(f"{entry.path}: expected a module-level EXPERIMENT, found {found}")
    return experiment


def load_all(
    root: Path, family: str | None = None
) -> Iterator[tuple[Entry, Experiment | Exception]]:
    """Every experiment of a family (of all without one); what a broken file raised in its place.

    Raises:
      CatalogueError: no such family.
    """
    entries = find(root)
    families = sorted({entry.family for entry in entries})
    if family is not None and family not in families:
        raise CatalogueError(f"no family {family!r}; {near_names(family, families)}")
    for entry in entries:
        if family in (None, entry.family):
            try:
                yield entry, load_entry(entry)
            # One file that cannot be imported must not hide the others.
            except Exception as error:
                yield entry, error
