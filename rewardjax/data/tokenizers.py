"""Text to token ids and back."""

import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

import numpy as np
import sentencepiece


@runtime_checkable
class Tokenizer(Protocol):
    """What the library asks of a tokenizer.

    `encode` adds no marker of its own: whoever assembles a sequence puts `bos_id` and `eos_id` where
    they belong, and text that spells a marker never becomes one. `decode` leaves markers and padding out.
    """

    @property
    def vocab_size(self) -> int:
        """How many ids there are: all are in `[0, vocab_size)`."""

    @property
    def pad_id(self) -> int:
        """Fills rows up; never part of a sequence."""

    @property
    def bos_id(self) -> int:
        """Begins a sequence."""

    @property
    def eos_id(self) -> int:
        """Ends a sequence."""

    def encode(self, text: str) -> list[int]:
        """The text's token ids, without markers."""

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """The text of the ids, without markers and padding."""


class CharTokenizer:
    """One token a character of a fixed alphabet; ids 0, 1, 2 are padding, begin and end.

    Args:
      alphabet: the characters in the order of their ids, which start at 3.

    Raises:
      ValueError: the alphabet is empty or repeats a character.
    """

    pad_id = 0
    bos_id = 1
    eos_id = 2

    def __init__(self, alphabet: str):
        repeated = sorted({c for c in alphabet if alphabet.count(c) > 1})
        if not alphabet or repeated:
            found = f"{repeated} more than once" if repeated else "none"
            raise ValueError(f"alphabet: expected different characters, found {found}")
        self.alphabet = alphabet
        self._ids = {character: index for index, character in enumerate(alphabet, start=3)}

    @property
    def vocab_size(self) -> int:
        """The alphabet's size and the three markers."""
        return len(self.alphabet) + 3

    def encode(self, text: str) -> list[int]:
        """One id a character.

        Raises:
          ValueError: a character is not in the alphabet.
        """
        for position, character in enumerate(text):
            if character not in self._ids:
                raise ValueError(
                    f"character {position}: expected one of {self.alphabet!r}, found {character!r}"
                )
        return [self._ids[character] for character in text]

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """The characters of the ids; markers and padding are left out.

        Raises:
          ValueError: an id is out of range.
        """
        check_ids(ids, self.vocab_size, "decode")
        return "".join(self.alphabet[index - 3] for index in ids if index >= 3)


class SentencePieceTokenizer:
    """A SentencePiece model (arXiv:1808.06226) that falls back to bytes, so that any text has ids.

    Models that `train` makes keep white space exactly: `decode(encode(text)) == text`, but for U+2581
    (SentencePiece's own sign for a space), which reads back as a space. Imported models may normalise
    white space and characters.

    Args:
      model: the bytes of a SentencePiece model with ids for padding, begin and end.

    Raises:
      ValueError: the bytes are no model, or one of the three ids is missing.
    """

    def __init__(self, model: bytes):
        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        except RuntimeError as error:
            raise ValueError(f"model: expected a SentencePiece model ({error})") from error
        self.model = model
        for name in ("pad_id", "bos_id", "eos_id"):
            if getattr(self, name) < 0:
                raise ValueError(f"model: expected a {name} in the vocabulary, found none")

    @classmethod
    def train(
        cls,
        corpus: Iterable[str],
        vocab_size: int,
        model_type: Literal["unigram", "bpe"] = "unigram",
    ) -> "SentencePieceTokenizer":
        """Trains on all of a corpus; the same corpus always gives the same model.

        Nothing is sampled and one thread counts, so there is no seed. Ids 0 to 3 are padding, begin, end
        and unknown; then the newline, the 256 bytes and the learned pieces.

        Args:
          corpus: texts of any length.
          vocab_size: how many ids; at least 261 and one for each common character of the corpus.
          model_type: "unigram" (arXiv:1804.10959) or "bpe" (arXiv:1508.07909).

        Raises:
          ValueError: an empty corpus, or a size too small or too large for it.
        """
        model = io.BytesIO()
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=iter(corpus),
                model_writer=model,
                vocab_size=vocab_size,
                model_type=model_type,
                byte_fallback=True,
                pad_id=0,
                bos_id=1,
                eos_id=2,
                unk_id=3,
                user_defined_symbols=["\n"],
                normalization_rule_name="identity",
                remove_extra_whitespaces=False,
                add_dummy_prefix=False,
                max_sentence_length=1 << 24,  # longer texts would be left out without a word
                num_threads=1,
                minloglevel=2,
            )
        except RuntimeError as error:
            raise ValueError(f"vocab_size {vocab_size} on this corpus: {error}") from error
        return cls(model.getvalue())

    @classmethod
    def load(cls, path: str | Path) -> "SentencePieceTokenizer":
        """Reads a SentencePiece model file.

        Raises:
          ValueError: the file is no SentencePiece model.
        """
        try:
            return cls(Path(path).read_bytes())
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    def save(self, path: str | Path) -> None:
        """Writes the model to a file that `load`, and SentencePiece itself, can read."""
        Path(path).write_bytes(self.model)

    @property
    def vocab_size(self) -> int:
        """The model's vocabulary size."""
        return self._processor.vocab_size()

    @property
    def pad_id(self) -> int:
        """The model's id of padding."""
        return self._processor.pad_id()

    @property
    def bos_id(self) -> int:
        """The model's id of the begin marker."""
        return self._processor.bos_id()

    @property
    def eos_id(self) -> int:
        """The model's id of the end marker."""
        return self._processor.eos_id()

    def encode(self, text: str) -> list[int]:
        """The text's pieces, without markers."""
        return self._processor.encode(text)

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """The text of the pieces; markers and padding are left out.

        Raises:
          ValueError: an id is out of range.
        """
        check_ids(ids, self.vocab_size, "decode")
        return self._processor.decode([int(index) for index in ids])


def check_ids(ids: Sequence[int] | np.ndarray, vocab_size: int, where: str) -> None:
    """Refuses ids that a vocabulary does not have: an embedding would clamp them silently.

    Args:
      ids: token ids of any shape.
      vocab_size: the vocabulary's size.
      where: named in the error (a record's source, a file).

    Raises:
      ValueError: an id is outside `[0, vocab_size)`.
    """
    flat = np.asarray(ids, dtype=np.int64).reshape(-1)
    wrong = np.flatnonzero((flat < 0) | (flat >= vocab_size))
    if wrong.size:
        raise ValueError(
            f"{where}: token {wrong[0]}: expected an id in [0, {vocab_size}), found {flat[wrong[0]]}"
        )


def has_doubled_bos(ids: Sequence[int] | np.ndarray, bos_id: int) -> bool:
    """Whether the ids begin with two begin markers: one of the tokenizer's, one of the assembler's."""
    return len(ids) >= 2 and bool(ids[0] == bos_id and ids[1] == bos_id)
