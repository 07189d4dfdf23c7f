"""A run's summary in a terminal: what can be read at 80 columns; the rest is in the report."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from rewardjax.report import SYMBOLS, cell_text, claim_text, facts, number
from rewardjax.summary import Summary

COLOURS = {"holds": "green", "fails": "red", "inconclusive": "yellow"}
# Columns of numbers side by side, so that an arm's name and their spreads fit in 80 columns.
COLUMNS = 4


def tables(summary: Summary) -> Group:
    """Verdicts, coloured, and what was measured: print it with rich.

    Claims about arms that were not run are counted, not listed.
    """
    ran = summary["arms"]
    judged = [claim for claim in summary["claims"] if set(_arms(claim)) <= set(ran)]
    parts: list[Text | Table] = [
        Text(summary["title"], style="bold"),
        Text(facts(summary), style="dim"),
    ]
    if judged:
        parts += [Text(), _claims(judged)]
    missing = len(summary["claims"]) - len(judged)
    if missing:
        parts.append(Text(f"{missing} more claims are about arms that were not run", style="dim"))
    count = len(summary["seeds"])
    title = f"Measured: mean ± half the 95% interval over {count} seeds"
    title = "Measured from one seed" if count == 1 else title
    for block in _measured(ran):
        parts += [Text(), _table(title, block)]
        title = "(continued)"
    return Group(*parts)


def _claims(claims: Sequence[Mapping[str, Any]]) -> Table:
    rows = [["verdict", "claim", "difference [95%]"]]
    for claim in claims:
        verdict = f"{SYMBOLS[claim['verdict']]} {claim['verdict']}"
        rows.append([verdict, claim_text(claim), cell_text({**claim, "mean": claim["difference"]})])
    return _table("Claims", rows)


def _measured(arms: Mapping[str, Mapping[str, Any]]) -> Iterator[list[list[str]]]:
    """Metrics downwards and arms across where the arms are few, else the other way round.

    Rows in which nothing was measured are left out.
    """
    metrics = list(dict.fromkeys(metric for measured in arms.values() for metric in measured))
    names, across = list(arms), metrics
    if len(arms) <= COLUMNS:
        names, across = metrics, list(arms)
    for start in range(0, len(across), COLUMNS):
        block = across[start : start + COLUMNS]
        rows = [["arm" if names is not metrics else "", *block]]
        for name in names:
            pairs = [(name, other) if names is not metrics else (other, name) for other in block]
            cells = [arms[arm].get(metric) for arm, metric in pairs]
            if any(cells):
                rows.append([name, *map(_short, cells)])
        yield rows


def _short(cell: Mapping[str, Any] | None) -> str:
    if cell is None or cell["mean"] is None or len(cell["values"]) == 1:
        return cell_text(cell).partition(" [")[0]
    return f"{number(cell['mean'])} ±{number((cell['high'] - cell['low']) / 2)}"


def _table(title: str, rows: Sequence[Sequence[str]]) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold")
    header, *body = rows
    for name in header:
        table.add_column(Text(name), overflow="fold")
    for row in body:
        table.add_row(*(Text(text, COLOURS.get(text[2:], "")) for text in row))
    return table


def _arms(claim: Mapping[str, Any]) -> list[str]:
    return [name for name in (claim["arm"], claim["baseline"]) if isinstance(name, str)]
