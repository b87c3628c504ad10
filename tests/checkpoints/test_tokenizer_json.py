"""A saved model's tokenizer.json, read by transformers' AutoTokenizer."""

import itertools
from pathlib import Path

import pytest

from mingpt_prefix import load_model, tiny
from mingpt_prefix.checkpoints.pretrained import save_model
from mingpt_prefix.data.datasets import e2e_available, load_examples
from mingpt_prefix.data.tables import linearize
from mingpt_prefix.data.tokenizer import load_tokenizer
from mingpt_prefix.data.tokenizer_json import tokenizer_json
from mingpt_prefix.errors import DataError

transformers = pytest.importorskip("transformers")
ODD = ["", " ", "  Café\tnoir \n\n £5 – 日本語 😀", "it's don't 'll 12abc_x", "a  b\r\n "]


def lines() -> list[str]:
    """1,000 lines: tables as the model reads them, and sentences; of E2E, if the cache holds it."""
    examples = load_examples("e2e" if e2e_available() else "sample", "train")
    spelled = ((linearize(each.table), each.text) for each in examples[:: len(examples) // 500])
    return list(itertools.chain.from_iterable(spelled))[:1000]


@pytest.mark.parametrize("name", ["gpt2", *tiny.VOCABULARIES])
def test_auto_tokenizer_gives_equal_ids(name: str, tmp_path: Path) -> None:
    try:
        ours = load_tokenizer(name)
    except DataError as error:
        pytest.skip(str(error))
    save_model(load_model("tiny", "cpu"), tmp_path / "model", tokenizer=tokenizer_json(ours))
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "model")
    given = [*lines(), *ODD]
    assert len(given) == 1000 + len(ODD) and len(theirs) == ours.vocab_size
    expected = [ours.encode(line) for line in given]
    assert theirs(given).input_ids == expected
    assert [theirs.decode(ids) for ids in expected] == given
    assert theirs.eos_token_id == ours.eos and theirs("<|endoftext|>").input_ids == [ours.eos]


def test_the_embedded_model_has_its_tokenizer() -> None:
    ours = load_tokenizer(load_model("tiny", "cpu").config.tokenizer)
    text = (tiny.MODEL / "tokenizer.json").read_text(encoding="utf-8")
    assert text == tokenizer_json(ours)
