"""Makes the embedded model and its prefix anew.

    python -m mingpt_prefix.tiny.make --english TEXT [TEXT ...] --work DIR

1. the text: English, and tables with their texts (`corpus.py`), in one file, and its vocabulary;
2. the base, pretrained on that text;
3. the base, trained on together with prefixes (`steerable.py`), which makes it good to prefix-tune;
4. the prefix that is shipped with it, trained on the sample data set as `make train` does.

Finished stages in DIR are skipped, and an interrupted one resumes. `--only text` stops after the
first, so the rest can run on a faster machine. It needs the extra `dev`.
"""

import argparse
import base64
import lzma
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random

import torch

from mingpt_prefix import tiny
from mingpt_prefix.checkpoints.atomic_write import write_atomically
from mingpt_prefix.checkpoints.pretrained import load_model, save_model
from mingpt_prefix.checkpoints.run_folder import read_run
from mingpt_prefix.data.text import documents
from mingpt_prefix.data.tokenizer import END_OF_TEXT, PIECES, load_tokenizer
from mingpt_prefix.data.tokenizer_json import BYTE_LETTERS, tokenizer_json
from mingpt_prefix.tiny import corpus, steerable

ENGLISH_BYTES, TABLE_BYTES = 30_000_000, 46_000_000
VOCABULARY = 1024  # with the end token
FIRST_STAGE = "--block-size 448 --batch-size 12 --micro-batch-size 12 --lr 3e-3".split()


def write_text(english: Sequence[Path], out: Path) -> None:
    """Write English documents, then documents with tables; none that overlaps the sample data."""
    overlap = corpus.overlap_with_sample()
    part = out.with_suffix(".part")
    with lzma.open(part, "wt", encoding="utf-8", newline="\n", preset=6) as file:
        read = "".join(_english(english, overlap))
        file.write(read)
        words = corpus.everyday_words(read)
        rng, left = Random(0), TABLE_BYTES
        while left > 0:
            drawn = corpus.documents(rng, words)
            if not any(map(overlap.is_in, drawn)):
                block = "".join(f"{document}\n{END_OF_TEXT}\n" for document in drawn)
                left -= len(block.encode())
                file.write(block)
    part.rename(out)


def _english(texts: Sequence[Path], overlap: corpus.Overlap) -> Iterator[str]:
    """Documents, without what overlaps the sample data: a line, or else the whole document."""
    left = ENGLISH_BYTES
    for document in (document for path in texts for document in documents(path)):
        kept = document[:left]
        if overlap.is_in(kept):
            kept = "\n".join(line for line in kept.split("\n") if not overlap.is_in(line))
        if kept.strip() and not overlap.is_in(kept):
            yield f"{kept}\n{END_OF_TEXT}\n"
            left -= len(kept.encode())
        if left <= 0:
            return


def learn_vocabulary(text: Path, size: int) -> bytes:
    """Byte-level BPE in tiktoken's form: the 256 bytes, then the merges as they were learned."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    bpe = Tokenizer(models.BPE())
    cut = pre_tokenizers.Split(Regex(PIECES), "isolated")
    to_letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bpe.pre_tokenizer = pre_tokenizers.Sequence([cut, to_letters])
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=size - 1, initial_alphabet=alphabet)
    # So often that each currency sign is a token.
    signs = " £ € ¥ $" * 100_000
    bpe.train_from_iterator((signs, *documents(text)), trainer)
    byte_of = {letter: byte for byte, letter in enumerate(BYTE_LETTERS)}
    merged = [token for token, _ in sorted(bpe.get_vocab().items(), key=lambda item: item[1])]
    tokens = [bytes([byte]) for byte in range(256)]
    tokens += [bytes(byte_of[letter] for letter in token) for token in merged if len(token) > 1]
    return b"".join(base64.b64encode(token) + b" %d\n" % i for i, token in enumerate(tokens))


def train(folder: Path, *flags: str) -> None:
    """Start, resume or skip a training run in `folder`; a failure ends this script too."""
    how = ("--resume", str(folder)) if folder.exists() else (*flags, "--out", str(folder))
    if not folder.exists() or read_run(folder)["result"] is None:
        subprocess.run([sys.executable, "-m", "mingpt_prefix", "train", *how], check=True)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Make the embedded model and its prefix.")
    parser.add_argument("--english", type=Path, nargs="+", default=[], help=".txt or .txt.xz")
    parser.add_argument("--work", type=Path, required=True, help="folder for intermediate files")
    parser.add_argument("--steps", type=int, nargs=2, default=(6000, 2000), help="of both stages")
    parser.add_argument("--dtype", default="fp32", help="bf16 if the processor has it")
    parser.add_argument("--only", choices=("text",), help="stop after this stage")
    options = parser.parse_args(argv)
    work, steps = options.work, options.steps
    work.mkdir(parents=True, exist_ok=True)
    text, first, base, prefix = (work / name for name in ("text.txt.xz", "first", "base", "prefix"))
    if not text.exists():
        if not options.english:
            parser.error("--english is required if DIR has no text yet")
        write_text(options.english, text)
    if not (work / "vocab.tiktoken").exists():
        write_atomically(work / "vocab.tiktoken", learn_vocabulary(text, VOCABULARY))
    shutil.copyfile(work / "vocab.tiktoken", tiny.VOCABULARIES[f"tiny-{VOCABULARY}"])
    if options.only == "text":
        return
    pretrain = ("--mode", "pretrain", "--model", "tiny", "--data", str(text), *FIRST_STAGE)
    train(first, *pretrain, "--max-steps", str(steps[0]), "--dtype", options.dtype)
    steerable.train(first / "model", text, base, steerable.Args(steps[1], dtype=options.dtype))
    model = load_model(base / "model", dtype="fp32")
    tokenizer = tokenizer_json(load_tokenizer(model.config.tokenizer))
    save_model(model, tiny.MODEL, torch.float16, tokenizer)
    train(prefix, "--mode", "prefix", "--model", "tiny", "--device", "cpu")
    shutil.copyfile(prefix / "prefix.safetensors", tiny.PREFIX)


if __name__ == "__main__":
    main()
