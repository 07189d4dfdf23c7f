"""Preferences as a TFDS data set of ArrayRecord files, written and read without TensorFlow."""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core import read_only_builder

from rewardjax.data.formats import hh_preference
from rewardjax.data.jsonl import Loaded, OnBad, collect
from rewardjax.data.records import Preference

# TFDS writes nested ragged features through TensorFlow only, so the attributes are laid flat: one row
# of values for each name, one after the other.
_FEATURES = {
    "prompt": tfds.features.Text(),
    "responses": tfds.features.Sequence(tfds.features.Text()),
    "probability": np.float32,
    "ranking": tfds.features.Sequence(np.int32),
    "attribute_names": tfds.features.Sequence(tfds.features.Text()),
    "attribute_values": tfds.features.Sequence(np.float32),
    "annotator": tfds.features.Text(),
    "source": tfds.features.Text(),
}


class _PreferenceBuilder(  # type: ignore[call-arg]
    tfds.core.GeneratorBasedBuilder, skip_registration=True
):
    """Writes the records that it is given; `name` is set for each data set."""

    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, records_by_split: Mapping[str, Sequence[Preference]], **settings: Any):
        self._records_by_split = records_by_split
        super().__init__(**settings)

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(_FEATURES), description="Preferences."
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator]:
        return {s: self._generate_examples(r) for s, r in self._records_by_split.items()}

    def _generate_examples(self, records: Sequence[Preference]) -> Iterator:
        for index, record in enumerate(records):
            yield index, _to_row(record)


def prepare_preferences(
    records_by_split: Mapping[str, Sequence[Preference]], name: str, data_dir: str | Path
) -> Path:
    """Writes preferences as version 1.0.0 of a TFDS data set in ArrayRecord files.

    TFDS shuffles the rows of each split by a hash of their index. Probabilities and attributes are kept
    as float32; an empty mapping of attributes and an empty annotator read back as None.

    Args:
      records_by_split: the records of each split ("train", "test", ...); no split may be empty.
      name: the data set's name: lower-case letters, digits and underscores, a letter first.
      data_dir: the folder that holds TFDS data sets.

    Returns:
      The folder written: `data_dir/name/1.0.0`.

    Raises:
      ValueError: a malformed name, no splits, an empty split.
      FileExistsError: the data set is there already.
    """
    if not re.fullmatch("[a-z][a-z0-9_]*", name):
        raise ValueError(
            f"name: expected lower-case letters, digits and underscores, found {name!r}"
        )
    empty = [split for split, records in records_by_split.items() if not records]
    if empty or not records_by_split:
        found = f"none in {', '.join(empty)}" if empty else "no splits"
        raise ValueError(f"records_by_split: expected records in every split, found {found}")
    builder_class = type(name, (_PreferenceBuilder,), {"name": name}, skip_registration=True)
    builder = builder_class(records_by_split, data_dir=data_dir, file_format="array_record")
    folder = Path(builder.data_dir)
    if folder.exists():
        raise FileExistsError(f"{folder}: expected no data set there yet")
    builder.download_and_prepare()
    return folder


def read_preferences(
    name: str, data_dir: str | Path, split: str, on_bad: OnBad = "raise"
) -> Loaded[Preference]:
    """Reads preferences that TFDS prepared as ArrayRecord.

    Two layouts are known: the one that `prepare_preferences` writes, and the columns `chosen` and
    `rejected` of `formats.hh_preference`.

    Args:
      name: the data set's name, if need be with its configuration and version (`name/config:1.0.0`).
      data_dir: the folder that holds TFDS data sets.
      split: one of the data set's splits, or a slice of one in TFDS's notation (`train[:10%]`).
      on_bad: "raise" stops at the first bad row; "skip" leaves it out and counts it by its reason.

    Raises:
      FileNotFoundError: no such data set in that folder.
      ValueError: no such split, or the columns are of neither layout.
      BadRecord: a bad row, with `on_bad="raise"`; the line is the row's place in the split.
    """
    place = f"tfds:{name}@{data_dir}"
    builder = _open(name, data_dir)
    if split.partition("[")[0] not in (*builder.info.splits, "all"):
        known = ", ".join(builder.info.splits)
        raise ValueError(f"{place}: expected a split of {known}, found {split!r}")
    columns = set(builder.info.features)
    if not {"chosen", "rejected"} <= columns and columns != set(_FEATURES):
        raise ValueError(
            f"{place}: expected the columns chosen and rejected, or {', '.join(_FEATURES)};"
            f" found {', '.join(sorted(columns))}"
        )
    parse = hh_preference if "chosen" in columns else _from_row
    rows = enumerate(builder.as_data_source(split), start=1)
    return collect(
        rows,
        lambda row: parse({column: _plain(value) for column, value in row.items()}),
        place,
        f"{name}/{split}",
        on_bad,
    )


def _open(name: str, data_dir: str | Path) -> tfds.core.DatasetBuilder:
    try:
        return read_only_builder.builder_from_files(name, data_dir=data_dir)
    except tfds.core.DatasetNotFoundError as error:
        raise FileNotFoundError(
            f"tfds:{name}@{data_dir}: expected {name}/VERSION/ in that folder, found no such data set"
        ) from error


def _to_row(record: Preference) -> dict[str, Any]:
    attributes = record.attributes or {}
    return {
        "prompt": record.prompt,
        "responses": list(record.responses),
        "probability": record.probability,
        "ranking": list(record.ranking or ()),
        "attribute_names": list(attributes),
        "attribute_values": [value for values in attributes.values() for value in values],
        "annotator": record.annotator or "",
        "source": record.source,
    }


def _from_row(row: Mapping[str, Any]) -> Preference:
    names, values = row["attribute_names"], row["attribute_values"]
    by_name = np.reshape(values, (len(names), -1)).tolist() if names else []
    return Preference(
        row["prompt"],
        tuple(row["responses"]),
        row["probability"],
        tuple(row["ranking"]) or None,
        dict(zip(names, by_name)) or None,
        row["annotator"] or None,
        row["source"],
    )


def _plain(value: Any) -> Any:
    """A column as Python values: text decoded, arrays as lists."""
    if isinstance(value, bytes):
        return value.decode("utf-8")
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
