"""Reading and writing the safetensors files of a checkpoint folder, one tensor at a time."""

import json
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from rewardjax.data.jsonl import read_json

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
FLOATS = ("F32", "BF16", "F16", "F64")
LISTED = 8  # names of each kind that an error spells out


def _safetensors(module: str) -> Any:
    try:
        return import_module(module)
    except ImportError as error:
        raise ImportError(
            "published checkpoints need the safetensors library: pip install 'rewardjax[hf]'"
        ) from error


def open_tensors(folder: str | Path) -> dict[str, Any]:
    """The tensors of a checkpoint folder by name; only the files' headers are read.

    Each value has `get_shape()` and `get_dtype()`, and reads what it is indexed with (slices) into a
    NumPy array; bfloat16 comes as `ml_dtypes.bfloat16`.

    Args:
      folder: holds `model.safetensors`, or several files and `model.safetensors.index.json`.

    Raises:
      ImportError: the `safetensors` library is not installed.
      FileNotFoundError: there are no such files, or the index names one that is absent.
      ValueError: a file is broken, or lacks a tensor that the index says it holds.
    """
    safetensors = _safetensors("safetensors")
    index = Path(folder) / INDEX
    places = _read_index(index) if index.is_file() else {}
    files = sorted(set(places.values())) or [SINGLE]
    for file in files:
        if not (index.parent / file).is_file():
            wanted = (
                f"a file that {INDEX} names" if places else f"a checkpoint ({SINGLE} or {INDEX})"
            )
            raise FileNotFoundError(f"{index.parent / file}: expected {wanted}, found no such file")
    tensors, found_in = {}, {}
    for file in files:
        try:
            opened = safetensors.safe_open(index.parent / file, framework="np")
        except safetensors.SafetensorError as error:
            raise ValueError(f"{index.parent / file}: not a safetensors file: {error}") from error
        for name in opened.keys():  # noqa: SIM118 (not a mapping)
            tensors[name], found_in[name] = opened.get_slice(name), file
    for name, file in places.items():
        if found_in.get(name) != file:
            raise ValueError(f"{index}: says that {file} holds {name}, which it does not")
    return tensors


def _read_index(path: Path) -> dict[str, str]:
    places = read_json(path).get("weight_map")
    if not isinstance(places, dict) or not places or {str} != set(map(type, places.values())):
        raise ValueError(f"{path}: expected 'weight_map' to give each tensor its file")
    return places


def check_tensors(
    folder: str | Path, tensors: Mapping[str, Any], expected: Mapping[str, tuple[int, ...]]
) -> None:
    """Compares the tensors of a checkpoint with those that a model needs.

    Args:
      folder: named in the error.
      tensors: what `open_tensors` found there.
      expected: shape of each tensor.

    Raises:
      ValueError: tensors are missing, unexpected, misshapen or not floating point: which ones.
    """
    both = [name for name in expected if name in tensors]
    shapes = {name: tuple(tensors[name].get_shape()) for name in both}
    types = {name: tensors[name].get_dtype() for name in both}
    problems = {
        "missing": [name for name in expected if name not in tensors],
        "unexpected": [name for name in tensors if name not in expected],
        "misshapen": [
            f"{name} (expected {expected[name]}, found {shapes[name]})"
            for name in both
            if shapes[name] != expected[name]
        ],
        "not floating point": [
            f"{name} (expected one of {', '.join(FLOATS)}, found {types[name]})"
            for name in both
            if types[name] not in FLOATS
        ],
    }
    lines = [_listing(kind, names) for kind, names in problems.items() if names]
    if lines:
        raise ValueError("\n  ".join([f"{folder}: the tensors are not those of its model", *lines]))


def _listing(kind: str, names: Sequence[str]) -> str:
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return f"{len(names)} {kind}: {', '.join(names[:LISTED])}{more}"


def write_tensors(
    folder: Path,
    sizes: Mapping[str, int],
    read: Callable[[str], np.ndarray],
    *,
    max_file_bytes: int,
    write: bool = True,
) -> None:
    """Writes tensors into as few files as fit, with an index where there are several.

    One file's tensors are in memory at a time.

    Args:
      folder: exists.
      sizes: bytes of each tensor, in the order of writing.
      read: gives a tensor by its name; called once for each, in that order.
      max_file_bytes: of a file's tensors; a larger tensor gets a file of its own.
      write: False only calls `read` (a process that takes part in gathering, but does not write).
    """
    save_file = _safetensors("safetensors.numpy").save_file
    groups: list[list[str]] = []
    room = 0
    for name, size in sizes.items():
        if not groups or size > room:
            groups.append([])
            room = max_file_bytes
        groups[-1].append(name)
        room -= size
    places = {}
    for i, names in enumerate(groups, start=1):
        file = SINGLE if len(groups) == 1 else f"model-{i:05}-of-{len(groups):05}.safetensors"
        places.update(dict.fromkeys(names, file))
        # The writer takes an array's memory as it lies, whatever its strides.
        tensors = {name: np.ascontiguousarray(read(name)) for name in names}
        if write:
            save_file(tensors, folder / file, metadata={"format": "pt"})
    if write and len(groups) > 1:
        index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": places}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
