"""Many prefixes in one run: `python train.py --mode prefix --sweep prefix_length=1,5 seed=0,1,2`.

A sweep's folder holds `sweep.json`, `sweep.png`, and a folder per member, like that of a run of
its own. Under torchrun each rank trains some of the members, and the ranks exchange nothing.
"""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mingpt_prefix.accel.distributed import World
from mingpt_prefix.accel.environment import keep_freed_memory
from mingpt_prefix.checkpoints.atomic_write import write_atomically
from mingpt_prefix.checkpoints.file_kinds import SWEEP_FILE
from mingpt_prefix.checkpoints.pretrained import load_base
from mingpt_prefix.checkpoints.resuming import config_from_json
from mingpt_prefix.checkpoints.run_folder import RUNS, RunFolder, next_folder, read_run
from mingpt_prefix.cli.plots import save_loss_curve, save_sweep, title_of
from mingpt_prefix.cli.progress import (
    resume_command,
    sample_command,
    stop_signals,
    training_bar,
    warn_of_changes,
)
from mingpt_prefix.cli.sweep_args import label, plan_sweep
from mingpt_prefix.cli.terminal import say
from mingpt_prefix.cli.train_args import TrainArgs
from mingpt_prefix.errors import (
    AdapterError,
    CheckpointError,
    ConfigError,
    MingptPrefixError,
    shown,
)
from mingpt_prefix.evaluation.training_run import end_run
from mingpt_prefix.sweep.members import (
    Shared,
    is_over,
    make_folder,
    open_members,
    score_before,
    train_members,
)
from mingpt_prefix.sweep.width import rough_size, width_by_memory


@dataclass
class Sweep:
    """A sweep's folder, and the content of its `sweep.json`: "members", each with its "folder" and
    "settings", and at the end its outcome; and "width", how many are trained at once."""

    folder: Path
    content: dict

    @property
    def members(self) -> list[Path]:
        return [self.folder / each["folder"] for each in self.content["members"]]

    @property
    def is_over(self) -> bool:
        return all("result" in each or "stopped" in each for each in self.content["members"])

    def write(self) -> None:
        text = json.dumps(self.content, indent=2) + "\n"
        write_atomically(self.folder / SWEEP_FILE, text.encode())


def is_sweep(folder: Path | None) -> bool:
    return folder is not None and (folder / SWEEP_FILE).is_file()


def read_sweep(folder: Path) -> Sweep:
    """Raises CheckpointError if sweep.json is damaged."""
    try:
        content = json.loads((folder / SWEEP_FILE).read_text(encoding="utf-8"))
        sweep = Sweep(folder, content)
        if int(content["width"]) < 1 or not sweep.members:
            raise ValueError
        return sweep
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        raise CheckpointError(f"{shown(folder / SWEEP_FILE)}: damaged") from None


def run_sweep(args: TrainArgs, world: World) -> int:
    """Train all members; returns the exit code."""
    started = time.monotonic()
    sweep, shared = resume_sweep(args, world) if args.resume else begin_sweep(args, world)
    if shared.model.device.type == "cpu":
        keep_freed_memory()
    own, width, number = world.share(sweep.members), sweep.content["width"], 0
    try:
        for first in range(0, len(own), width):
            number = number or train_some(own[first : first + width], shared)
    except (AdapterError, CheckpointError) as error:  # what was saved before stays
        raise CheckpointError(f"{error}; to continue: {resume_command(sweep.folder)}") from None
    number = world.largest(number)  # once all ranks are done
    if number:
        say("Stopped, and saved. To continue:")
        say(resume_command(sweep.folder))
        return 128 + number
    return report(sweep, shared, time.monotonic() - started) if world.is_main else 0


def begin_sweep(args: TrainArgs, world: World) -> tuple[Sweep, Shared]:
    """A new sweep's folder, with those of its members; checks everything before it writes."""
    plans, why = plan_sweep(args)
    say(why)
    first = plans[0].config
    shared = Shared(load_base(first), first, world)
    sizes, steps = [], []
    for plan in plans:
        try:
            plan.config = shared.completed(plan.config)
            trainer = shared.trainer(plan.config)
        except MingptPrefixError as error:
            raise ConfigError(f"--sweep {label(plan.settings)}: {error}") from None
        sizes.append(rough_size(trainer))
        steps.append(trainer.total_steps)
    for note in filter(None, shared.notes):
        say(note)
    width = args.sweep_width
    if width is None:
        largest = plans[sizes.index(max(sizes))].config
        shares = world.size if first.device == "cpu" else 1
        width = width_by_memory(shared.trainer(largest), shares)
    width = min(width, len(plans))
    many = f"{len(plans)} prefix{'es' * (len(plans) > 1)}"
    say(f"{many}, {width} at once, of {_range(steps)} steps each.")
    folder = _make_sweep_folder(args.out, first.model, world)
    members = [{"folder": plan.name, "settings": plan.settings} for plan in plans]
    sweep = Sweep(folder, {"width": width, "members": members})
    if world.is_main:
        for plan in plans:
            make_folder(folder / plan.name, plan.config, shared)
        sweep.write()
    world.wait()
    return sweep, shared


