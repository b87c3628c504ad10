"""A bank of two prefixes: whether the model calls the right one, and what many in a batch cost.

python bench/bank.py --json bench/results/bank.json
python bench/bank.py --text english.txt.xz          # prose to learn from, and to hold out
python bench/bank.py --only-batches --model gpt2 --attention triton

Trains a prefix for the sample's restaurants and one for films, then their calls, all in --out, and
what is there already is used again. Then the model is given tables of both, without a word of which
prefix is meant, and plain English, in which it should call none; without --text that is prose.txt.
"""

import argparse
import itertools
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from measure.record import Record
from quality.bank_tasks import PROSE, References, films, restaurants, write_films
from quality.experiment import TRAIN
from reports.bank import bank_table

from mingpt_prefix.bank.pipeline import BankPipeline, open_bank
from mingpt_prefix.bank.store import CALLS_FILE, add_prefix
from mingpt_prefix.batch import PrefixKV
from mingpt_prefix.call_training.teach import teach
from mingpt_prefix.checkpoints.pretrained import load_model
from mingpt_prefix.config import Decoding
from mingpt_prefix.data.pretraining import is_held_out
from mingpt_prefix.data.tables import linearize
from mingpt_prefix.data.text import documents
from mingpt_prefix.evaluation.sample_config import SampleConfig
from mingpt_prefix.evaluation.table_to_text import Pipeline, one_line
from mingpt_prefix.generation.decoding import generate
from mingpt_prefix.metrics.scores import bleu
from mingpt_prefix.model import GPT2

FLAGS = {
    "restaurants": ("--data", "sample", "--seed", "0"),
    "films": ("--data", "films", "--seed", "1", "--prefix-length", "60"),
}
MOST = 100  # new tokens
ROWS, STEPS, LENGTHS = 32, 32, range(30, 91, 4)  # of the batches that are timed


def make_bank(out: Path, model: str, epochs: str, text: list[Path]) -> Path:
    """The bank's folder, with its two prefixes and their calls, trained where they are missing."""
    data, bank = out / "films-data", out / "prefixes"
    if not data.exists():
        write_films(data, train=384, dev=48)
    for name, flags in FLAGS.items():
        run = out / name
        if not run.exists():
            own = [str(data) if flag == "films" else flag for flag in flags]
            how = ["--mode", "prefix", "--placement", "infix", "--epochs", epochs]
            command = [sys.executable, str(TRAIN), "--model", model, *how, *own, "--out", str(run)]
            subprocess.run(command, check=True)
        add_prefix(bank, name, run)
    if not (bank / CALLS_FILE).exists():
        teach(bank, [("restaurants", "sample"), ("films", str(data))], text, model_name=model)
    return bank


def write(writer: BankPipeline, prompts: list[list[int]], most: int = MOST) -> list[list[int]]:
    """What the model writes, greedily, after prompts that call nothing."""
    nothing, start = [-1] * len(prompts), [0] * len(prompts)
    how = dict(max_new_tokens=most, eos=writer.tokenizer.eos, prefix_from=start)
    return generate(writer.model, prompts, writer.prefix, nothing, **how)


def judge_task(writer: BankPipeline, base: GPT2, name: str, test: References) -> dict:
    """How often the model calls `name` after its tables, and the BLEU of what it says then, beside
    that by the prefix chosen by hand."""
    number, tokenizer, callee = (
        list(writer.callees).index(name),
        writer.tokenizer,
        writer.callees[name],
    )
    new = write(
        writer, [tokenizer.encode(linearize(table, callee.text_format)) for table, _ in test]
    )
    words = [[token for token in ids if token < tokenizer.vocab_size] for ids in new]
    first, last = writer.prefix.starts[number : number + 2].tolist()
    own = PrefixKV.from_tensor(writer.prefix.kv[:, :, first:last])
    tables, how = [table for table, _ in test], Decoding(max_new_tokens=MOST)
    pipeline = Pipeline(base, tokenizer, own, callee.text_format, "infix")
    by_hand = pipeline.write(tables, how)
    references = [texts for _, texts in test]
    return {
        "task": name,
        "rows": last - first,
        "tables": len(test),
        "right_calls": statistics.fmean(ids[:1] == [callee.token] for ids in new),
        "bleu_called": bleu([one_line(tokenizer.decode(ids)) for ids in words], references),
        "bleu_by_hand": bleu([str(text) for text in by_hand], references),
    }


