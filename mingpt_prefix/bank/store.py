"""A bank: a folder of named prefixes for one base, and the special tokens that call them.
    mingpt-prefix bank prefixes --add restaurants=runs/restaurants films=a.safetensors
    mingpt-prefix bank prefixes                            # what is in it

`NAME.safetensors` is a prefix file, of an infix; adding one is copying it there.
`_calls.safetensors` holds the learned embeddings (N, C) of the tokens `<|prefix:NAME|>`, whose they
are, and rows (N, J, C) that keep them from being written, as `call_training` writes it. A prefix
without one can be called in a prompt, by a token that begins as the end token's embedding, but the
model never writes it. Names of files are made of checked names alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro

from mingpt_prefix.adapters.prefix_file import (
    FORMAT,
    PrefixInfo,
    check_alone,
    check_prefix,
    read_prefix,
    save_prefix,
)
from mingpt_prefix.bank.calls import Callee, CallingGPT2
from mingpt_prefix.bank.calls_file import Call, check_name, forget_call, read_calls
from mingpt_prefix.batch import PrefixKV
from mingpt_prefix.checkpoints.atomic_write import remove_parts
from mingpt_prefix.cli.terminal import parse, run_script, say
from mingpt_prefix.errors import ConfigError, PrefixError, printable, reason, shown
from mingpt_prefix.export.convert import learned_file
from mingpt_prefix.model import GPT2

CALLS_FILE = "_calls.safetensors"
_SUFFIX = ".safetensors"


@dataclass(frozen=True)
class Bank:
    """The prefixes of a folder by name, sorted; `calls` are those that were learned.

    `prefixes` and `infos` are in the order of `names`.
    """

    folder: Path
    names: tuple[str, ...]
    prefixes: tuple[PrefixKV, ...]
    infos: tuple[PrefixInfo, ...]
    calls: dict[str, Call]

    def packed(self) -> PrefixKV:
        """All prefixes as one, in the order of `names`."""
        return PrefixKV.pack(self.prefixes)

    def callees(self, model: GPT2) -> dict[str, Callee]:
        """What can be called, by name; `model` is the base."""
        first = model.config.vocab_size
        return {
            name: Callee(first + number, info.text_format)
            for number, (name, info) in enumerate(zip(self.names, self.infos, strict=True))
        }

    def calling(self, model: GPT2) -> CallingGPT2:
        """The base `model` with this bank's calls.

        Raises:
            PrefixError: naming the file, unless all were made for exactly this model.
        """
        for name, kv, info in zip(self.names, self.prefixes, self.infos, strict=True):
            with FORMAT.naming(self.folder / f"{name}{_SUFFIX}"):
                check_prefix(info, kv, model)
        width, start = model.config.n_embd, model.wte.weight[model.config.eos_token_id]
        if any(len(call.row) != width for call in self.calls.values()):
            where = shown(self.folder / CALLS_FILE)
            raise PrefixError(f"{where}: its rows are not as wide as the model, {width}")
        n_quiet = max((len(call.quiet) for call in self.calls.values()), default=0)
        unlearned = Call(start, start.new_zeros(n_quiet, width))
        calls = [self.calls.get(name, unlearned) for name in self.names]
        rows = torch.stack([call.row.to(start) for call in calls])
        quiet = torch.stack([call.quiet.to(start) for call in calls])
        return CallingGPT2(model, rows, [name in self.calls for name in self.names], quiet)


def read_bank(folder: Path) -> Bank:
    """Read a bank's folder, verified, to the CPU.

    Raises:
        PrefixError: when there is none, a file is damaged, no infix, or has no proper name, the
            files are of different bases, or a call's prefix is missing.
    """
    folder = Path(folder)
    try:
        if not folder.is_dir():
            raise PrefixError(f"{shown(folder)}: no such folder")
        files = sorted(path for path in folder.iterdir() if path.name.endswith(_SUFFIX))
    except (OSError, ValueError) as error:
        raise PrefixError(f"{shown(folder)}: {reason(error)}") from None
    names = [path.name.removesuffix(_SUFFIX) for path in files if path.name != CALLS_FILE]
    if not names:
        raise PrefixError(f"{shown(folder)}: no prefix in it, which would be NAME{_SUFFIX}")
    for name in names:
        check_name(name, f"{shown(folder)}: ")
    read = [_read_infix(folder / f"{name}{_SUFFIX}") for name in names]
    infos = [info for _, info in read]
    calls: dict[str, Call] = {}
    digests = {
        f"{name}{_SUFFIX}": info.fingerprint for name, (_, info) in zip(names, read, strict=True)
    }
    if (folder / CALLS_FILE).exists():
        calls, called = read_calls(folder / CALLS_FILE)
        digests[CALLS_FILE] = called.fingerprint
        if missing := sorted(calls.keys() - set(names)):
            what = f"no {missing[0]}{_SUFFIX}, whose call is in {CALLS_FILE}"
            raise PrefixError(f"{shown(folder)}: {what}")
    first = next(iter(digests))
    for name, digest in digests.items():
        if digest != digests[first]:
            what = f"({digests[first][:8]}, {digest[:8]})"
            raise PrefixError(
                f"{shown(folder)}: {first} and {name} were made for the weights of different"
                f" models {what}"
            )
    return Bank(folder, tuple(names), tuple(kv for kv, _ in read), tuple(infos), calls)


def _read_infix(path: Path) -> tuple[PrefixKV, PrefixInfo]:
    """A prefix that can be called; one that was trained in front of its table cannot: it knows
    positions that are moved by its rows, and a call moves none."""
    kv, info = read_prefix(path)
    with FORMAT.naming(path):
        if info.placement != "infix":
            what = "it was trained in front of the table, and a call stands behind it"
            raise PrefixError(f"{what}: train with --placement infix")
        check_alone(info)
    return kv, info


def add_prefix(folder: Path, name: str, source: Path) -> None:
    """Put the prefix file or run `source` into the bank as `name`, in the place of one so named,
    whose call, if one was learned, goes with it.

    Raises:
        PrefixError, CheckpointError: when it is damaged, no infix, or of another base than the
            bank, or the name is not a safe one; the folder is then as it was.
    """
    check_name(name)
    kv, info = _read_infix(learned_file(source))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        remove_parts(folder)
        is_new = not any(folder.glob(f"*{_SUFFIX}"))
    except OSError as error:
        raise PrefixError(f"{shown(folder)}: {reason(error)}") from None
    if not is_new:
        bank = read_bank(folder)
        if bank.infos[0].fingerprint != info.fingerprint:
            what = "made for the weights of another model than the bank's"
            raise PrefixError(f"{shown(source)}: {what}")
        held = dict(zip(bank.names, bank.prefixes, strict=True))
        if name in bank.calls and not torch.equal(held[name].kv, kv.kv):
            forget_call(folder / CALLS_FILE, name)  # it was learned for the prefix that goes
    save_prefix(folder / f"{name}{_SUFFIX}", kv.kv, info)


def base_to_load(bank: Bank, model: str | None) -> str:
    """The model to load for a bank: `model`, or the one it names; no path is taken from a file.

    Raises:
        PrefixError: when it was made for a model in a folder, and that was not named.
    """
    with FORMAT.naming(bank.folder):
        return FORMAT.base_to_load(bank.infos[0], model, "bank")


@dataclass(frozen=True)
class Args:
    """Flags of the command."""

    bank: tyro.conf.Positional[Path]
    """the bank's folder"""
    add: tuple[str, ...] = ()
    """NAME=SOURCE: add a run's prefix, or a prefix file, to the bank with this name"""


def named_sources(given: Sequence[str], flag: str) -> list[tuple[str, str]]:
    """`NAME=SOURCE` pairs; raises ConfigError for anything else."""
    pairs = [text.partition("=") for text in given]
    for text, (name, equals, source) in zip(given, pairs, strict=True):
        if not (name and equals and source):
            raise ConfigError(f"{flag}: '{printable(text, 100)}' is not NAME=SOURCE")
    return [(name, source) for name, _, source in pairs]


def main(argv: Sequence[str] | None = None, prog: str = "mingpt-prefix bank") -> int:
    """The command line; returns the exit code."""

    def run() -> int:
        args = parse(Args, argv, prog, __doc__.partition("\n\n")[0])
        for name, source in named_sources(args.add, "--add"):
            add_prefix(args.bank, name, Path(source))
        bank = read_bank(args.bank)
        for name, info in zip(bank.names, bank.infos, strict=True):
            learned = "learned" if name in bank.calls else "in prompts only"
            say(f"{name}: {info.length} rows, call {learned}")
        return 0

    return run_script(prog, run)
