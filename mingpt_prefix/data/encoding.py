"""Tables and sentences as the token ids that a model reads and predicts."""

import torch

from mingpt_prefix.batch import Encoded
from mingpt_prefix.data.tables import TEXT_FORMAT, Example, Table, linearize, target_text
from mingpt_prefix.data.tokenizer import Tokenizer


def encode_prompt(tokenizer: Tokenizer, table: Table, text_format: str = TEXT_FORMAT) -> list[int]:
    """What a model is given to describe `table`: the table's text, then the end token."""
    return [*tokenizer.encode(linearize(table, text_format)), tokenizer.eos]


def encode_example(
    tokenizer: Tokenizer, example: Example, text_format: str = TEXT_FORMAT
) -> Encoded:
    """The prompt of the example's table, then its text and another end token, to be predicted."""
    prompt = encode_prompt(tokenizer, example.table, text_format)
    target = tokenizer.encode(target_text(example.text))
    ids = torch.tensor([*prompt, *target, tokenizer.eos])
    return Encoded(ids, len(prompt), where=example.where)
