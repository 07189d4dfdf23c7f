"""What a data set holds, one frozen dataclass for each kind of record.

Records are plain text and numbers; tokens come later (`rewardjax.data.batching`). A record that
cannot be learned from is refused when it is made, so nothing downstream has to look again. The
fields hold what a file held until `__post_init__` has looked at them: a run-time type checker, which
could not say where they came from, is kept out.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, no_type_check


class BadRecord(ValueError):
    """A record that does not have the form its kind asks for.

    Attributes:
      field: name of the offending field.
      expected: what the field should hold.
      found: what it holds.
      file: the file it came from; empty for a record that was made in memory.
      line: its line there, counted from 1.
    """

    def __init__(
        self, field: str, expected: str, found: str, file: str = "", line: int | None = None
    ):
        super().__init__(field, expected, found, file, line)
        self.field = field
        self.expected = expected
        self.found = found
        self.file = file
        self.line = line

    @property
    def reason(self) -> str:
        """What was wrong without where: equal for records that fail in the same way."""
        return f"{self.field}: expected {self.expected}"

    def at(self, file: str, line: int | None) -> "BadRecord":
        """The same error with the place it was found at."""
        return BadRecord(self.field, self.expected, self.found, file, line)

    def __str__(self) -> str:
        place = (
            f"{self.file}:{self.line}: "
            if self.line is not None
            else self.file and f"{self.file}: "
        )
        return f"{place}{self.reason}, found {self.found}"


def shown(value: Any, limit: int = 80) -> str:
    """The value as an error message shows it: its `repr`, cut to `limit` characters."""
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."


@no_type_check
@dataclass(frozen=True)
class Prompt:
    """A question, with its gold answer where there is one.

    Attributes:
      prompt: the text that the policy continues.
      answer: the gold answer that a verifier compares with.
      source: where the record came from, for error messages (`train.jsonl:12`).

    Raises:
      BadRecord: the prompt or the answer is not text.
    """

    prompt: str
    answer: str | None = None
    source: str = ""

    def __post_init__(self) -> None:
        _check_text("prompt", self.prompt)
        if self.answer is not None:
            _check_text("answer", self.answer)


@no_type_check
@dataclass(frozen=True)
class Demonstration:
    """A prompt with one response to imitate.

    Raises:
      BadRecord: the response is empty, or a field is not text.
    """

    prompt: str
    response: str
    source: str = ""

    def __post_init__(self) -> None:
        _check_text("prompt", self.prompt)
        _check_text("response", self.response, empty=False)


@no_type_check
@dataclass(frozen=True)
class Solution:
    """A sampled solution of a question, judged correct or not.

    Attributes:
      question: the question.
      solution: the worked solution with its final answer.
      correct: whether the final answer is right.
      model: name of the model that wrote it.
      source: where the record came from.

    Raises:
      BadRecord: the solution is empty, or a field is not of its type.
    """

    question: str
    solution: str
    correct: bool
    model: str
    source: str = ""

    def __post_init__(self) -> None:
        _check_text("question", self.question)
        _check_text("solution", self.solution, empty=False)
        _check_text("model", self.model)
        if not isinstance(self.correct, bool):
            raise BadRecord("correct", "true or false", shown(self.correct))


@no_type_check
@dataclass(frozen=True)
class Preference:
    """Two or more responses to one prompt, and which of them was preferred.

    Attributes:
      prompt: the text that all responses continue.
      responses: two or more texts. Lists are accepted and kept as tuples.
      probability: in [0, 1], that response 0 is preferred over response 1; 1 for a hard label.
      ranking: the indices of all responses, best first; None where only `probability` is known.
      attributes: for each named attribute (helpfulness, ...) one finite value a response.
      annotator: who judged, where records of several annotators are mixed.
      source: where the record came from.

    Raises:
      BadRecord: fewer than two responses, an empty one, a probability outside [0, 1], a ranking that
        is no permutation of the responses, an attribute without one value a response.
    """

    prompt: str
    responses: tuple[str, ...]
    probability: float = 1.0
    ranking: tuple[int, ...] | None = None
    attributes: Mapping[str, tuple[float, ...]] | None = None
    annotator: str | None = None
    source: str = ""

    def __post_init__(self) -> None:
        _check_text("prompt", self.prompt)
        responses = _as_tuple("responses", self.responses, "a list of two or more texts")
        if len(responses) < 2:
            raise BadRecord("responses", "two or more responses", str(len(responses)))
        for index, response in enumerate(responses):
            _check_text(f"responses[{index}]", response, empty=False)
        if self.annotator is not None:
            _check_text("annotator", self.annotator)
        object.__setattr__(self, "responses", responses)
        object.__setattr__(self, "probability", _as_probability(self.probability))
        if self.ranking is not None:
            object.__setattr__(self, "ranking", _as_ranking(self.ranking, len(responses)))
        if self.attributes is not None:
            object.__setattr__(self, "attributes", _as_scores(self.attributes, len(responses)))


def _check_text(field: str, value: Any, empty: bool = True) -> None:
    if not isinstance(value, str):
        raise BadRecord(field, "text", shown(value))
    if not empty and not value.strip():
        raise BadRecord(field, "a text that is not empty", shown(value))


def _as_tuple(field: str, value: Any, expected: str) -> tuple:
    if not isinstance(value, (list, tuple)):
        raise BadRecord(field, expected, shown(value))
    return tuple(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _as_probability(value: Any) -> float:
    # A NaN fails the comparison too.
    if not _is_number(value) or not 0 <= value <= 1:
        raise BadRecord("probability", "a number in [0, 1]", shown(value))
    return float(value)


def _as_ranking(value: Any, count: int) -> tuple[int, ...]:
    expected = f"each of the indices 0 to {count - 1} once, best first"
    ranking = _as_tuple("ranking", value, expected)
    if not all(type(index) is int for index in ranking) or sorted(ranking) != list(range(count)):
        raise BadRecord("ranking", expected, shown(value))
    return ranking


def _as_scores(value: Any, count: int) -> dict[str, tuple[float, ...]]:
    if not isinstance(value, Mapping):
        raise BadRecord("attributes", "a mapping of names to values", shown(value))
    scores = {}
    for name, given in value.items():
        field, expected = f"attributes.{name}", f"{count} finite numbers, one a response"
        values = _as_tuple(field, given, expected)
        if len(values) != count or not all(_is_number(v) and math.isfinite(v) for v in values):
            raise BadRecord(field, expected, shown(given))
        scores[name] = tuple(float(v) for v in values)
    return scores
