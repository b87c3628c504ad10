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
    heads = " | ".join(heading for heading, _, _ in _METRICS.values())
    lines = [f"| published | model | {heads} |", "|---" * (2 + len(_METRICS)) + "|"]
    for name, model, values in _PUBLISHED:
        shown = (
            f"{value:.{digits}f}"
            for value, (_, _, digits) in zip(values, _METRICS.values(), strict=True)
        )
        lines.append(f"| {name} | {model} | {' | '.join(shown)} |")
    return "\n".join(lines)


def methods_table(record: dict) -> str:
    """Markdown of a record of bench/table.py: a line a method and learning rate, over its seeds."""
    rows = record["rows"]
    has_slots = any(row["slot_errors"] is not None for row in rows)
    heads = ["method", "learning rate", "seeds", *(heading for heading, _, _ in _METRICS.values())]
    heads += ["slots wrong or missing (%)"] if has_slots else []
    heads += ["trained", "kept", "training (s)", "peak memory (MB)"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for method, lr in dict.fromkeys((row["method"], row["lr"]) for row in rows):
        own = [row for row in rows if (row["method"], row["lr"]) == (method, lr)]
        cells = [method, f"{lr:g}" if lr else "–", str(len(own))]
        cells += _metric_cells(own)
        if has_slots:
            cells.append(_mean_and_spread([100 * row["slot_errors"] for row in own], 1))
        cells += [f"{own[0]['trained']:,}", f"{own[0]['kept']:,}"]
        for name, unit in (("seconds", 1), ("peak_memory", 1e6)):
            known = [row[name] / unit for row in own if row[name] is not None]
            cells.append(_mean_and_spread(known, 0) if known else "–")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", _measured(record)])


def ablation_table(record: dict) -> str:
    """Markdown of a record of bench/ablation.py: a line a setting, over its seeds."""
    rows = record["ablation"]
    heads = ["what", "setting", "seeds", *(heading for heading, _, _ in _METRICS.values()), "kept"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for group, setting in dict.fromkeys((row["group"], row["setting"]) for row in rows):
        own = [row for row in rows if (row["group"], row["setting"]) == (group, setting)]
        cells = [group, setting, str(len(own)), *_metric_cells(own), f"{own[0]['kept']:,}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", _measured(record)])


def _metric_cells(rows: Sequence[dict]) -> list[str]:
    return [
        _mean_and_spread([factor * row["scores"][name] for row in rows], digits)
        if all(name in row["scores"] for row in rows)
        else "–"
        for name, (_, factor, digits) in _METRICS.items()
    ]


def _measured(record: dict) -> str:
    how = f"beam {record['beams']}" if record["beams"] > 1 else "greedy"
    what = f"{record['model']} on {record['data']}, {record['tables']} test tables, {how}"
    return f"Measured {record['date']}: {what}; {record['machine']}; `{record['command']}`."


def registers_table(record: dict) -> str:
    """Markdown of the bf16 rows of a record of bench/registers.py."""
    heads = ("kernel", "longest sequence", "prefix rows", "sm_80 registers / spilled / shared",
             "sm_90 registers / spilled / shared")  # fmt: skip
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    found: dict[tuple, dict[str, str]] = {}
    for row in record["rows"]:
        if row["dtype"] == "bf16":
            name = row["kernel"].replace("_kernel", "").replace("_", " ")
            key = (name, row["max_seq_len"], row["prefix_rows"])
            used = (row["registers"], row["spilled_bytes"], row["shared_bytes"])
            found.setdefault(key, {})[row["architecture"]] = " / ".join(f"{n:,}" for n in used)
    for key, by_architecture in found.items():
        cells = (*map(str, key), by_architecture["sm_80"], by_architecture["sm_90"])
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", f"Triton {record['versions']['triton']}."])


def decode_table(record: dict) -> str:
    """Markdown of a record of bench/decode.py."""
    heads = ("beams", "method", "batch p20 / p50 / p80 (s)", "new tokens/s", "times PEFT")
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    tokens = record["batch_size"] * record["new_tokens"]
    rows = record["decoding"]
    for row in rows:
        peer = next(r for r in rows if (r["method"], r["beams"]) == ("PEFT", row["beams"]))
        pairs = zip(peer["seconds"], row["seconds"], strict=True)
        cells = (
            str(row["beams"]),
            row["method"],
            " / ".join(f"{q:.3g}" for q in _quantiles(row["seconds"])),
            f"{tokens / statistics.median(row['seconds']):,.0f}",
            f"{statistics.median(a / b for a, b in pairs):.2f}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    sizes = f"batches of {record['batch_size']}, {record['new_tokens']} new tokens each"
    how = f"{record['dtype']}, {record['attention']} attention"
    rows = f"{record['prefix_length']} prefix rows"
    what = f"{record['model']}, random weights, {how}, {rows}, {sizes}"
    measured = f"Measured {record['date']}: {what}; {record['machine']}; `{record['command']}`."
    return "\n".join([*lines, "", measured])


def speed_table(record: dict) -> str:
    """Markdown of a record of bench/speed.py: a table a model, and what the methods' ratios are."""
    parts = []
    for shape in record["shapes"]:
        heads = ("method", "step p20 / p50 / p80 (ms)", "forward / backward / optimizer (%)",
                 "tokens/s", "share of matmul rate (%)", "peak memory (MB)",
                 "optimizer state (MB)", "the poster's 5 epochs (min)")  # fmt: skip
        lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
        for row in shape["rows"]:
            split = (f"{100 * share:.0f}" for share in row["shares"].values())
            peak = row["peak_memory"]
            cells = (
                row["method"],
                " / ".join(f"{1e3 * q:,.4g}" for q in _quantiles(row["seconds"])),
                " / ".join(split),
                f"{row['tokens_per_second']:,.0f}",
                f"{100 * row['utilisation']:.0f}",
                "–" if peak is None else f"{peak / 1e6:,.0f}",
                f"{row['optimizer_bytes'] / 1e6:,.1f}",
                f"{row['poster_minutes']:,.1f}",
            )
            lines.append(f"| {' | '.join(cells)} |")
        by_name = {row["method"]: row for row in shape["rows"]}
        lines.append("")
        for slow, fast in (
            ("fine-tuning", "prefix"),
            ("PEFT prefix", "prefix"),
            ("transformers fine-tuning", "fine-tuning"),
        ):
            if slow in by_name:
                pairs = zip(by_name[slow]["seconds"], by_name[fast]["seconds"], strict=True)
                low, middle, high = _quantiles([a / b for a, b in pairs])
                lines.append(f"- {slow} / {fast}: {middle:.2f} ({low:.2f} to {high:.2f})")
        floor = by_name["fine-tuning"]["flops"] / by_name["prefix"]["flops"]
        lines.append(f"- by arithmetic alone fine-tuning / prefix would be {floor:.2f}")
        if (peers_too := shape.get("peers_keep_memory")) is not None:
            rest = "the peers do too, by a flag" if peers_too else "the peers' scripts do not"
            lines.append(f"- ours keep the memory they free (glibc's mallopt), and {rest}")
        for row in shape["rows"]:
            if graphs := row.get("graphs"):
                lines.append(
                    f"- {row['method']}: steps are CUDA graphs, {graphs['count']} of them, captured"
                    f" in {graphs['seconds']:.1f} s before; its shares are from a pass without them"
                )
        what = f"{shape['model']}, {shape['dtype']}, {shape['attention']} attention"
        sizes = f"batches of {shape['batch_size']}, {shape['prefix_length']} prefix rows"
        parts.append(f"**{what}**, {sizes}:\n\n" + "\n".join(lines))
    measured = f"Measured {record['date']}: {record['machine']}; `{record['command']}`."
    return "\n\n".join([*parts, measured])


def _quantiles(values: Sequence[float]) -> tuple[float, float, float]:
    """p20, p50, p80."""
    fifths = statistics.quantiles(values, n=5, method="inclusive")
    return fifths[0], statistics.median(values), fifths[3]


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
            "rows": methods_table,
        }
        table = next(render for key, render in kinds.items() if key in record)
        return f"{match[1]}{table(record)}\n{match[3]}"

    return _BLOCK.sub(block, text)


PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))

if __name__ == "__main__":
    for page in PAGES:
        page.write_text(rendered(page.read_text(encoding="utf-8")), encoding="utf-8")
