"""A tokenizer in the form of Hugging Face's `tokenizers`: the tokenizer.json beside a saved model.

    save_model(model, folder, tokenizer=tokenizer_json(load_tokenizer("gpt2")))
    transformers.AutoTokenizer.from_pretrained(folder)   # equal ids

Unlike ours it takes `<|endoftext|>` in a text for the end token. No library is needed to write it.
"""

import functools
import json

from mingpt_prefix.data.tokenizer import END_OF_TEXT, Tokenizer


@functools.cache
def tokenizer_json(tokenizer: Tokenizer) -> str:
    """What tokenizer.json holds; equal tokenizers give equal text."""
    ids = [i for i in range(tokenizer.vocab_size) if i != tokenizer.eos]
    ranks = {tokenizer.encoding.decode_single_token_bytes(i): i for i in ids}
    # Its regex is GPT-2's, by which the embedded vocabularies are cut too.
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
    byte_level["trim_offsets"] = True
    plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    end = {"id": tokenizer.eos, "content": END_OF_TEXT, **plain, "special": True}
    content = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [end],
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": byte_level,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": {_letters(token): i for token, i in ranks.items()}
            | {END_OF_TEXT: tokenizer.eos},
            "merges": [_halves(token, ranks) for token in ranks if len(token) > 1],
        },
    }
    return json.dumps(content, ensure_ascii=False) + "\n"


def _halves(token: bytes, ranks: dict[bytes, int]) -> list[str]:
    """The two tokens that BPE merges last into `token`."""
    parts = [bytes([byte]) for byte in token]
    while len(parts) > 2:
        pairs = [ranks.get(a + b, len(ranks)) for a, b in zip(parts, parts[1:], strict=False)]
        at = pairs.index(min(pairs))
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return [_letters(part) for part in parts]


def _letters(token: bytes) -> str:
    return "".join(map(BYTE_LETTERS.__getitem__, token))


def _byte_letters() -> list[str]:
    """A visible character for each byte, as GPT-2's vocabulary file has them."""
    visible = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in visible else next(others)) for byte in range(256)]


BYTE_LETTERS = _byte_letters()  # by the byte
