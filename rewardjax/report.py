"""The report of a run: what was measured, what became of the claims, beside the paper's numbers.

A run folder `runs/<slug>/<scale>` holds `summary.json` and, for each arm and seed,
`<arm>/seed_<n>/<stage>/metrics.jsonl` and `samples.jsonl`.
"""

import base64
import json
import re
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

from rewardjax import plots
from rewardjax.paths import AnyPath
from rewardjax.summary import Summary, read_summary
from rewardjax.training.run import write_atomic

Samples = Mapping[str, Sequence[Mapping[str, Any]]]

SYMBOLS = {"holds": "✔", "fails": "✘", "inconclusive": "?"}
LONGEST_FIELD = 1500  # characters of a sample's field that are shown
GOLD_AGAINST_PROXY = "gold against proxy"
DEPTHS = ("", "*/", "*/*/")  # a seed's own folder, its stages' and theirs

STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; margin: 1rem 0; display: block; overflow-x: auto; }
th, td { border-bottom: 1px solid #8886; padding: .35rem .8rem; text-align: left; }
td { font-variant-numeric: tabular-nums; }
.holds, .fails, .inconclusive { padding: .1rem .4rem; border-radius: 4px; white-space: nowrap; }
.holds { background: #1a7f37; color: #fff; }
.fails { background: #c62828; color: #fff; }
.inconclusive { background: #f2c94c; color: #222; }
.quiet { color: #888; }
img { max-width: 100%; background: #fff; }
figure { display: inline-block; margin: .4rem 1rem .4rem 0; }
figure img { image-rendering: pixelated; min-width: 14rem; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; border-left: 3px solid #8886; padding: .4rem .8rem; }
"""


def read_samples(
    folder: AnyPath, arms: Sequence[str], count: int = 3
) -> dict[str, list[dict[str, Any]]]:
    """The first `count` samples of the last step logged, of each stage of an arm's first seed.

    An arm without samples is left out.

    Raises:
      ValueError: a broken line; the message names file and line.
    """
    found: dict[str, list[dict[str, Any]]] = {}
    for arm in arms:
        for seed in plots.seed_folders(folder / arm)[:1]:
            paths = sorted(seed.glob("*/samples.jsonl"))
            for path in paths:
                records = plots.read_jsonl(path)
                last = max((record["step"] for record in records), default=0)
                chosen = [record for record in records if record["step"] == last][:count]
                stage = {"stage": path.parent.name} if len(paths) > 1 else {}
                found.setdefault(arm, []).extend({**stage, **record} for record in chosen)
    return {arm: samples for arm, samples in found.items() if samples}


def find_pictures(folder: AnyPath, arms: Sequence[str]) -> dict[str, dict[str, AnyPath]]:
    """`{arm: {name: path}}`: the pictures of each arm's first seed; arms without any left out."""
    found: dict[str, dict[str, AnyPath]] = {}
    for arm in arms:
        for seed in plots.seed_folders(folder / arm)[:1]:
            paths = sorted(path for depth in DEPTHS for path in seed.glob(f"{depth}pictures/*.png"))
            found[arm] = {path.stem: path for path in paths}
    return {arm: pictures for arm, pictures in found.items() if pictures}


def markdown(
    summary: Summary,
    images: Mapping[str, str] | None = None,
    samples: Samples | None = None,
    pictures: Mapping[str, Mapping[str, str]] | None = None,
) -> str:
    """The report as Markdown.

    Args:
      summary: what it reports.
      images: of curves: a title and the PNG's path beside the report.
      samples: of each arm.
      pictures: of each arm: names and paths.
    """
    parts = [f"# {_one_line(summary['title'])}", _one_line(facts(summary))]
    for title, table in _tables(summary):
        header, *rows = [[_one_line(text) for text in row] for row in table]
        lines = [f"| {' | '.join(row)} |" for row in [header, ["---"] * len(header), *rows]]
        parts += [f"## {title}", "\n".join(lines)]
    if images is not None and (images or summary.get("curves")):
        parts.append("## Curves")
        parts += [f"![{title}]({path})" for title, path in images.items()]
        parts += [f"Not logged: {name}." for name in _undrawn(summary, images)]
    if pictures:
        parts.append("## Pictures")
    for arm, paths in (pictures or {}).items():
        parts.append(f"**{arm}**")
        parts += [f"{name}: ![{name}]({path})" for name, path in paths.items()]
    if samples:
        parts.append("## Samples")
    for arm, records in (samples or {}).items():
        for number, record in enumerate(records, start=1):
            parts.append(f"**{arm}, sample {number}**")
            # Indented, since no text inside can close such a block as it could a fence.
            lines = _readable(record).splitlines()
            parts.append("\n".join(f"    {line}" for line in lines))
    return "\n\n".join(parts) + "\n"


def html(
    summary: Summary,
    images: Mapping[str, bytes] | None = None,
    samples: Samples | None = None,
    pictures: Mapping[str, Mapping[str, bytes]] | None = None,
) -> str:
    """The report as one HTML page that needs no other file; as `markdown`, with PNGs for paths."""
    title = escape(summary["title"])
    body = [f"<h1>{title}</h1>", f'<p class="quiet">{escape(facts(summary))}</p>']
    for heading, (header, *rows) in _tables(summary):
        head = "".join(f"<th>{escape(text)}</th>" for text in header)
        lines = ["".join(_html_cell(text) for text in row) for row in rows]
        inner = "\n".join(f"<tr>{line}</tr>" for line in [head, *lines])
        body += [f"<h2>{escape(heading)}</h2>", f"<table>\n{inner}\n</table>"]
    if images is not None and (images or summary.get("curves")):
        body.append("<h2>Curves</h2>")
        body += [f"<p>{_embedded(name, png)}</p>" for name, png in images.items()]
        body += [f"<p>Not logged: {escape(name)}.</p>" for name in _undrawn(summary, images)]
    if pictures:
        body.append("<h2>Pictures</h2>")
    for arm, shown in (pictures or {}).items():
        figures = [
            f"<figure>{_embedded(name, png)}<figcaption>{escape(name)}</figcaption></figure>"
            for name, png in shown.items()
        ]
        body += [f"<h3>{escape(arm)}</h3>", *figures]
    if samples:
        body.append("<h2>Samples</h2>")
    for arm, records in (samples or {}).items():
        body.append(f"<h3>{escape(arm)}</h3>")
        body += [f"<pre>{escape(_readable(record))}</pre>" for record in records]
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{title}</title>'
        f"\n<style>{STYLE}</style>\n</head>\n<body>\n" + "\n".join(body) + "\n</body>\n</html>\n"
    )


def _embedded(name: str, png: bytes) -> str:
    data = base64.b64encode(png).decode()
    return f'<img alt="{escape(name)}" src="data:image/png;base64,{data}">'


def write_report(folder: AnyPath) -> AnyPath:
    """Write report.md, report.html and the curves' PNGs beside a run's `summary.json`.

    Args:
      folder: `runs/<slug>/<scale>`.

    Returns:
      The path of report.html, which needs no other file.

    Raises:
      FileNotFoundError: there is no `summary.json`.
      ValueError: a broken file; the message names it, and the key or the line.
    """
    summary = read_summary(folder / "summary.json")
    arms = list(summary["arms"])
    logged = plots.logged_metrics(plots.read_history(folder, arms))
    names = [name for name in summary.get("curves", []) if name in logged]
    images = plots.curves(folder, names, arms)
    gold = plots.gold_against_proxy(folder, arms)
    if gold is not None:
        images[GOLD_AGAINST_PROXY] = gold
    paths = {}
    for name, png in images.items():
        paths[name] = f"curve_{re.sub(r'[^A-Za-z0-9.-]+', '_', name)}.png"
        (folder / paths[name]).write_bytes(png)
    samples = read_samples(folder, arms)
    found = find_pictures(folder, arms)
    beside = _each(found, lambda path: path.relative_to(folder).as_posix())
    write_atomic(folder / "report.md", markdown(summary, paths, samples, beside))
    page = folder / "report.html"
    write_atomic(page, html(summary, images, samples, _each(found, lambda path: path.read_bytes())))
    return page


def _each(pictures: Mapping[str, Mapping[str, AnyPath]], read: Callable[[AnyPath], Any]):
    return {
        arm: {name: read(path) for name, path in paths.items()} for arm, paths in pictures.items()
    }


def _tables(summary: Summary) -> list[tuple[str, list[list[str]]]]:
    """The report's tables as (title, rows of text), the header first; empty ones left out."""
    arms, notes = summary["arms"], summary.get("arm_notes", {})
    tables = []
    if summary["claims"]:
        rows = [["verdict", "claim", "difference [95%]", "source", "note"]]
        tables.append(("Claims", rows + [_claim_row(claim) for claim in summary["claims"]]))
    metrics = list(dict.fromkeys(metric for measured in arms.values() for metric in measured))
    noted = any(notes.get(arm) for arm in arms)
    rows = [["arm", *metrics, *(["what it is"] if noted else [])]]
    for arm, measured in arms.items():
        cells = [cell_text(measured.get(metric)) for metric in metrics]
        rows.append([arm, *cells, *([notes.get(arm, "")] if noted else [])])
    count = len(summary["seeds"])
    tables.append((f"Measured: mean [95%] over {count} seed{'s' * (count != 1)}", rows))
    rows = [["arm", "metric", "ours [95%]", "the paper's"]]
    for arm, reported in summary.get("reported", {}).items():
        for metric, value in reported.items():
            ours = cell_text(arms.get(arm, {}).get(metric))
            rows.append([arm, metric, ours, number(value)])
    if len(rows) > 1:
        tables.append((f"Ours at scale {summary['scale']}, beside the paper's numbers", rows))
    return tables


def claim_text(claim: Mapping[str, Any]) -> str:
    """`metric: arm < baseline (margin m)`."""
    baseline, margin = claim["baseline"], claim.get("margin", 0)
    against = baseline if isinstance(baseline, str) else number(baseline)
    text = f"{claim['metric']}: {claim['arm']} {claim['relation']} {against}"
    return f"{text} (margin {number(margin)})" if margin else text


def _claim_row(claim: Mapping[str, Any]) -> list[str]:
    return [
        f"{SYMBOLS[claim['verdict']]} {claim['verdict']}",
        claim_text(claim),
        cell_text({**claim, "mean": claim["difference"]}),
        claim.get("source", ""),
        claim.get("note", ""),
    ]


def cell_text(cell: Mapping[str, Any] | None) -> str:
    """`mean [low, high]`; a dash where nothing was measured, words where it was not finite."""
    if cell is None:
        return "-"
    if cell["mean"] is None:
        return "not finite" if cell.get("values") else "-"
    return f"{number(cell['mean'])} [{number(cell['low'])}, {number(cell['high'])}]"


def number(value: float | int) -> str:
    """Three decimals where they say enough; exponents for the very small, none for the large."""
    size = abs(value)
    if size and size < 1e-3:
        return f"{value:.2e}"
    return f"{value:.3f}" if size < 100 else f"{value:,.1f}"


def facts(summary: Summary) -> str:
    """One line: the paper, the run, the machine."""
    seeds = ", ".join(str(seed) for seed in summary["seeds"])
    versions = ", ".join(f"{name} {text}" for name, text in summary.get("versions", {}).items())
    facts = [
        f"arXiv:{summary['arxiv']}",
        f"{summary['family']}/{summary['slug']}",
        f"scale {summary['scale']}",
        f"seeds {seeds}",
        f"{summary['seconds']:.0f} s" if "seconds" in summary else "",
        summary.get("hardware", ""),
        versions,
        f"commit {summary['commit']}" if summary.get("commit") else "",
    ]
    return " · ".join(fact for fact in facts if fact)


def _undrawn(summary: Summary, images: Mapping[str, Any]) -> list[str]:
    return [name for name in summary.get("curves", []) if name not in images]


def _one_line(text: str) -> str:
    """Text that neither ends a Markdown table's cell nor its row."""
    return " ".join(text.split()).replace("|", "\\|")


def _html_cell(text: str) -> str:
    kind = text[2:] if text[2:] in SYMBOLS else ""
    return (
        f'<td><span class="{kind}">{escape(text)}</span></td>'
        if kind
        else f"<td>{escape(text)}</td>"
    )


def _readable(record: Mapping[str, Any]) -> str:
    """A sample's fields, one after the other; whatever is not text as JSON."""
    lines = []
    for name, field in record.items():
        text = field if isinstance(field, str) else json.dumps(field, ensure_ascii=False)
        if len(text) > LONGEST_FIELD:
            text = f"{text[:LONGEST_FIELD]} … ({len(text) - LONGEST_FIELD} more characters)"
        lines.append(f"{name}: {text}")
    return "\n".join(lines)
