"""JSON lines, plain or gzip-compressed, read into records; and small files of JSON."""

import dataclasses
import difflib
import gzip
import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

from rewardjax.data.records import BadRecord, Demonstration, Preference, Prompt, Solution, shown

Record = TypeVar("Record", bound=Prompt | Demonstration | Preference | Solution)
Row = Mapping[str, Any]
OnBad = Literal["raise", "skip"]


@dataclass(frozen=True)
class Loaded(Generic[Record]):
    """The records of a file, and what was left out.

    Attributes:
      records: the good records, in the order of the file.
      skipped: how many rows were left out, by reason; empty unless bad rows are skipped.
    """

    records: list[Record]
    skipped: dict[str, int]


def read_jsonl(path: str | Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows of a file of JSON lines, each with its line number (from 1); blank lines are passed over.

    A name that ends in `.gz` is decompressed.

    Raises:
      BadRecord: a line is not UTF-8, not JSON, or not a JSON object; the gzip stream is damaged.
    """
    for number, line in _lines(Path(path)):
        try:
            row = _parse_line(line)
        except BadRecord as error:
            raise error.at(str(path), number) from error
        yield number, row


def read_json(path: Path, kind: type = dict) -> Any:
    """The one value in a file of JSON.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the file is not JSON, or holds another kind of value: an object is a dict, an array a list.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: expected {path.name}, found no such file")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: expected JSON ({error})") from error
    if not isinstance(value, kind):
        wanted = "an object" if kind is dict else f"a {kind.__name__}"
        raise ValueError(f"{path}: expected {wanted}, found {type(value).__name__}")
    return value


def load(
    path: str | Path,
    parse: Callable[[Row], Record | Sequence[Record]],
    on_bad: OnBad = "raise",
) -> Loaded[Record]:
    """Reads all records of a file of JSON lines.

    Args:
      path: the file, plain or `.gz`.
      parse: makes a record, or a list of them, of a row (`rewardjax.data.formats`, `fields`). Records
        without a source get `file name:line`.
      on_bad: "raise" stops at the first bad row; "skip" leaves it out and counts it by its reason.

    Raises:
      BadRecord: a bad row (with "raise"), or a damaged gzip stream (always).
    """
    path = Path(path)
    return collect(
        _lines(path), lambda line: parse(_parse_line(line)), str(path), path.name, on_bad
    )


def collect(
    rows: Iterable[tuple[int, Any]],
    parse: Callable[[Any], Record | Sequence[Record]],
    file: str,
    source: str,
    on_bad: OnBad,
) -> Loaded[Record]:
    """Parses numbered rows of any store; `load` does it for files of JSON lines.

    Args:
      rows: what `parse` takes, each with its number in the store.
      parse: makes a record, or a list of them, of a row.
      file: names the store in errors.
      source: names the store in the sources of records that have none (`source:number`).
      on_bad: as for `load`.
    """
    if on_bad not in ("raise", "skip"):
        raise ValueError(f"on_bad: expected 'raise' or 'skip', found {on_bad!r}")
    records: list[Record] = []
    skipped: dict[str, int] = {}
    for number, row in rows:
        try:
            made = parse(row)
        except BadRecord as error:
            if on_bad == "raise":
                raise error.at(file, number) from error
            skipped[error.reason] = skipped.get(error.reason, 0) + 1
            continue
        some = made if isinstance(made, Sequence) else [made]
        records.extend(_with_source(record, f"{source}:{number}") for record in some)
    return Loaded(records, skipped)


def lookup(row: Row, name: str) -> Any:
    """The value of a field; dots lead into nested objects, numbers into lists (`votes.0.label`).

    A field whose own name holds the dots is found first.

    Raises:
      BadRecord: there is no such field; the message shows the fields that come near.
    """
    if name in row:
        return row[name]
    value: Any = row
    for part in name.split("."):
        if isinstance(value, Mapping) and part in value:
            value = value[part]
        elif isinstance(value, list) and part.isdecimal() and int(part) < len(value):
            value = value[int(part)]
        else:
            raise BadRecord(name, "a field of this name", _present(value, part))
    return value


def fields(
    record: type[Record], mapping: Mapping[str, str | tuple[str, ...]]
) -> Callable[[Row], Record]:
    """A parse function that fills a record's fields from those of a row.

    Args:
      record: the kind of record to make.
      mapping: for each field of the record the name of the row's field (dotted names as in `lookup`), or
        a tuple of names whose values are gathered in a tuple. Fields left out keep their defaults.

    Returns:
      Row -> record; it raises `BadRecord` where a field is missing or of the wrong form.

    Raises:
      ValueError: the mapping names a field that the record does not have, or leaves a required one out.

    Example:
      `fields(Preference, {"prompt": "question", "responses": ("answers.a", "answers.b")})`
    """
    known = {field.name: field for field in dataclasses.fields(record)}
    for name in mapping:
        if name not in known:
            raise ValueError(f"{record.__name__} has no field {name!r}: {_near(name, list(known))}")
    missing = [
        name
        for name, field in known.items()
        if field.default is dataclasses.MISSING and name not in mapping
    ]
    if missing:
        raise ValueError(f"the mapping for {record.__name__} leaves out {', '.join(missing)}")

    def parse(row: Row) -> Record:
        return record(**{name: gather(row, origin) for name, origin in mapping.items()})

    def gather(row: Row, origin: str | tuple[str, ...]) -> Any:
        if isinstance(origin, str):
            return lookup(row, origin)
        return tuple(lookup(row, part) for part in origin)

    return parse


def check_known(row: Row, known: Sequence[str]) -> None:
    """Refuses a row with fields that its layout does not have, so that no misspelling goes unseen.

    Raises:
      BadRecord: naming the field, and the known ones that come near.
    """
    for name in row:
        if name not in known:
            raise BadRecord(name, f"one of the fields {', '.join(known)}", _near(name, known))


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    number = 0
    with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as stream:
        try:
            for number, line in enumerate(stream, start=1):
                if line.strip():
                    yield number, line
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise BadRecord(
                "line", "a whole gzip stream", str(error), str(path), number + 1
            ) from error


def _parse_line(line: bytes) -> dict[str, Any]:
    try:
        row = json.loads(line.decode("utf-8"))
    except ValueError as error:  # of UTF-8 and of JSON alike
        raise BadRecord("line", "a line of JSON in UTF-8", str(error)) from error
    if not isinstance(row, dict):
        raise BadRecord("line", "a JSON object", shown(row))
    return row


def _with_source(record: Record, source: str) -> Record:
    return record if record.source else dataclasses.replace(record, source=source)


def _present(value: Any, name: str) -> str:
    if isinstance(value, Mapping):
        return _near(name, list(value))
    if isinstance(value, list):
        return f"a list of {len(value)}"
    return shown(value)


def _near(name: str, names: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    hint = f" (near: {', '.join(near)})" if near else ""
    return f"fields {', '.join(names)}{hint}" if names else "no fields"
