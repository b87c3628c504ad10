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
        bars = axes.barh(names, medians, color=[_COLOURS[name] for name in names])
        axes.bar_label(bars, [f"{value:,.4g} ms" for value in medians], padding=3)
        axes.set_xlim(0, 1.15 * max(medians))
        axes.set_title(f"{shape['model']}, batch {shape['batch_size']}, {shape['dtype']}")
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[-1].set_xlabel("a training step, median (ms)")
    figure.savefig(path, dpi=120)
