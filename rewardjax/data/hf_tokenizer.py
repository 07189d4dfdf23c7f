"""Tokenizers of published models, as the Hugging Face `tokenizers` library reads them."""

import json
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

from rewardjax.data.chat import ChatTemplate, Message
from rewardjax.data.jsonl import read_json
from rewardjax.data.tokenizers import check_ids

BERT_MARKERS = {
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "mask_token": "[MASK]",
}
"""What a `vocab.txt` calls its markers where no other file says."""

# Where a model has no such marker: what its makers put in its place (BERT's markers of a text's
# beginning and end; Qwen's documents begin with its padding; Llama and Mistral have no padding).
FALLBACKS = {
    "eos_token": ("eos_token", "sep_token"),
    "pad_token": ("pad_token", "eos_token", "sep_token"),
    "bos_token": ("bos_token", "cls_token", "pad_token", "eos_token"),
}


class HFTokenizer:
    """A `tokenizer.json`, with the model's markers and its chat template: a `Tokenizer`.

    Truncation and padding that the file asks for are off. A begin marker that the model lacks is its
    padding, and padding that it lacks is its end marker: a mask says what is padding, never an id.

    Args:
      definition: the text of a `tokenizer.json`.
      names: the markers' texts by name (`bos_token`, `eos_token`, `pad_token`, ...). They become
        special tokens if they are not.
      chat_template: the source of a chat template.
      today: the date that a chat template prints, if it does.

    Raises:
      ValueError: the definition or the template cannot be read, a marker is not in the vocabulary, or
        there is no end marker.
      ImportError: tokenizers (or for a chat template jinja2) is not installed.
    """

    def __init__(
        self,
        definition: str,
        names: Mapping[str, str],
        chat_template: str | None = None,
        today: date | None = None,
    ):
        self.names = dict(names)
        # One reads text, where no marker is special, the other what a chat template writes.
        self._text, self._chat = (_build(definition, self.names) for _ in range(2))
        self._text.encode_special_tokens = True
        self.vocab_size = max(self._text.get_vocab(with_added_tokens=True).values()) + 1
        self.eos_id, self.pad_id, self.bos_id = (
            self._marker_id(name) for name in ("eos_token", "pad_token", "bos_token")
        )
        added = self._text.get_added_tokens_decoder()
        self._markers = {i: token.content for i, token in added.items() if token.special}
        self.template = None
        if chat_template is not None:
            markers = tuple(self._markers.values())
            self.template = ChatTemplate(chat_template, self.names, markers, today)

    @classmethod
    def load(cls, folder: str | Path, *, today: date | None = None, **names: str) -> "HFTokenizer":
        """Reads a published model's folder: `tokenizer.json` (or BERT's `vocab.txt`) and its neighbours.

        Markers come from `tokenizer_config.json` and `special_tokens_map.json`, the chat template
        from `chat_template.jinja` or the field `chat_template` (the one named "default" of several).

        Args:
          folder: where the files are.
          today: the date that a chat template prints, if it does.
          names: markers by name (`bos_token="<s>"`) that replace the files'.

        Raises:
          FileNotFoundError: there is neither a `tokenizer.json` nor a `vocab.txt`.
          ValueError: as for the class; names the folder or the file.
          ImportError: as for the class.
        """
        folder = Path(folder)
        config, markers = (
            read_json(path) if path.is_file() else {}
            for path in (folder / "tokenizer_config.json", folder / "special_tokens_map.json")
        )
        found = {**markers, **config}
        path = folder / "tokenizer.json"
        if path.is_file():
            definition = path.read_text(encoding="utf-8")
        elif (folder / "vocab.txt").is_file():
            found = {**BERT_MARKERS, **found}
            definition = _wordpiece(folder / "vocab.txt", config, _marker(found["unk_token"]))
        else:
            raise FileNotFoundError(
                f"{folder}: expected a tokenizer.json or a vocab.txt, found none"
            )
        markers = {
            name: _marker(value)
            for name, value in found.items()
            if name.endswith("_token") and isinstance(_marker(value), str)
        }
        template = config.get("chat_template")
        if isinstance(template, list):
            template = {each["name"]: each["template"] for each in template}.get("default")
        path = folder / "chat_template.jinja"
        if path.is_file():
            template = path.read_text(encoding="utf-8")
        try:
            return cls(definition, {**markers, **names}, template, today)
        except ValueError as error:
            raise ValueError(f"{folder}: {error}") from error

    def save(self, folder: str | Path) -> None:
        """Writes `tokenizer.json` and `tokenizer_config.json`, which `load` and transformers read."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "tokenizer.json").write_text(self._chat.to_str(), encoding="utf-8")
        config = {"tokenizer_class": "PreTrainedTokenizerFast", **self.names}
        if self.template is not None:
            config["chat_template"] = self.template.source
        text = json.dumps(config, indent=2, ensure_ascii=False)
        (folder / "tokenizer_config.json").write_text(text + "\n", encoding="utf-8")

    def encode(self, text: str) -> list[int]:
        """The text's ids without markers; what spells a marker is cut up like other text.

        Raises:
          ValueError: the model underneath has no other pieces for it than the marker itself.
        """
        ids = self._text.encode(text, add_special_tokens=False).ids
        unknown = self.names.get("unk_token")
        for index in ids:
            if index in self._markers and self._markers[index] != unknown:
                raise ValueError(
                    f"text: expected no marker of the model's, found {self._markers[index]!r}"
                )
        return ids

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """The text of the ids; markers and padding are left out.

        Raises:
          ValueError: an id is out of range.
        """
        check_ids(ids, self.vocab_size, "decode")
        return self._text.decode([int(index) for index in ids], skip_special_tokens=True)

    def encode_prompt(self, messages: Sequence[Message], **variables: Any) -> list[int]:
        """Ids of a conversation up to where the assistant's next reply begins, markers included.

        Raises:
          ValueError: there is no chat template, or as for `ChatTemplate.prompt`.
        """
        text = self._chat_template().prompt(messages, **variables)
        return self._chat.encode(text, add_special_tokens=False).ids

    def encode_conversation(
        self, messages: Sequence[Message], *, only_last: bool = False, **variables: Any
    ) -> tuple[list[int], list[bool]]:
        """Ids of a whole conversation, and which of them the assistant wrote (its end markers too).

        A token that reaches over the edge of a reply is not the assistant's.

        Args:
          messages: what was said, oldest first, with a reply or more.
          only_last: the last reply's tokens alone.
          variables: what else the template reads.

        Raises:
          ValueError: there is no chat template, or as for `ChatTemplate.conversation`.
        """
        template = self._chat_template()
        text, spans = template.conversation(messages, only_last=only_last, **variables)
        found = self._chat.encode(text, add_special_tokens=False)
        written = [
            any(begin <= start < stop <= end for begin, end in spans)
            for start, stop in found.offsets
        ]
        return found.ids, written

    def _marker_id(self, name: str) -> int:
        marker = next((self.names[c] for c in FALLBACKS[name] if c in self.names), None)
        if marker is None:
            raise ValueError(
                f"{name}: expected one of {list(FALLBACKS[name])}, found {list(self.names)}"
            )
        return self._text.token_to_id(marker)

    def _chat_template(self) -> ChatTemplate:
        if self.template is None:
            raise ValueError("chat_template: expected a template for conversations, found none")
        return self.template


def _build(definition: str, names: Mapping[str, str]) -> Any:
    tokenizers = _library()
    try:
        built = tokenizers.Tokenizer.from_str(definition)
    except Exception as error:  # the library raises no narrower class
        raise ValueError(f"tokenizer.json: expected a tokenizer ({error})") from error
    built.no_truncation()
    built.no_padding()
    for name, marker in names.items():
        if built.token_to_id(marker) is None:
            raise ValueError(f"{name}: expected a token of the vocabulary, found {marker!r}")
    special = {
        added.content for added in built.get_added_tokens_decoder().values() if added.special
    }
    others = dict.fromkeys(marker for marker in names.values() if marker not in special)
    built.add_special_tokens([tokenizers.AddedToken(m, normalized=False) for m in others])
    return built


def _wordpiece(path: Path, config: Mapping[str, Any], unknown: str) -> str:
    tokenizers = _library()
    # Not splitlines, which also splits at characters that are words of published vocabularies.
    words = path.read_text(encoding="utf-8").rstrip("\n").split("\n")
    vocabulary = {word: index for index, word in enumerate(words)}
    if unknown not in vocabulary:
        raise ValueError(f"{path}: expected a line {unknown!r}, found none")
    made = tokenizers.Tokenizer(tokenizers.models.WordPiece(vocabulary, unk_token=unknown))
    made.normalizer = tokenizers.normalizers.BertNormalizer(
        handle_chinese_chars=config.get("tokenize_chinese_chars", True),
        strip_accents=config.get("strip_accents"),
        lowercase=config.get("do_lower_case", True),
    )
    made.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    made.decoder = tokenizers.decoders.WordPiece()
    return made.to_str()


def _library() -> Any:
    try:
        import tokenizers
    except ImportError as error:
        raise ImportError(
            "a published tokenizer needs tokenizers: pip install 'rewardjax[hf]'"
        ) from error
    return tokenizers


def _marker(value: Any) -> Any:
    return value.get("content") if isinstance(value, Mapping) else value
