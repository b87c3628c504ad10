"""Tables of committed results: README.md's and docs/'s are rendered from bench/results/*.json, and
those of flags from the programs' dataclasses, by

    python bench/report.py

which rewrites what stands between `<!-- table: NAME -->` and `<!-- end -->` from NAME.json.
"""

import json
import re
from pathlib import Path

from reports.attention import attention_table
from reports.bank import bank_table
from reports.flags import flags_tables
from reports.quality import ablation_table, methods_table, published_table, sentences_table
from reports.render import table
from reports.speed import decode_table, speed_table, sweep_table

ROOT = Path(__file__).parents[1]
_BLOCK = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def registers_table(record: dict) -> str:
    """Markdown of the bf16 rows of a record of bench/registers.py."""
    heads = ("kernel", "longest sequence", "prefix rows", "sm_80 registers / spilled / shared",
             "sm_90 registers / spilled / shared")  # fmt: skip
    found: dict[tuple, dict[str, str]] = {}
    for row in record["rows"]:
        if row["dtype"] == "bf16":
            name = row["kernel"].replace("_kernel", "").replace("_", " ")
            key = (name, row["max_seq_len"], row["prefix_rows"])
            used = (row["registers"], row["spilled_bytes"], row["shared_bytes"])
            found.setdefault(key, {})[row["architecture"]] = " / ".join(f"{n:,}" for n in used)
    rows = ((*map(str, key), used["sm_80"], used["sm_90"]) for key, used in found.items())
    return f"{table(heads, rows)}\n\nTriton {record['versions']['triton']}."


def rendered(text: str, results: Path = ROOT / "bench" / "results") -> str:
    """README's text with every table block made anew."""

    def block(match: re.Match[str]) -> str:
        if match[2] == "published":
            return f"{match[1]}{published_table()}\n{match[3]}"
        if match[2].startswith("flags_"):
            return f"{match[1]}{flags_tables(match[2].removeprefix('flags_'))}\n{match[3]}"
        path = results / f"{match[2]}.json"
        if not path.exists():
            return f"{match[1]}Not measured yet.\n{match[3]}"
        record = json.loads(path.read_text(encoding="utf-8"))
        kinds = {
            "decoding": decode_table,  # such a record also names the attention it was taken with
            "attention": attention_table,
            "versions": registers_table,
            "shapes": speed_table,
            "sweeps": sweep_table,
            "ablation": ablation_table,
            "calls": bank_table,
            "sentences": sentences_table,
            "rows": methods_table,
        }
        shown = next(render for key, render in kinds.items() if key in record)
        return f"{match[1]}{shown(record)}\n{match[3]}"

    return _BLOCK.sub(block, text)


PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))

if __name__ == "__main__":
    for page in PAGES:
        page.write_text(rendered(page.read_text(encoding="utf-8")), encoding="utf-8")
