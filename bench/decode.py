"""Writing sentences: tokens a second, ours against PEFT's `generate`.

python bench/decode.py                                  # GPT-2 small; on a GPU medium too
python bench/decode.py --model gpt2-medium --dtype bf16 --json bench/results/decode.json

Random weights, and random ids of E2E's table lengths; every row gets exactly --new-tokens, so that
all work alike. The tokens are compared first: those of other attention than the reference with the
reference's, and greedy ones with PEFT's. The methods take turns, batch after batch; one that fails
is recorded, and the other is timed.
"""

import dataclasses
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import cycle, islice
from pathlib import Path
from typing import Literal

import torch
import tyro
from measure.e2e_lengths import examples
from measure.record import Record
from measure.timing import timed
from methods.training import Args as SpeedArgs
from methods.training import base, configure
from reports.speed import decode_table

from mingpt_prefix.accel.prepacked_linear import prepack
from mingpt_prefix.adapters.learned import make_encoder
from mingpt_prefix.batch import PrefixKV
from mingpt_prefix.checkpoints.pretrained import DTYPES, choose_device
from mingpt_prefix.config import MODELS, TrainConfig
from mingpt_prefix.generation.decoding import generate
from mingpt_prefix.model import GPT2

Rows = list[list[int]]
Decoder = Callable[[Rows, int], Rows]  # of prompts, and a number of beams
ALIKE = {"reference": 1.0, "PEFT": 0.75}  # rows of tokens that must be equal in float32


@dataclass(frozen=True)
class Args:
    model: tuple[str, ...] = ()
    """shapes to time; gpt2, and on a GPU gpt2-medium too"""
    batch_size: int = 8
    new_tokens: int = 40
    beams: tuple[int, ...] = (1, 5)
    prefix_length: int = 5
    rounds: int = 5
    device: Literal["auto", "cpu", "cuda"] = "auto"
    dtype: Literal["auto", "fp32", "bf16"] = "auto"
    attention: Literal["auto", "triton", "reference"] = "auto"
    quick: bool = False
    """two rounds"""
    json: Path | None = None


def padded_left(prompts: list[list[int]], device: torch.device) -> dict[str, torch.Tensor]:
    """As transformers wants prompts: the padding in front."""
    width = max(map(len, prompts))
    ids = [[0] * (width - len(p)) + p for p in prompts]
    mask = [[0] * (width - len(p)) + [1] * len(p) for p in prompts]
    tensors = {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}
    return {name: tensor.to(device) for name, tensor in tensors.items()}


def configured(args: Args, model: str) -> TrainConfig:
    names = ("prefix_length", "device", "dtype", "attention")
    flags = {name: getattr(args, name) for name in names}
    return configure(SpeedArgs(**flags), model, "prefix")


def make_ours(model: GPT2, prefix: PrefixKV, new_tokens: int) -> Decoder:
    def decode(batch: Rows, beams: int) -> Rows:
        return generate(model, batch, prefix, beams=beams, max_new_tokens=new_tokens, eos=None)

    return decode


def make_peft(own: GPT2, config: TrainConfig, encoder: torch.nn.Module, count: int) -> Decoder:
    """Raises ImportError where PEFT is not there."""
    from methods import peers

    peer = peers.build(own, config, encoder).to(DTYPES[config.dtype]).eval()
    # An end token no model says: rows go on to the last token.
    fixed = dict(max_new_tokens=count, min_new_tokens=count, do_sample=False)
    fixed |= dict(pad_token_id=0, eos_token_id=None)

    @torch.no_grad()
    def decode(batch: Rows, beams: int) -> Rows:
        out = peer.generate(**padded_left(batch, own.device), **fixed, num_beams=beams)
        return out[:, -count:].tolist()

    return decode


def agreement(found: Rows, wanted: Rows) -> dict:
    """The shares of equal rows and tokens, and where in its row the first that differs stands."""
    pairs = [
        [a == b for a, b in zip(x, y, strict=True)] for x, y in zip(found, wanted, strict=True)
    ]
    first = min((row.index(False) for row in pairs if not all(row)), default=None)
    n_tokens = sum(map(len, pairs))
    equal = {"equal_rows": sum(map(all, pairs)) / len(pairs)}
    return equal | {"equal_tokens": sum(map(sum, pairs)) / n_tokens, "first_difference": first}


