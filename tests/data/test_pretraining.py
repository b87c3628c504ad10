"""Plain text: documents of a file, windows of tokens, held-out documents, bits per byte."""

import lzma
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch

import train
from mingpt_prefix.config import ModelConfig
from mingpt_prefix.data.pretraining import Windows, bits_per_byte, is_held_out, read_corpus
from mingpt_prefix.data.text import documents
from mingpt_prefix.data.tokenizer import load_tokenizer
from mingpt_prefix.errors import ConfigError, DataError
from mingpt_prefix.model import GPT2

TEXTS = [f"Document {n}.\nIt has a second line." for n in range(600)]
FILE = "\n<|endoftext|>\n".join(TEXTS)


@pytest.mark.parametrize("name", ["a.txt", "a.txt.xz"])
@pytest.mark.parametrize("end", ["", "\n", "\n<|endoftext|>\n", "\n<|endoftext|> \r\n\n\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_documents(name: str, end: str, mark: str, tmp_path: Path) -> None:
    data = (mark + FILE + end).encode()
    (tmp_path / name).write_bytes(lzma.compress(data) if name.endswith("xz") else data)
    assert list(documents(tmp_path / name)) == TEXTS


def test_blank_documents_are_none(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("A.\n<|endoftext|>\n\n\n<|endoftext|>\n<|endoftext|>\nB.\n")
    assert list(documents(tmp_path / "a.txt")) == ["A.", "B."]


@pytest.mark.parametrize(
    ("name", "content", "what"),
    [
        ("a.txt", b"", "no text in it"),
        ("a.txt", b"\n<|endoftext|>\n", "no text in it"),
        ("a.txt", b"caf\xe9", "not UTF-8"),
        ("a.txt.xz", b"not xz", "not supported"),
        ("a.txt.xz", lzma.compress(FILE.encode())[:-20], "ended before"),
        ("a.csv", b"mr,ref\n", "must end in .txt or .txt.xz"),
    ],
)
def test_bad_files(name: str, content: bytes, what: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=what) as caught:
        list(documents(tmp_path / name))
    assert str(caught.value).startswith(str(tmp_path / name)) and str(caught.value).isprintable()
    with pytest.raises(DataError, match="No such file"):
        list(documents(tmp_path / "none.txt"))


@pytest.mark.parametrize("length", [2, 3, 31, 32, 33, 63, 64, 65, 1000])
def test_windows_predict_every_token_once(length: int) -> None:
    stream = np.arange(length, dtype=np.uint16)
    windows = Windows(stream, 32, spread=10)
    predicted = [int(t) for window in windows for t in window.ids[window.prompt_length :]]
    assert predicted == list(range(1, length))
    assert all(len(window.ids) <= 32 and 0 <= window.offset <= 10 for window in windows)
    with pytest.raises(IndexError):
        windows[len(windows)]


def test_corpus(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(FILE)
    tokenizer = load_tokenizer("tiny")
    corpus = read_corpus([tmp_path / "a.txt"], tokenizer, 32, 64)
    held = [text for text in TEXTS if is_held_out(text)]
    assert 1 <= len(held) <= 20
    assert corpus.held_out_bytes == sum(len(text.encode()) for text in held)
    for windows, texts in (
        (corpus.held_out, held),
        (corpus.train, [text for text in TEXTS if text not in held]),
    ):
        found = tokenizer.encoding.decode(windows.stream.tolist()).split("<|endoftext|>")
        assert found == ["", *texts, ""]
    assert len({window.offset for window in corpus.train}) > 20
    assert {window.offset for window in corpus.held_out} == {0}
    with pytest.raises(ConfigError, match="block-size"):
        read_corpus([tmp_path / "a.txt"], tokenizer, 65, 64)
    (tmp_path / "b.txt").write_text("Too short.")
    with pytest.raises(DataError, match="b.txt"):
        read_corpus([tmp_path / "b.txt"], tokenizer, 32, 64)


def held_and_trained(path: Path, documents: list[str]) -> tuple[str, str, str]:
    path.write_text("\n<|endoftext|>\n".join(documents))
    tokenizer = load_tokenizer("tiny")
    corpus = read_corpus([path], tokenizer, 32, 64)
    held, trained = (
        tokenizer.encoding.decode(windows.stream.tolist())
        for windows in (corpus.held_out, corpus.train)
    )
    text = held.removeprefix("<|endoftext|>").removesuffix("<|endoftext|>")
    assert corpus.held_out_bytes == len(text.replace("<|endoftext|>", "").encode())
    assert "separated by a line <|endoftext|>" in corpus.note
    return text, trained, corpus.note


def test_few_documents_hold_one_out(tmp_path: Path) -> None:
    for count in range(2, 30):  # with a hundred too few are below the share, now and then
        texts = [" ".join([text] * 20) for text in TEXTS[30 : 30 + count]]
        texts = [text for text in texts if not is_held_out(text)]
        held, trained, note = held_and_trained(tmp_path / "a.txt", [*texts, texts[-1]])
        assert held.split("<|endoftext|>")[0] in texts and held not in trained
        assert sum(text in trained for text in texts) == len(texts) - 1
        assert f"one document of {len(texts) + 1}" in note


def test_a_single_document_holds_its_tail_out(tmp_path: Path) -> None:
    texts = ["\n".join([*TEXTS, str(number)]) for number in range(1_000)]
    # Also one that is itself among the one in a hundred.
    unlucky = next(text for text in texts if is_held_out(text))
    for text, copies in ((texts[0], 1), (texts[0], 3), (unlucky, 1)):
        held, trained, note = held_and_trained(tmp_path / "a.txt", [text] * copies)
        begun = trained.removeprefix("<|endoftext|>")
        assert 20 < len(held) < len(text) / 50 and text.endswith(held)
        assert begun == text.removesuffix(held) * copies and "of a single document" in note
    (tmp_path / "a.txt").write_text("Far too short.")
    with pytest.raises(DataError, match="fewer than 32 tokens"):
        read_corpus([tmp_path / "a.txt"], load_tokenizer("tiny"), 32, 64)


def test_a_run_on_one_text_file(tmp_path: Path, small_model: Path, capsys) -> None:
    path = tmp_path / "a.txt"
    path.write_text("\n".join(TEXTS))
    flags = f"--mode pretrain --model {small_model} --data {path} --max-steps 1 --block-size 32"
    assert train.main([*flags.split(), "--out", str(tmp_path / "run")]) == 0
    said = capsys.readouterr().out
    assert re.search(r"Held out: the last \d+ tokens of a single document; documents are", said)
    assert "bits per byte" in said


def test_bits_per_byte_of_a_model_that_knows_nothing() -> None:
    """All logits equal: each token costs log2(V) bits."""
    model = GPT2(ModelConfig(1, 1, 4, vocab_size=256, n_positions=8, eos_token_id=0))
    for parameter in model.parameters():
        torch.nn.init.zeros_(parameter)
    windows = Windows(np.arange(101, dtype=np.uint16), 8)
    assert bits_per_byte(model, windows, 50) == pytest.approx(100 * math.log2(256) / 50)
