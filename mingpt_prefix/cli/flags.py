"""Flags as dataclasses: the groups, sentences and defaults that --help and docs/reference.md show.

A dataclass of flags is put together from base classes, each a group whose docstring is its title.
The sentence below a field is its help. `DEFAULTS`, a class variable, says in words what None means.
"""

import dataclasses
import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar, get_args, get_type_hints

import docstring_parser
from tyro.conf import Positional, arg

from mingpt_prefix.config import Mode, flag_name
from mingpt_prefix.errors import printable

T = TypeVar("T")

# Names that users of PEFT and transformers know, and ours.
FOREIGN = {
    "adapter": "prefix",
    "auto-find-batch-size": "batch-size",
    "base-model-name-or-path": "model",
    "bf16": "dtype",
    "dataset": "data",
    "dataset-name": "data",
    "do-sample": "temperature",
    "eval-steps": "evals",
    "fp16": "dtype",
    "gradient-checkpointing": "grad-checkpoint",
    "hidden-dropout": "dropout",
    "learning-rate": "lr",
    "lora-r": "lora-rank",
    "max-length": "max-new-tokens",
    "max-train-samples": "limit-examples",
    "min-length": "min-new-tokens",
    "model-name-or-path": "model",
    "num-beams": "beams",
    "num-epochs": "epochs",
    "num-train-epochs": "epochs",
    "num-virtual-tokens": "prefix-length",
    "optim": "optimizer",
    "output-dir": "out",
    "peft-type": "mode",
    "per-device-train-batch-size": "micro-batch-size",
    "prefix-projection": "reparam",
    "prompt-tuning-init-text": "init-text",
    "r": "lora-rank",
    "resume-from-checkpoint": "resume",
    "target-column": "text-field",
    "target-modules": "lora-targets",
    "text-column": "text-field",
    "torch-dtype": "dtype",
    "train-batch-size": "batch-size",
    "train-file": "data",
    "warmup-ratio": "warmup",
}


@dataclass(frozen=True)
class Flag:
    """One flag: its field, the type with tyro's marks, its sentence, and its default in words."""

    name: str
    kind: Any
    value: Any
    help: str
    default: str

    @property
    def option(self) -> str:
        """As it is written on the command line."""
        if Positional in getattr(self.kind, "__metadata__", ()):
            return self.name.upper()
        return f"--{flag_name(self.name.rstrip('_'))}"


def groups_of(kind: type, names: Sequence[str] = ()) -> Iterator[tuple[str, list[Flag]]]:
    """(title, flags) of each group of `kind`, or of those with these titles, in this order."""
    hints = get_type_hints(kind, include_extras=True)
    words = getattr(kind, "DEFAULTS", {})
    values = {field.name: field.default for field in dataclasses.fields(kind)}
    groups = {}
    for base in kind.__mro__:
        own = [name for name in vars(base).get("__annotations__", {}) if name in values]
        said = (
            {
                p.arg_name: p.description or ""
                for p in docstring_parser.parse_from_object(base).params
            }
            if own
            else {}
        )
        flags = [
            Flag(
                name, hints[name], values[name], " ".join(said.get(name, "").split()),
                words.get(name, in_words(values[name])),
            )
            for name in own
        ]  # fmt: skip
        if flags:
            groups[base.__doc__] = flags
    return ((name, groups[name]) for name in names or groups)


def in_words(value: object) -> str:
    """A default as help shows it; "" where there is nothing to say."""
    if isinstance(value, bool):
        return "on" if value else "off"
    if value is dataclasses.MISSING or value in (None, "", ()):
        return ""
    if isinstance(value, float):
        return f"{value:g}".replace("e-0", "e-")
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def as_tyro_shows(kind: type, groups: Sequence[str]) -> type:
    """A dataclass of dataclasses, one for each group."""
    fields, own_groups = [], list(groups_of(kind, groups))
    for number, (title, flags) in enumerate(own_groups):
        own = []
        for flag in flags:
            hint = f"(default: {flag.default})" if flag.default else ""
            shown = Annotated[flag.kind, arg(help=flag.help, help_behavior_hint=hint)]
            own.append((flag.name, shown, dataclasses.field(default=flag.value)))
        group = dataclasses.make_dataclass("Group", own, namespace={"__doc__": ""})
        fields.append(
            (f"group_{number}", Annotated[group, arg(name=title if len(own_groups) > 1 else "")])
        )
    return dataclasses.make_dataclass("Flags", fields)


def ungrouped(kind: type[T], found: object) -> T:
    """From an instance of the dataclass that tyro filled in to one of `kind`."""
    return kind(
        **{name: value for group in vars(found).values() for name, value in vars(group).items()}
    )


def unknown(given: Sequence[str], kind: type, groups: Sequence[str]) -> str:
    """What is said of arguments that are no flags, and of those that may be meant."""
    known = [flag.option for _, flags in groups_of(kind, groups) for flag in flags]
    foreign = {f"--{name}": f"--{own}" for name, own in FOREIGN.items() if f"--{own}" in known}
    if "--mode" in known:
        foreign |= {mode: f"--mode {mode}" for mode in get_args(Mode) if mode in given}
    meant = []
    for text in given:
        name = text.partition("=")[0].replace("_", "-")
        near = difflib.get_close_matches(name, [*known, *foreign], n=1, cutoff=0.7)
        meant += [foreign.get(each, each) for each in near]
    what = f"unknown arguments: {printable(' '.join(given), 100)}"
    if "--table" in known and any("]" in text for text in given):
        return f'{what}; quote a table: --table "name[The Mill], eatType[pub]"'
    return f"{what}; did you mean {' and '.join(dict.fromkeys(meant))}?" if meant else what
