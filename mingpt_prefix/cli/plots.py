"""Pictures of a run, by matplotlib (the `plots` extra)."""

import io
import sys
from collections.abc import Sequence
from pathlib import Path

from mingpt_prefix.checkpoints.atomic_write import write_atomically
from mingpt_prefix.errors import printable

_SMOOTHING_STEPS = 100


def save_loss_curve(log: Sequence[dict], path: Path, title: str) -> bool:
    """Draw the losses of log.jsonl's lines to a PNG; False without lines or matplotlib, and where
    it cannot be drawn, which is told on stderr."""
    if not log:
        return False
    try:
        write_atomically(path, _png(log, title))
    except ImportError:
        return False
    except Exception as error:  # matplotlib's, by a backend or a file of settings that it refuses
        why = printable(f"{type(error).__name__}: {error}", 200)
        print(f"{path.name} cannot be drawn: {why}", file=sys.stderr)
        return False
    return True


def _png(log: Sequence[dict], title: str) -> bytes:
    from matplotlib.figure import Figure

    steps, losses = [line["step"] for line in log], [line["loss"] for line in log]
    dev = [(line["step"], line["dev_loss"]) for line in log if "dev_loss" in line]
    window = max(1, min(_SMOOTHING_STEPS, len(losses) // 10))
    means, total = [], 0.0
    for index, loss in enumerate(losses):
        total += loss - (losses[index - window] if index >= window else 0.0)
        means.append(total / min(index + 1, window))
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot(steps, losses, color="tab:blue", alpha=0.35, linewidth=0.6)
    axes.plot(steps, means, color="tab:blue", label=f"training (mean of {window})")
    if dev:
        axes.plot(*zip(*dev, strict=True), "o-", color="tab:orange", label="dev")
    # The first few losses would squeeze the rest of the curve into a line.
    axes.set_ylim(0.95 * min(losses), 1.05 * max(means[len(means) // 20 :]))
    axes.set_title(title)
    axes.set_xlabel("step")
    axes.set_ylabel("loss (nats per target token)")
    axes.legend()
    axes.grid(alpha=0.3)
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=120)
    return drawn.getvalue()
