"""Partial rewards of a text-to-SQL response (Reasoning-SQL, arXiv:2503.23157).

Plain Python on texts and on what a database said: a response at a time, each in [0, 1].
"""

import itertools
import re
from collections.abc import Hashable, Set

from rewardjax.tasks.sqlite import Database, same_rows

RESPONSE = re.compile(
    r"\s*<reasoning>((?:(?!</?(?:reasoning|answer)>).)*)</reasoning>"
    r"\s*<answer>((?:(?!</?(?:reasoning|answer)>).)*)</answer>\s*",
    re.DOTALL,
)
ANSWER = re.compile(r"<answer>((?:(?!</?answer>).)*)</answer>", re.DOTALL)
TOKEN = re.compile(r"[a-z_][a-z_0-9.]*|\d+(?:\.\d+)?|'[^']*'|[<>!=]=|<>|\S")

PARTS = ("execution", "syntax", "schema", "ngram", "format")


def answer_of(response: str) -> tuple[str | None, bool]:
    """The query between the last answer tags, if any, and whether the whole form is respected:

    `<reasoning>...</reasoning><answer>...</answer>` once, nothing around it.
    """
    whole = RESPONSE.fullmatch(response)
    if whole:
        return whole[2].strip(), True
    found = ANSWER.findall(response)
    return (found[-1].strip() if found else None), False


def jaccard(left: Set[Hashable], right: Set[Hashable]) -> float:
    """Shared members over all members; 1 for two empty sets."""
    either = left | right
    return len(left & right) / len(either) if either else 1.0


def bigrams(query: str) -> set[tuple[str, str]]:
    """Pairs of neighbouring tokens, in lower case, whatever the white space."""
    tokens = TOKEN.findall(query.lower())
    return set(itertools.pairwise(tokens))


def query_rewards(response: str, reference: str, database: Database) -> dict[str, float]:
    """The parts of a response's reward, each of `PARTS`, in [0, 1].

    `execution`: its rows are the reference's (an empty result never counts); `syntax`: it runs;
    `schema`: Jaccard of the tables and columns that it reads (0 where SQLite cannot resolve them);
    `ngram`: Jaccard of token bigrams; `format`: the tags are respected.
    """
    query, proper = answer_of(response)
    parts = dict.fromkeys(PARTS, 0.0) | {"format": float(proper)}
    if query is None:
        return parts
    found, expected = database.ask(query), database.ask(reference)
    ordered = "order by" in reference.lower()
    parts["execution"] = float(same_rows(found, expected, ordered=ordered))
    parts["syntax"] = float(found.rows is not None)
    parts["schema"] = jaccard(found.items, expected.items) if found.rows is not None else 0.0
    parts["ngram"] = jaccard(bigrams(query), bigrams(reference))
    return parts
