"""From `--sweep` to the settings of its members."""

import itertools
import math
import re
from dataclasses import dataclass, fields, replace
from typing import get_args, get_type_hints

from mingpt_prefix.cli.settings import resolve
from mingpt_prefix.cli.terminal import parse
from mingpt_prefix.cli.train_args import TrainArgs
from mingpt_prefix.config import TrainConfig, flag_name
from mingpt_prefix.errors import ConfigError, MingptPrefixError, printable

MOST_MEMBERS = 1_000
_SWEPT = (
    "prefix_length reparam placement depth init_text init init_prefix prefix_dropout lr epochs"
    " max_steps limit_examples batch_size micro_batch_size optimizer weight_decay warmup evals seed"
    " data input_template text_field".split()
)
_OTHERS = [field.name for field in fields(TrainArgs) if field.name not in _SWEPT]


@dataclass
class Plan:
    """A member: the name of its folder, what the sweep sets, as it was written, and all of it."""

    name: str
    settings: dict[str, str]
    config: TrainConfig


def plan_sweep(args: TrainArgs) -> tuple[list[Plan], str]:
    """All combinations of what `args.sweep` sets, and a line that says what was chosen and why.

    Raises:
        ConfigError: for a setting that is unknown, shared by all members or set twice, for too many
            members, and, naming the combination, for settings that do not go together.
    """
    if args.mode not in (None, "prefix"):
        why = "members share a frozen model, and differ in their prefixes alone"
        raise ConfigError(f"--sweep is for --mode prefix, not {args.mode}: {why}")
    if args.shard:
        raise ConfigError("--shard is not for --sweep: its members share a whole model")
    if args.sweep_width is not None and args.sweep_width < 1:
        raise ConfigError(f"sweep-width must be positive, not {args.sweep_width}")
    if args.log is not None:
        raise ConfigError(f"--log {args.log} is not for --sweep")
    swept: dict[str, list[str]] = {}
    for text in args.sweep:
        name, values = _setting(text, args)
        if name in swept:
            raise ConfigError(f"--sweep {name}: it is swept twice")
        swept[name] = values
    if (count := math.prod(map(len, swept.values()))) > MOST_MEMBERS:
        raise ConfigError(f"--sweep: {count:,} members; it may have {MOST_MEMBERS:,}")
    changes = [_changes(name, values) for name, values in swept.items()]
    args, plans, line = replace(args, sweep=(), sweep_width=None), [], ""
    for chosen in itertools.product(*(each.items() for each in changes)):
        settings = dict(zip(swept, (text for text, _ in chosen), strict=True))
        own = {name: value for _, change in chosen for name, value in change.items()}
        try:
            config, why = resolve(replace(args, **own))
        except MingptPrefixError as error:
            raise ConfigError(f"--sweep {label(settings)}: {error}") from None
        line = line or why
        # Found out once: the others have the same.
        args = replace(args, model=config.model)
        plans.append(Plan(_folder_name(settings, {p.name for p in plans}), settings, config))
    return plans, line


def label(settings: dict[str, str]) -> str:
    """A member's settings in words."""
    return " ".join(f"{name}={printable(value)}" for name, value in settings.items())


def _setting(text: str, args: TrainArgs) -> tuple[str, list[str]]:
    """What `--sweep NAME=VALUE,VALUE` names, and the values as they are written."""
    name, equals, rest = text.partition("=")
    name, values = name.strip("-").replace("-", "_"), rest.split(",")
    if not equals or "" in values:
        raise ConfigError(f"--sweep {printable(text)}: expected a setting, =, and values: seed=0,1")
    if name in _OTHERS:
        raise ConfigError(f"--sweep {name}: it is the same for all members of a sweep")
    if name not in _SWEPT:
        known = ", ".join(sorted(_SWEPT))
        raise ConfigError(f"--sweep {printable(name)}: no such setting; those are {known}")
    if any(getattr(args, field) != getattr(TrainArgs, field) for field in _fields(name)):
        raise ConfigError(f"--{flag_name(name)} and --sweep {name} exclude each other")
    return name, values


def _fields(name: str) -> tuple[str, ...]:
    """The flags that give a setting."""
    return ("reparam", "no_reparam") if name == "reparam" else (name,)


def _changes(name: str, values: list[str]) -> dict[str, dict[str, object]]:
    """What each of the values changes in the flags. Raises ConfigError for a value given twice."""
    hint = get_type_hints(TrainArgs)[name]
    kind = next((each for each in get_args(hint) if each is not type(None)), hint)
    if name == "data":
        read = [(value,) for value in values]
    else:
        try:
            texts = [value.capitalize() for value in values] if kind is bool else values
            read = tuple(parse(kind, [text], "train.py", "") for text in texts)
        except ConfigError as error:
            raise ConfigError(f"--sweep {name}: {error}") from None
    for index, value in enumerate(read):
        if value in read[:index]:
            raise ConfigError(f"--sweep {name}: {printable(values[index])} is given twice")
    of_each = zip(values, read, strict=True)
    if name == "reparam":
        return {text: {"reparam": value, "no_reparam": not value} for text, value in of_each}
    return {text: {name: value} for text, value in of_each}


def _folder_name(settings: dict[str, str], taken: set[str]) -> str:
    """Such as "prefix_length=5,seed=0"; what has no place in a file's name is left out."""
    name = ",".join(f"{name}={value}" for name, value in settings.items())
    name = re.sub(r"[^\w.,=+-]+", "-", name)[:100]
    while name in taken:
        name += "_"
    return name