def _range(numbers: Sequence[int]) -> str:
    low, high = min(numbers), max(numbers)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _make_sweep_folder(out: Path | None, model: str, world: World) -> Path:
    """The folder `out`, or a new one, made by the first rank.

    Raises:
        CheckpointError: if it is not empty.
    """
    if out is None:
        stem = f"sweep-{Path(model).name}"
        made = next_folder(stem) if world.is_main else Path("0")
        number = world.largest(int(made.name.rpartition("-")[2]))
        return made if world.is_main else RUNS / f"{stem}-{number}"
    if world.is_main:
        out.mkdir(parents=True, exist_ok=True)
        if any(out.iterdir()):
            raise CheckpointError(f"{shown(out)}: not empty; name a new --out, or --resume it")
    return out


def resume_sweep(args: TrainArgs, world: World) -> tuple[Sweep, Shared]:
    """The sweep in `args.resume`.

    Raises:
        ConfigError: if any other flag is given.
        CheckpointError: if it has ended, or is damaged.
    """
    if args != TrainArgs(resume=args.resume):
        raise ConfigError("--resume of a sweep takes no other flags")
    sweep = read_sweep(args.resume)
    if sweep.is_over:
        raise CheckpointError(f"{args.resume}: this sweep has finished; nothing is left to do")
    config = config_from_json(read_run(sweep.members[0])["config"])
    say(f"Continuing the sweep of {len(sweep.members)} prefixes in {args.resume}.")
    return sweep, Shared(load_base(config), config, world)


def train_some(folders: Sequence[Path], shared: Shared) -> int:
    """Train the members in `folders` together; returns the signal that stopped them, or 0."""
    if all(map(is_over, folders)):
        return 0
    for folder in folders:
        score_before(folder, shared)
    members, changed = open_members(folders, shared)
    if changed:
        warn_of_changes(changed)
    longest = max((m.trainer for m in members), key=lambda trainer: trainer.total_steps)
    with stop_signals() as caught, training_bar(longest) as show:
        number = train_members(members, shared.world, lambda: caught[0] if caught else 0, show)
    for member in members if not number else []:
        if is_over(member.run.path):
            continue
        seconds = None if member.was_resumed else member.seconds
        end_run(member.trainer, member.task, member.run, seconds)
        title = title_of(member.trainer.config)
        save_loss_curve(member.run.read_log(), member.run.picture, title)
    return number


def report(sweep: Sweep, shared: Shared, seconds: float) -> int:
    """Complete sweep.json, draw the picture, and print each member's outcome."""
    logs = {}
    for each, folder in zip(sweep.content["members"], sweep.members, strict=True):
        content, log = read_run(folder), RunFolder(folder).read_log()
        logs[label(each["settings"])] = log
        if "stopped" in content and content["result"] is None:
            each["stopped"] = content["stopped"]
            continue
        each["result"] = {name: content["result"].get(name) for name in ("best_step", "dev_bleu")}
        dev = [line["dev_loss"] for line in log if "dev_loss" in line]
        each["result"]["best_dev_loss"] = min(dev, default=None)
    sweep.write()
    members = sweep.content["members"]
    drawn = save_sweep(logs, members, sweep.folder / "sweep.png")
    say(f"Trained in {seconds:.0f} s:")
    for line in table(members):
        say(f"  {line}")
    files = ", sweep.json and sweep.png" if drawn else " and sweep.json"
    say(f"Saved {sweep.folder}, with a folder for each member{files}.")
    ended = [each for each in members if "result" in each]
    if not ended:
        return 2
    best = min(ended, key=lambda each: each["result"]["best_dev_loss"] or 0)
    folder = sweep.folder / best["folder"]
    config = config_from_json(read_run(folder)["config"])
    say(f"Next: {sample_command(config, shared.model, folder, shared.task(config).task.example)}")
    return 0


def table(members: Sequence[dict]) -> list[str]:
    """Each member's outcome on a line, under a header."""
    rows = [("setting", "best dev loss", "at step", "dev BLEU")]
    for each in members:
        name = label(each["settings"])
        if "result" not in each:
            rows.append((name, f"stopped at {each['stopped']['why']}", "", ""))
            continue
        result = each["result"]
        loss, score = result["best_dev_loss"], result["dev_bleu"]
        loss = "–" if loss is None else f"{loss:.4f}"
        score = "–" if score is None else f"{100 * score:.1f}"
        rows.append((name, loss, str(result["best_step"]), score))
    wide = max(len(row[0]) for row in rows)
    return [f"{a:<{wide}}  {b:>13}  {c:>7}  {d:>8}".rstrip() for a, b, c, d in rows]
