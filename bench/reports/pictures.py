"""Pictures of benchmark results, by matplotlib (the `plots` extra)."""

import statistics
from pathlib import Path

from matplotlib.figure import Figure

_COLOURS = {"prefix": "tab:blue", "PEFT prefix": "lightsteelblue",
            "fine-tuning": "tab:orange", "transformers fine-tuning": "bisque"}  # fmt: skip


def speed_chart(record: dict, path: Path) -> None:
    """Median milliseconds of a step, a bar a method, a group a model."""
    shapes = record["shapes"]
    figure = Figure(figsize=(7, 1 + 1.6 * len(shapes)), layout="constrained")
    for place, shape in enumerate(shapes):
        axes = figure.add_subplot(len(shapes), 1, place + 1)
        rows = shape["rows"][::-1]
        names = [row["method"] for row in rows]
        medians = [1e3 * statistics.median(row["seconds"]) for row in rows]
        bars = axes.barh(names, medians, color=[_COLOURS.get(name, "silver") for name in names])
        axes.bar_label(bars, [f"{value:,.4g} ms" for value in medians], padding=3)
        axes.set_xlim(0, 1.15 * max(medians))
        axes.set_title(f"{shape['model']}, batch {shape['batch_size']}, {shape['dtype']}")
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[-1].set_xlabel("a training step, median (ms)")
    figure.savefig(path, dpi=120)


def length_curve(record: dict, path: Path) -> None:
    """BLEU by the number of prefix rows, mean and spread over seeds."""
    rows = [row for row in record["ablation"] if row["group"] == "length"]
    lengths = sorted({int(row["setting"]) for row in rows})
    scores = [
        [100 * row["scores"]["bleu"] for row in rows if int(row["setting"]) == n] for n in lengths
    ]
    means = [statistics.fmean(own) for own in scores]
    spread = [statistics.stdev(own) if len(own) > 1 else 0.0 for own in scores]
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot()
    axes.errorbar(lengths, means, yerr=spread if any(spread) else None, fmt="o-", capsize=3)
    axes.set_xscale("log")
    axes.set_xticks(lengths, [str(n) for n in lengths])
    axes.minorticks_off()
    axes.set_xlabel("prefix rows per layer")
    axes.set_ylabel("BLEU on the test set")
    axes.set_title(f"{record['model']} on {record['data']}")
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
