"""Pictures of a run, by matplotlib (the `plots` extra)."""

import io
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING

from mingpt_prefix.checkpoints.atomic_write import write_atomically
from mingpt_prefix.config import TrainConfig
from mingpt_prefix.errors import printable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SMOOTHING_STEPS = 100
_MOST_NAMED = 16  # curves in a legend


def title_of(config: TrainConfig) -> str:
    """What stands above the picture of a run."""
    return f"{config.mode}, {config.model} on {', '.join(config.data)}"


def save_loss_curve(log: Sequence[dict], path: Path, title: str) -> bool:
    """Draw the losses of log.jsonl's lines to a PNG; False without lines or matplotlib, and where
    it cannot be drawn, which is told on stderr."""
    return bool(log) and _saved(path, lambda: _loss_curve(log, title))


def save_sweep(logs: dict[str, Sequence[dict]], members: list[dict], path: Path) -> bool:
    """Draw the curves of a sweep's members, by what they are called, over each other; and their
    best dev losses by the swept setting, if one is a number. False as `save_loss_curve`."""
    logs = {name: log for name, log in logs.items() if log}
    return bool(logs) and _saved(path, lambda: _curves(logs, members))


def _saved(path: Path, draw: Callable[[], "Figure"]) -> bool:
    drawn = io.BytesIO()
    try:
        draw().savefig(drawn, format="png", dpi=120)
        write_atomically(path, drawn.getvalue())
    except ImportError:
        return False
    except Exception as error:  # matplotlib's, by a backend or a file of settings that it refuses
        why = printable(f"{type(error).__name__}: {error}", 200)
        print(f"{path.name} cannot be drawn: {why}", file=sys.stderr)
        return False
    return True


def _loss_curve(log: Sequence[dict], title: str) -> "Figure":
    from matplotlib.figure import Figure

    steps, losses = [line["step"] for line in log], [line["loss"] for line in log]
    dev = [(line["step"], line["dev_loss"]) for line in log if "dev_loss" in line]
    means, window = _smoothed(losses)
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
    return figure


def _smoothed(losses: Sequence[float]) -> tuple[list[float], int]:
    """The mean of each loss and of those before it, and of how many at most."""
    window = max(1, min(_SMOOTHING_STEPS, len(losses) // 10))
    means, total = [], 0.0
    for index, loss in enumerate(losses):
        total += loss - (losses[index - window] if index >= window else 0.0)
        means.append(total / min(index + 1, window))
    return means, window


def _curves(logs: dict[str, Sequence[dict]], members: list[dict]) -> "Figure":
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    setting, points = _best_by_number(members)
    figure = Figure(figsize=(12 if points else 7, 4), layout="constrained")
    axes, *others = figure.subplots(1, 2 if points else 1, squeeze=False)[0]
    for number, (name, log) in enumerate(logs.items()):
        color = colormaps["viridis"](number / max(1, len(logs) - 1))
        axes.plot(*zip(*_curve(log), strict=True), color=color, label=name, linewidth=1)
    axes.set_xlabel("step")
    axes.set_ylabel("dev loss, or training loss if there is none")
    if len(logs) <= _MOST_NAMED:
        axes.legend(fontsize="x-small")
    for by_setting in others:
        values = sorted({value for value, _ in points})
        means = [mean(loss for value, loss in points if value == v) for v in values]
        by_setting.plot(*zip(*points, strict=True), "o", color="tab:blue", alpha=0.5)
        by_setting.plot(values, means, color="tab:blue", label="mean")
        if values[0] > 0 and values[-1] > 10 * values[0]:
            by_setting.set_xscale("log")
        by_setting.set_xlabel(setting)
        by_setting.set_ylabel("best dev loss")
        by_setting.legend()
    for each in (axes, *others):
        each.grid(alpha=0.3)
    return figure


def _curve(log: Sequence[dict]) -> list[tuple[int, float]]:
    """Steps and dev losses; without those, smoothed training losses."""
    dev = [(line["step"], line["dev_loss"]) for line in log if "dev_loss" in line]
    means, _ = _smoothed([line["loss"] for line in log])
    return dev or list(zip((line["step"] for line in log), means, strict=True))


def _best_by_number(members: list[dict]) -> tuple[str, list[tuple[float, float]]]:
    """The first swept setting of several numbers, other than the seed, and the best dev losses by
    it; none if there is no such setting."""
    found = [each for each in members if each.get("result", {}).get("best_dev_loss") is not None]
    for name in found[0]["settings"] if found else ():
        try:
            values = [float(each["settings"][name]) for each in found]
        except ValueError:
            continue
        if name != "seed" and len(set(values)) > 1:
            losses = [each["result"]["best_dev_loss"] for each in found]
            return name, list(zip(values, losses, strict=True))
    return "", []
