"""Writing sentences: tokens a second, ours against PEFT's `generate`.

python bench/decode.py                                  # GPT-2 small, random weights
python bench/decode.py --model gpt2-medium --dtype bf16 --json bench/results/decode.json

Random ids of E2E's table lengths; every row gets exactly --new-tokens, so that all work alike.
Greedy outputs are compared first. The methods take turns, batch after batch.
"""

import dataclasses
import statistics
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Literal

import peers
import record
import torch
import tyro
from e2e_lengths import examples
from report import decode_table
from speed_methods import Args as SpeedArgs
from speed_methods import base, configure
from timing import timed

from mingpt_prefix.accel.prepacked_linear import prepack
from mingpt_prefix.adapters.learned import make_encoder
from mingpt_prefix.checkpoints.pretrained import DTYPES, choose_device
from mingpt_prefix.config import MODELS, TrainConfig
from mingpt_prefix.generation.decoding import generate


@dataclass(frozen=True)
class Args:
    model: str = "gpt2"
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


def configured(args: Args) -> TrainConfig:
    names = ("prefix_length", "device", "dtype", "attention")
    flags = {name: getattr(args, name) for name in names}
    return configure(SpeedArgs(**flags), args.model, "prefix")


def measure(args: Args) -> list[dict]:
    config = configured(args)
    own = base(config).requires_grad_(False).eval()
    prepack(own)
    peer = peers.build(own, config).to(DTYPES[config.dtype]).eval()
    with torch.no_grad():
        encoder = make_encoder(config, own).to(own.device)
        encoder.load_state_dict(peers.prefix_weights(peer))
        prefix = encoder()
    data = examples(MODELS[args.model].vocab_size)
    rounds = 2 if args.quick else args.rounds
    wanted = args.batch_size * (rounds + 1)
    prompts = [e.ids[: e.prompt_length].tolist() for e in islice(cycle(data), wanted)]
    fixed = dict(max_new_tokens=args.new_tokens, min_new_tokens=args.new_tokens, do_sample=False)

    def ours(batch: list[list[int]], beams: int) -> list[list[int]]:
        count = args.new_tokens
        return generate(own, batch, prefix, beams=beams, max_new_tokens=count, eos=None)

    def theirs(batch: list[list[int]], beams: int) -> torch.Tensor:
        inputs = padded_left(batch, own.device)
        with torch.no_grad():
            # An end token no model says: rows go on to the last token.
            out = peer.generate(
                **inputs, **fixed, num_beams=beams, pad_token_id=0, eos_token_id=None
            )
        return out[:, -args.new_tokens :]

    first = prompts[: args.batch_size]
    pairs = zip(ours(first, 1), theirs(first, 1).tolist(), strict=True)
    agreement = statistics.fmean(a == b for a, b in pairs)
    assert config.dtype != "fp32" or agreement >= 0.75, f"{agreement:.0%} of the rows agree"
    rows = []
    for beams in args.beams:
        times: dict[str, list[float]] = {"ours": [], "PEFT": []}
        for number in range(rounds + 1):
            batch = prompts[number * args.batch_size : (number + 1) * args.batch_size]
            for name, run in (
                ("ours", lambda b=batch, n=beams: ours(b, n)),
                ("PEFT", lambda b=batch, n=beams: theirs(b, n)),
            ):
                spent = timed(run)
                if number:  # the first warms up
                    times[name].append(spent)
        for name, spent in times.items():
            rows.append({"method": name, "beams": beams, "seconds": spent, "agreement": agreement})
    return rows


def main() -> None:
    args = tyro.cli(Args, description=__doc__)
    flags, device = dataclasses.asdict(args), choose_device(args.device)
    config = configured(args)
    result = {
        **record.begin("decode.py", device),
        "device": device.type,
        "dtype": config.dtype,
        "attention": config.attention,
        **{name: flags[name] for name in ("model", "batch_size", "new_tokens", "prefix_length")},
        "decoding": measure(args),
    }
    record.finish(result, decode_table(result), args.json)


if __name__ == "__main__":
    main()
