"""Chat templates: conversations to the text that a published model was trained on.

A template is a jinja2 program that comes with a tokenizer. It is untrusted: it runs in jinja2's
sandbox, and a message that spells one of the model's markers is refused, so that no text can end a
turn or open another.
"""

import dataclasses
import functools
import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import date
from typing import Any, ClassVar

# A role and its content (text, or what else the template reads: parts, tool calls).
Message = Mapping[str, Any]
Span = tuple[int, int]

# They stand around what a `{% generation %}` block writes; Unicode keeps them out of all text.
_OPEN, _CLOSE = "\ufdd0", "\ufdd1"


@dataclasses.dataclass(frozen=True)
class ChatTemplate:
    """A chat template.

    Attributes:
      source: the jinja2 program, `chat_template` of a `tokenizer_config.json`.
      names: text variables that it may use, such as `bos_token`.
      markers: texts that no message may contain: those of the model's special tokens.
      today: what a template that prints the date prints: the same data then gives the same tokens. A
        template that must have it fails without.

    Raises:
      ValueError: the source is no jinja2 template; names its line.
      ImportError: jinja2 is not installed.
    """

    source: str
    names: Mapping[str, str] = dataclasses.field(default_factory=dict)
    markers: tuple[str, ...] = ()
    today: date | None = None

    def __post_init__(self) -> None:
        _ = self._program

    def prompt(self, messages: Sequence[Message], **variables: Any) -> str:
        """The conversation up to where the assistant's next reply begins.

        Args:
          messages: what was said, oldest first.
          variables: what else the template reads (`tools`, `enable_thinking`, ...).

        Raises:
          ValueError: the template fails or refuses the conversation (a role, their order), or a message
            spells a marker; names the message or the roles.
        """
        return self._render(messages, variables, reply=True)[0]

    def conversation(
        self, messages: Sequence[Message], *, only_last: bool = False, **variables: Any
    ) -> tuple[str, tuple[Span, ...]]:
        """The whole conversation, and the character ranges `[start, stop)` that the assistant wrote.

        Ranges are those of the template's `{% generation %}` blocks if it has any. Else a reply's range
        is what it adds to the text that asks for it, with the marker that ends it and without the
        white space after that.

        Args:
          messages: what was said, oldest first, with a reply or more.
          only_last: the last reply's range alone, as the model is asked for it after all before.
          variables: as for `prompt`.

        Raises:
          ValueError: as for `prompt`; there is no reply; or the template writes an early reply
            otherwise than it writes the last, so that only the last has a range.
        """
        replies = [i for i, message in enumerate(messages) if message.get("role") == "assistant"]
        if not replies:
            raise ValueError(
                f"messages: expected an assistant's among them, found {_roles(messages)}"
            )
        text, blocks = self._render(messages, variables)
        if blocks and not only_last:
            return text, blocks
        spans = []
        for index in replies[-1:] if only_last else replies:
            before = self._render(messages[:index], variables, reply=True)[0]
            after = self._render(messages[: index + 1], variables)[0]
            if not (after.startswith(before) and text.startswith(after)):
                raise ValueError(
                    f"messages[{index}]: the chat template does not only add to the text as the "
                    "conversation goes on, so this reply has no range of its own"
                    + ("" if only_last else "; only_last=True needs that of the last reply alone")
                )
            spans.append((len(before), self._trim(text, len(after))))
        return text, tuple(spans)

    def _trim(self, text: str, stop: int) -> int:
        end = text[:stop].rstrip()
        return len(end) if end.endswith(self.markers) else stop

    @functools.cached_property
    def _program(self):
        return _compile(self.source, self.today)

    def _render(
        self, messages: Sequence[Message], variables: Mapping[str, Any], reply: bool = False
    ) -> tuple[str, tuple[Span, ...]]:
        import jinja2

        for index, message in enumerate(messages):
            for text in _texts(message):
                spelt = next((m for m in (*self.markers, _OPEN, _CLOSE) if m in text), None)
                if spelt is not None:
                    raise ValueError(
                        f"messages[{index}]: expected text without the model's markers, found {spelt!r}"
                    )
        given = {**self.names, "tools": None, "documents": None, **variables}
        try:
            marked = self._program.render(
                **given, messages=list(messages), add_generation_prompt=reply
            )
        except _Refusal as error:
            raise ValueError(
                f"the chat template refuses the roles {_roles(messages)}: {error}"
            ) from error
        except (jinja2.TemplateError, TypeError, ValueError, LookupError, ArithmeticError) as error:
            raise ValueError(
                f"the chat template fails on the roles {_roles(messages)}: "
                f"{type(error).__name__}: {error}"
            ) from error
        return _unmark(marked)


class _Refusal(Exception):
    """What a template raises by `raise_exception`."""


def _compile(source: str, today: date | None) -> Any:
    try:
        import jinja2
        from jinja2 import ext, nodes, sandbox
    except ImportError as error:
        raise ImportError("chat templates need jinja2: pip install 'rewardjax[hf]'") from error

    class Generation(ext.Extension):
        """Puts `_OPEN` and `_CLOSE` around what the assistant writes."""

        tags: ClassVar[set[str]] = {"generation"}

        def parse(self, parser):
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            start, stop = (nodes.Output([nodes.TemplateData(mark)]) for mark in (_OPEN, _CLOSE))
            return nodes.Scope([start, *body, stop]).set_lineno(line)

    def refuse(message: str):
        raise _Refusal(message)

    def tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        # jinja2's own escapes the characters of HTML.
        return json.dumps(
            value,
            ensure_ascii=ensure_ascii,
            indent=indent,
            separators=separators,
            sort_keys=sort_keys,
        )

    environment = sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, ext.loopcontrols]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = refuse
    if today is not None:
        environment.globals["strftime_now"] = today.strftime
    try:
        return environment.from_string(source)
    except jinja2.TemplateSyntaxError as error:
        raise ValueError(f"chat_template, line {error.lineno}: {error.message}") from error


def _unmark(marked: str) -> tuple[str, tuple[Span, ...]]:
    pieces, spans, length = [], [], 0
    for index, part in enumerate(marked.split(_OPEN)):
        inside, _, outside = part.partition(_CLOSE) if index else ("", "", part)
        if inside:
            spans.append((length, length + len(inside)))
        pieces += [inside, outside]
        length += len(inside) + len(outside)
    return "".join(pieces), tuple(spans)


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _texts(item)
    elif isinstance(value, Sequence):
        for item in value:
            yield from _texts(item)


def _roles(messages: Sequence[Message]) -> list[Any]:
    return [message.get("role") for message in messages]