def compare(record: Record, found: Rows, wanted: Rows, is_exact: bool, **about) -> None:
    """Record how far decoded tokens agree; fails where they should be the same."""
    check = {**about, **agreement(found, wanted)}
    check["passed"] = not is_exact or check["equal_rows"] >= ALIKE[about["against"]]
    record["checks"].append(check)
    if not check["passed"]:
        part = f"{about['model']}, beam {about['beams']}, against {about['against']}"
        record.fail(part, f"{check['equal_rows']:.0%} of the rows are equal")


def measure(args: Args, model: str, record: Record) -> None:
    """A row for each number of beams and method."""
    config = configured(args, model)
    own = base(config).requires_grad_(False).eval()
    prepack(own)
    encoder = make_encoder(config, own).to(own.device)
    with torch.no_grad():
        prefix = encoder()
    decoders = {"ours": make_ours(own, prefix, args.new_tokens)}
    if find_spec("peft") and find_spec("transformers"):
        with record.part(f"{model}, PEFT"):
            decoders["PEFT"] = make_peft(own, config, encoder, args.new_tokens)
    else:
        print("Without PEFT: pip install -e '.[peers]'", file=sys.stderr)
    rounds, size = 2 if args.quick else args.rounds, args.batch_size
    data = islice(cycle(examples(MODELS[model].vocab_size)), size * (rounds + 1))
    prompts = [e.ids[: e.prompt_length].tolist() for e in data]
    batches = [prompts[i : i + size] for i in range(0, len(prompts), size)]
    for beams in args.beams:
        about = {"model": model, "beams": beams}
        how = about | {"is_exact": config.dtype == "fp32"}
        with record.part(f"{model}, beam {beams}, tokens"):
            found = decoders["ours"](batches[0], beams)
            if beams == 1 and "PEFT" in decoders:
                with record.part(f"{model}, PEFT's tokens"):
                    compare(record, found, decoders["PEFT"](batches[0], 1), **how, against="PEFT")
            if config.attention != "reference":
                own.attention = "reference"
                wanted = decoders["ours"](batches[0], beams)
                compare(record, found, wanted, **how, against="reference")
        own.attention = config.attention
        time_turns(record, decoders, batches, **about)


def time_turns(
    record: Record, decoders: dict[str, Decoder], batches: Sequence[Rows], model: str, beams: int
) -> None:
    """The decoders take turns; one that fails decodes no more. The first batch warms up."""
    times: dict[str, list[float]] = {name: [] for name in decoders}
    for number, batch in enumerate(batches):
        for name, decode in list(decoders.items()):
            try:
                spent = timed(lambda run=decode, rows=batch: run(rows, beams))
            except Exception as error:
                del decoders[name], times[name]
                record.fail(f"{model}, beam {beams}, {name}", f"{type(error).__name__}: {error}")
                continue
            if number:
                times[name].append(spent)
    rows = [{"model": model, "method": name, "beams": beams} for name in times]
    record["decoding"] += [{**row, "seconds": times[row["method"]]} for row in rows]
    record.save()


def main() -> None:
    args = tyro.cli(Args, description=__doc__)
    device = choose_device(args.device)
    models = args.model or (("gpt2", "gpt2-medium") if device.type == "cuda" else ("gpt2",))
    config, flags = configured(args, models[0]), dataclasses.asdict(args)
    about = {name: flags[name] for name in ("batch_size", "new_tokens", "prefix_length")}
    about |= {"device": device.type, "dtype": config.dtype, "attention": config.attention}
    found = {"model": ", ".join(models), "checks": [], "decoding": []}
    record = Record("decode.py", device, args.json, **about, **found)
    for model in models:
        with record.part(model):
            measure(args, model, record)
    record.finish(decode_table)


if __name__ == "__main__":
    main()
