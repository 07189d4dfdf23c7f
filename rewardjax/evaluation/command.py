"""`rewardjax evaluate`: a protocol's figures on a file of scores."""

import argparse
import json
import sys
from pathlib import Path


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of `evaluate`."""
    parser.add_argument(
        "protocol", help="pairs, reward-bench-2, consistency, ... (docs/evaluation.md)"
    )
    parser.add_argument("file", type=Path, help="JSON lines, plain or .gz")
    parser.add_argument("--json", action="store_true", help="print a JSON object")


def evaluate_command(arguments: argparse.Namespace) -> int:
    """Print the figures; 0 when done, 2 for a mistake in the command or the file."""
    # Here, so that --help answers at once.
    from rewardjax.evaluation.protocols import evaluate

    try:
        figures = evaluate(arguments.protocol, arguments.file)
    except (OSError, ValueError, ImportError) as error:
        print(f"rewardjax: error: {error}", file=sys.stderr)
        return 2
    if arguments.json:
        print(json.dumps(figures, indent=2))
    else:
        width = max(map(len, figures))
        for name, value in figures.items():
            print(f"{name:{width}}  {value:.4f}")
    return 0
