"""Tables of committed results: README.md's are rendered from bench/results/*.json, by

    python bench/report.py

which rewrites what stands between `<!-- table: NAME -->` and `<!-- end -->` from NAME.json.
"""

import json
import re
import statistics
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
_BLOCK = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def methods_table(record: dict) -> str:
    """Markdown of a record of bench/table.py: a line a method and learning rate, over its seeds."""
    lines = [
        "| method | learning rate | seeds | BLEU | slots wrong or missing (%) |",
        "|---|---|---|---|---|",
    ]
    rows = record["rows"]
    for method, lr in dict.fromkeys((row["method"], row["lr"]) for row in rows):
        own = [row for row in rows if (row["method"], row["lr"]) == (method, lr)]
        wrong = [100 * row["slot_errors"] for row in own if row["slot_errors"] is not None]
        cells = (
            method,
            f"{lr:g}" if lr else "–",
            str(len(own)),
            _mean_and_spread([100 * row["bleu"] for row in own]),
            _mean_and_spread(wrong) if wrong else "–",
        )
        lines.append(f"| {' | '.join(cells)} |")
    measured = f"{record['date']}, {record['machine']}, torch {record['torch']}"
    return "\n".join([*lines, "", f"Measured {measured}: `{record['command']}`."])


def _mean_and_spread(values: Sequence[float]) -> str:
    mean = statistics.fmean(values)
    return f"{mean:.1f}" if len(values) == 1 else f"{mean:.1f} ± {statistics.stdev(values):.1f}"


def rendered(text: str, results: Path = ROOT / "bench" / "results") -> str:
    """README's text with every table block made anew."""

    def block(match: re.Match[str]) -> str:
        record = json.loads((results / f"{match[2]}.json").read_text(encoding="utf-8"))
        return f"{match[1]}{methods_table(record)}\n{match[3]}"

    return _BLOCK.sub(block, text)


if __name__ == "__main__":
    readme = ROOT / "README.md"
    readme.write_text(rendered(readme.read_text(encoding="utf-8")), encoding="utf-8")
