"""A training step of prefix-tuning against one of full fine-tuning, ours and, where they are
installed (the `peers` extra), PEFT's and transformers', on the same batches in the same run.

python bench/speed.py                             # GPT-2 small; on a GPU medium too
python bench/speed.py --dtype bf16 --json bench/results/speed.json --picture speed.png

Random weights serve for timing; the lengths are those of real E2E examples. Each method has a
process, and they take turns round after round, so that a slow moment of the machine hits all of
them: a round is a step, on a GPU several, of which none waits for the one before. Where the time
goes is from a pass of its own, step by step and phase by phase, and without CUDA graphs.
"""

import sys
from contextlib import ExitStack

import record
import torch
import tyro
from arithmetic import matmul_rate, step_flops
from e2e_lengths import examples
from report import speed_table
from speed_methods import OURS, PEERS, Args, check, configure, mode_of
from speed_workers import Worker

from mingpt_prefix.batch import batches
from mingpt_prefix.checkpoints.pretrained import DTYPES, choose_device
from mingpt_prefix.config import MODELS


def measure(args: Args, model: str) -> dict:
    """All methods on one shape."""
    shape, device = MODELS[model], choose_device(args.device)
    on_gpu, data = device.type == "cuda", examples(shape.vocab_size)
    order, steps = batches(len(data), args.batch_size, seed=0), args.steps or (20 if on_gpu else 1)
    n_rounds = 2 + (3 if args.quick else args.rounds)
    drawn = [[next(order) for _ in range(steps)] for _ in range(n_rounds)]
    names, losses = OURS + PEERS, {}
    try:
        losses = check(args, model, [data[i] for i in drawn[0][0]])
    except ImportError as error:
        print(f"Without the peers ({error}): pip install 'mingpt-prefix[peers]'", file=sys.stderr)
        names = OURS
    if on_gpu:
        torch.cuda.empty_cache()  # of what the check needed
    counted = [[data[i] for i in batch] for round_ in drawn[2:] for batch in round_]
    n_tokens = sum(len(example.ids) for batch in counted for example in batch)
    config = configure(args, model, "prefix")
    with ExitStack() as stack:
        workers = [stack.enter_context(Worker(args, model, name)) for name in names]
        times: dict[str, list[float]] = {name: [] for name in names}
        for worker in workers if on_gpu else ():
            worker.run([batch for round_ in drawn for batch in round_])  # each shape once
        for number, round_ in enumerate(drawn):
            for worker in workers:
                seconds = worker.run(round_)
                if number >= 2:
                    times[worker.name].append(seconds / steps)
        rows = [worker.report(drawn[-1][-1], times[worker.name]) for worker in workers]
    rate = matmul_rate(device, DTYPES[config.dtype])
    for row in rows:
        mode = mode_of(row["method"])
        flops = [step_flops(shape, batch, mode, args.prefix_length) for batch in counted]
        spent = sum(row["seconds"]) * steps
        row["flops"] = sum(flops) / len(flops)
        row["tokens_per_second"] = n_tokens / spent
        row["utilisation"] = sum(flops) / spent / rate
    return {
        "model": model,
        "dtype": config.dtype,
        "attention": config.attention,
        "batch_size": args.batch_size,
        "prefix_length": args.prefix_length,
        "peers_keep_memory": None if on_gpu else args.peers_keep_memory,
        "matmul_flops_per_second": rate,
        "losses": losses,
        "rows": rows,
    }


def main() -> None:
    args = tyro.cli(Args, description=__doc__)
    device = choose_device(args.device)
    models = args.model or (("gpt2", "gpt2-medium") if device.type == "cuda" else ("gpt2",))
    result = {**record.begin("speed.py", device), "shapes": []}
    for model in models:
        result["shapes"].append(measure(args, model))
        record.save(result, args.json)  # what is there when a time limit ends it
    if args.picture is not None:
        from pictures import speed_chart

        speed_chart(result, args.picture)
    record.finish(result, speed_table(result), args.json)


if __name__ == "__main__":
    main()
