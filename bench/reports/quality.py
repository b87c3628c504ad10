"""Markdown of the records of table.py, ablation.py and sentences.py, and published numbers."""

import statistics
from collections.abc import Sequence

from reports.render import ending, table

# Each metric's heading, what it is multiplied by, and how many decimals are shown.
_METRICS = {
    "bleu": ("BLEU", 100, 1),
    "nist": ("NIST", 1, 2),
    "meteor": ("METEOR", 100, 1),
    "rouge_l": ("ROUGE-L", 100, 1),
    "cider": ("CIDEr", 1, 2),
}
_HEADS = [heading for heading, _, _ in _METRICS.values()]
_FAULTS = "omitted / invented / garbled / repeated (tables)"
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
    heads += ["tables right (%)", _FAULTS] if has_faults else []
    heads += ["trained parameters", "saved parameters", "training (s)", "peak memory (MB)"]
    lines = []
    for method, lr in dict.fromkeys((row["method"], row["lr"]) for row in rows):
        own = [row for row in rows if (row["method"], row["lr"]) == (method, lr)]
        cells = [_method(method), f"{lr:g}" if lr else "–", str(len(own))]
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
    together = max((row.get("trained_together", 1) for row in rows), default=1)
    note = f"The prefixes of {together} seeds were trained in one run; training time is divided"
    note = f"{note} among them, and peak memory is for the whole run.\n\n" if together > 1 else ""
    return f"{table(heads, lines)}\n\n{note}{_measured(record)}"


def ablation_table(record: dict) -> str:
    """Markdown of a record of bench/ablation.py: a line a setting, over its seeds."""
    rows, lines = record["ablation"], []
    for group, setting in dict.fromkeys((row["group"], row["setting"]) for row in rows):
        own = [row for row in rows if (row["group"], row["setting"]) == (group, setting)]
        lines.append([group, setting, str(len(own)), *_metric_cells(own), f"{own[0]['kept']:,}"])
    heads = ("what", "setting", "seeds", *_HEADS, "saved parameters")
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


def _method(name: str) -> str:
    """A method as tables name it: records count the examples in the frozen model's prompts."""
    return name.replace(" 0 examples", " zero-shot").replace(" examples", "-shot")


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


def _mean_and_spread(values: Sequence[float], digits: int) -> str:
    mean = f"{statistics.fmean(values):,.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.{digits}f}"