def judge_prose(writer: BankPipeline, files: list[Path], count: int) -> dict:
    """How often something is called after the beginnings of plain paragraphs."""
    held_out = (text for file in files for text in documents(file) if is_held_out(text))
    texts = held_out if files else itertools.cycle(documents(PROSE))  # cut elsewhere each time
    paragraphs = (line for text in texts for line in text.split("\n") if len(line) > 80)
    encoded = [writer.tokenizer.encode(line) for line in itertools.islice(paragraphs, count)]
    prompts = [ids[: 8 + number % 25] for number, ids in enumerate(encoded)]
    new = write(writer, prompts)
    wrong = [max(ids, default=0) >= writer.tokenizer.vocab_size for ids in new]
    return {"prompts": len(prompts), "false_calls": statistics.fmean(wrong)}


def time_batches(base: GPT2, exact: GPT2, rounds: int) -> dict:
    """Seconds of decoding a batch whose rows see one prefix, and one over many, in turns.

    Both have as many rows to read; that they say the same as rows on their own is checked first by
    `exact`, the base in fp32: in 16 bits words are equally likely too often.
    """
    draw, config = torch.Generator().manual_seed(0), base.config

    def drawn(length: int) -> PrefixKV:
        shape = (config.n_layer, 2, length, config.n_head, config.head_dim)
        return PrefixKV.from_tensor(torch.randn(shape, generator=draw))

    many, middle = PrefixKV.pack([drawn(n) for n in LENGTHS]), statistics.mean(LENGTHS)
    one = drawn(middle)
    prompts = torch.randint(base.config.eos_token_id, (ROWS, 30), generator=draw).tolist()
    cases = {
        "one prefix": (one, [0] * ROWS),
        "many prefixes": (many, [i % 16 for i in range(ROWS)]),
    }

    def decode(
        model: GPT2, prefix: PrefixKV, ids: list[int], rows: slice = slice(None)
    ) -> list[list[int]]:
        chosen, how = prompts[rows], dict(max_new_tokens=STEPS, eos=None, batch_size=ROWS)
        return generate(model, chosen, prefix, ids[rows], prefix_from=[0] * len(chosen), **how)

    checked, ids = cases["many prefixes"]
    checked = checked.to(exact.wte.weight)
    together = decode(exact, checked, ids)
    alone = [decode(exact, checked, ids, slice(i, i + 1))[0] for i in range(ROWS)]
    if together != alone:
        raise AssertionError("rows over many prefixes do not say what they say alone")
    cases = {name: (kv.to(base.wte.weight), ids) for name, (kv, ids) in cases.items()}
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(rounds):
        for name, case in cases.items():
            start = time.perf_counter()
            decode(base, *case)
            seconds[name].append(time.perf_counter() - start)
    sizes = {"batch_size": ROWS, "new_tokens": STEPS, "prefixes": len(LENGTHS), "rows": middle}
    return {**sizes, "seconds": seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/bank"))
    parser.add_argument("--model", default="tiny", help="tiny, or a folder")
    parser.add_argument("--epochs", default="1", help="of each prefix")
    parser.add_argument("--text", type=Path, nargs="*", default=[], help="files of plain text")
    parser.add_argument("--tables", type=int, default=200, help="of each task")
    parser.add_argument("--prompts", type=int, default=200, help="of plain English")
    parser.add_argument("--rounds", type=int, default=15, help="of the batches that are timed")
    parser.add_argument("--only-batches", action="store_true", help="time them, and learn nothing")
    parser.add_argument("--attention", default="auto", help="auto, triton or reference")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    base = load_model(args.model, attention=args.attention)
    record = Record("bank.py", base.device, args.json, model=args.model, calls=[])
    if not args.only_batches:
        folder = make_bank(args.out, args.model, args.epochs, args.text)
        writer = open_bank(SampleConfig(bank=folder, model=args.model, attention=args.attention))
        tests = {"restaurants": restaurants(args.tables), "films": films(args.tables, seed=3)}
        for name, test in tests.items():
            with record.part(name):
                record["calls"].append(judge_task(writer, base, name, test))
        with record.part("prose"):
            record["prose"] = judge_prose(writer, args.text, args.prompts)
    is_exact = base.wte.weight.dtype == torch.float32
    exact = base if is_exact else load_model(args.model, dtype="fp32", attention=args.attention)
    with record.part("batches"):
        record["batches"] = time_batches(base, exact, args.rounds)
    record.finish(bank_table)


if __name__ == "__main__":
    main()
