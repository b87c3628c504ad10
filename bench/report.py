"""Tables of committed results: README.md's and docs/'s are rendered from bench/results/*.json, by

    python bench/report.py

which rewrites what stands between `<!-- table: NAME -->` and `<!-- end -->` from NAME.json.
"""

import json
import re
import statistics
from collections.abc import Sequence
from pathlib import Path

from attention_report import attention_table
from bank_report import bank_table
from render import ending, table
from speed_report import decode_table, speed_table

ROOT = Path(__file__).parents[1]
_BLOCK = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
# Each metric's heading, what it is multiplied by, and how many decimals are shown.
_METRICS = {
    "bleu": ("BLEU", 100, 1),
    "nist": ("NIST", 1, 2),
    "meteor": ("METEOR", 100, 1),
    "rouge_l": ("ROUGE-L", 100, 1),
    "cider": ("CIDEr", 1, 2),
}
_HEADS = [heading for heading, _, _ in _METRICS.values()]
# Real E2E test set, OpenAI's weights: the poster (Turner, Ngo, Hu, Parihar), GPT-2 small; the
# paper (Li & Liang), GPT-2 medium, in its first version on arXiv and as published at ACL 2021.
_PUBLISHED = (
    ("poster, prefix", "gpt2", (68.5, 8.71, 44.3, 70.4, 2.34)),
    ("poster, fine-tuning", "gpt2", (70.3, 8.94, 46.2, 72.2, 2.47)),
    ("paper (arXiv v1), prefix", "gpt2-medium", (69.7, 8.81, 46.1, 71.4, 2.49)),
    ("paper (arXiv v1), fine-tuning", "gpt2-medium", (68.2, 8.62, 46.2, 71.0, 2.47)),
    ("paper (ACL), prefix", "gpt2-medium", (70.3, 8.82, 46.3, 72.1, 2.46)),
    ("paper (ACL), fine-tuning", "gpt2-medium", (68.8, 8.71, 46.1, 71.1, 2.43)),
)


def published_table() -> str:
    """Markdown of the published numbers."""
    digits = [digits for _, _, digits in _METRICS.values()]
    rows = (
        (name, model, *(f"{v:.{n}f}" for v, n in zip(values, digits, strict=True)))
        for name, model, values in _PUBLISHED
    )
    return table(("published", "model", *_HEADS), rows)


def methods_table(record: dict) -> str:
    """Markdown of a record of bench/table.py: a line a method and learning rate, over its seeds."""
    rows = record["rows"]
    has_slots = any(row["slot_errors"] is not None for row in rows)
    heads = ["method", "learning rate", "seeds", *_HEADS]
    has_faults = any(row.get("faults") for row in rows)
    heads += ["slots wrong or missing (%)"] if has_slots else []
    heads += ["tables right (%)", "lacking / invented / garbled / repeated"] if has_faults else []
    heads += ["trained", "kept", "training (s)", "peak memory (MB)"]
    lines = []
    for method, lr in dict.fromkeys((row["method"], row["lr"]) for row in rows):
        own = [row for row in rows if (row["method"], row["lr"]) == (method, lr)]
        cells = [method, f"{lr:g}" if lr else "–", str(len(own))]
        cells += _metric_cells(own)
        if has_slots:
            cells.append(_mean_and_spread([100 * row["slot_errors"] for row in own], 1))
        if has_faults:
            cells.append(_mean_and_spread([100 * row["right"] for row in own], 1))
            counts = zip(*(row["faults"].values() for row in own), strict=True)
            cells.append(" / ".join(f"{statistics.fmean(each):.0f}" for each in counts))
        cells += [f"{own[0]['trained']:,}", f"{own[0]['kept']:,}"]
        for name, unit in (("seconds", 1), ("peak_memory", 1e6)):
            known = [row[name] / unit for row in own if row[name] is not None]
            cells.append(_mean_and_spread(known, 0) if known else "–")
        lines.append(cells)
    return f"{table(heads, lines)}\n\n{_measured(record)}"


def ablation_table(record: dict) -> str:
    """Markdown of a record of bench/ablation.py: a line a setting, over its seeds."""
    rows, lines = record["ablation"], []
    for group, setting in dict.fromkeys((row["group"], row["setting"]) for row in rows):
        own = [row for row in rows if (row["group"], row["setting"]) == (group, setting)]
        lines.append([group, setting, str(len(own)), *_metric_cells(own), f"{own[0]['kept']:,}"])
    heads = ("what", "setting", "seeds", *_HEADS, "kept")
    return f"{table(heads, lines)}\n\n{_measured(record)}"


def sentences_table(record: dict) -> str:
    """Markdown of a record of bench/sentences.py: each table, what is said of it and its faults."""
    lines = []
    for number, row in enumerate(record["sentences"], 1):
        wrong = ", ".join(f"{kind}: {what}" for kind, what in row["faults"]) or "right"
        lines += [f"{number}. `{row['table']}`<br>{row['says']}<br>**{wrong}**"]
    right = sum(not row["faults"] for row in record["sentences"])
    count = f"{right} of these {len(lines)} are right."
    how = f"{record['split']} tables, beam {record['beams']}; {record['machine']}"
    lines += ["", f"{count} Measured {record['date']}: {how}; `{record['command']}`."]
    return "\n".join(lines)


def _metric_cells(rows: Sequence[dict]) -> list[str]:
    return [
        _mean_and_spread([factor * row["scores"][name] for row in rows], digits)
        if all(name in row["scores"] for row in rows)
        else "–"
        for name, (_, factor, digits) in _METRICS.items()
    ]


def _measured(record: dict) -> str:
    how = f"beam {record['beams']}" if record["beams"] > 1 else "greedy"
    tables = f"{record['tables']} {record.get('split', 'test')} tables"
    return ending(record, f"{record['model']} on {record['data']}, {tables}, {how}; ")


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


def _mean_and_spread(values: Sequence[float], digits: int) -> str:
    mean = f"{statistics.fmean(values):,.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.{digits}f}"


def rendered(text: str, results: Path = ROOT / "bench" / "results") -> str:
    """README's text with every table block made anew."""

    def block(match: re.Match[str]) -> str:
        if match[2] == "published":
            return f"{match[1]}{published_table()}\n{match[3]}"
        path = results / f"{match[2]}.json"
        if not path.exists():
            return f"{match[1]}Not measured yet.\n{match[3]}"
        record = json.loads(path.read_text(encoding="utf-8"))
        kinds = {
            "decoding": decode_table,  # such a record also names the attention it was taken with
            "attention": attention_table,
            "versions": registers_table,
            "shapes": speed_table,
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
