"""Sentences by a bank: a prompt names the prefix that says it, or the model calls one.

    pipeline = open_bank(SampleConfig(bank=Path("prefixes")))
    pipeline.write_scored(["<|prefix:films|> title[The River]", "Once upon a time"], Decoding())

A table (in place of a prompt's text) is spelled without an end token, so that the model chooses.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from mingpt_prefix.bank.calls import Callee, CallingGPT2, called_in, decode_calls, encode_call
from mingpt_prefix.bank.store import Bank, base_to_load, read_bank
from mingpt_prefix.batch import PrefixKV
from mingpt_prefix.checkpoints.pretrained import load_model
from mingpt_prefix.config import Decoding
from mingpt_prefix.data.tables import Table, linearize
from mingpt_prefix.data.tokenizer import Tokenizer, tokenizer_of
from mingpt_prefix.errors import ConfigError, TableError, shown
from mingpt_prefix.evaluation.pipeline import where_computed
from mingpt_prefix.evaluation.sample_config import SampleConfig
from mingpt_prefix.evaluation.table_to_text import Sentence, check_room, write_each
from mingpt_prefix.generation.decoding import generate_scored
from mingpt_prefix.generation.sampling import Scored


@dataclass(frozen=True)
class BankPipeline:
    """A pipeline by the prefixes of a bank; `origin` says which bank and model it is."""

    model: CallingGPT2
    tokenizer: Tokenizer
    prefix: PrefixKV
    callees: dict[str, Callee]
    origin: str

    def write_scored(
        self,
        prompts: Sequence[str | Table],
        decoding: Decoding,
        seeds: Sequence[int] | None = None,
    ) -> list[list[Sentence] | TableError]:
        """`decoding.num_return_sequences` lines a prompt or table, or what is wrong with it.

        A line is what comes after the prompt; a call that the model wrote stands in it. `seeds`
        (one a prompt) are for sampling. Rows of one batch see different prefixes.

        Raises:
            ConfigError: for tables without a prompt, where the bank's prefixes do not read them
                alike, and for a text format that this version does not know.
        """
        names = {callee.token: name for name, callee in self.callees.items()}

        def generate(prompts: list[list[int]], seeds: list[int]) -> list[list[Scored]]:
            ids, first = called_in(prompts, self.model)
            how = dict(prefix_ids=ids, prefix_from=first, eos=self.tokenizer.eos, seed=seeds)
            return generate_scored(self.model, prompts, self.prefix, decoding, **how)

        def decode(ids: list[int]) -> str:
            return decode_calls(self.tokenizer, ids, names)

        return write_each(prompts, self._encode, seeds, generate, decode)

    def _encode(self, prompt: str | Table) -> list[int]:
        if isinstance(prompt, Table):
            ids = self.tokenizer.encode(linearize(prompt, self._shared_format()))
        else:
            ids = encode_call(self.tokenizer, prompt, self.callees)
        check_room(len(ids), self.model.config.n_positions, "prompt")
        return ids

    def _shared_format(self) -> str:
        formats = {callee.text_format for callee in self.callees.values()}
        if len(formats) > 1:
            what = "the bank's prefixes read tables in different text formats"
            raise ConfigError(f"{what}: name one with --prompt")
        return formats.pop()


def open_bank(config: SampleConfig) -> BankPipeline:
    """The pipeline of `config.bank`.

    Raises:
        ConfigError, PrefixError, WeightsError: for flags that exclude each other, and for files
            that are missing, damaged, or do not fit each other.
    """
    if any(file is not None for file in (config.run, config.prefix, config.lora)):
        raise ConfigError("--bank excludes --run, --prefix and --lora")
    bank: Bank = read_bank(config.bank)
    name = base_to_load(bank, config.model)
    base = load_model(name, config.device, config.dtype, config.attention)
    tokenizer, model = tokenizer_of(base.config), bank.calling(base)
    prefix = bank.packed().to(base.device, base.wte.weight.dtype)
    what = f"the bank {shown(config.bank)} ({', '.join(bank.names)}) on {shown(name)}"
    origin = f"{what}, {where_computed(base)}"
    return BankPipeline(model, tokenizer, prefix, bank.callees(base), origin)
