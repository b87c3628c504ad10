"""The flags of the programs that write sentences, as a frozen dataclass of groups.

`mingpt-prefix sample`, `score` and `serve` each take some of the groups.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

from tyro.conf import UseAppendAction, arg

from mingpt_prefix.config import Decoding, Split

BEAMS = 5

_FILE, _FOLDER = arg(metavar="FILE"), arg(metavar="DIR")


@dataclass(frozen=True)
class TableFlags:
    """tables"""

    table: str | None = None
    """one table: "name[The Mill], eatType[pub]", or as JSON: {"name": "The Mill"}, or triples"""
    input: Annotated[str | None, _FILE] = None
    """a file of tables, one per line, or CSV with a column mr; - reads them from stdin"""
    scores: bool = False
    """begin each line with the sentence's score and a tab: its log-probability (beams: divided)"""


@dataclass(frozen=True)
class DataFlags:
    """data"""

    data: str | None = None
    """the tables of e2e, sample, a folder or a file, in any form that can be trained on; a single
    file is a test split as it is"""
    split: Split | None = None
    """which part of --data; test-known: the sample's second test set, with names made of words that
    training has"""
    text_field: str | None = None
    """the column or field of your own files that holds the sentences"""


@dataclass(frozen=True)
class WriterFlags:
    """model"""

    run: Annotated[Path | None, _FOLDER] = None
    """a run's folder"""
    prefix: Annotated[Path | None, _FILE] = None
    """a prefix file, in place of a run"""
    lora: Annotated[Path | None, _FILE] = None
    """a LoRA file, in place of a run; with --prefix: one that was trained together with it"""
    model: str | None = None
    """the model a prefix or LoRA was made for; a folder or hub id must be named, a known name is
    found"""


@dataclass(frozen=True)
class BankFlags:
    """bank"""

    bank: Annotated[Path | None, _FOLDER] = None
    """a folder of prefixes, in place of one: a prompt names which of them is seen, by
    <|prefix:NAME|>, or the model chooses"""
    prompt: UseAppendAction[tuple[str, ...]] = ()
    """with --bank: "<|prefix:films|> title[The River]", or plain text for the model to continue;
    may be given several times"""
    prompts: Annotated[str | None, _FILE] = None
    """with --bank: a file of prompts, one per line; - reads them from stdin"""


@dataclass(frozen=True)
class DecodingFlags:
    """decoding"""

    beams: int | None = None
    """beam search with this many beams; 1 is greedy"""
    temperature: float | None = None
    """sample from the model's distribution at this temperature; 0 is greedy"""
    top_k: int | None = None
    """sample from only this many of the likeliest tokens"""
    top_p: float | None = None
    """sample from the likeliest tokens that together have this probability"""
    seed: int = 0
    """of the samples"""
    max_new_tokens: int = Decoding.max_new_tokens
    """a sentence ends after this many tokens at the latest"""
    min_new_tokens: int = Decoding.min_new_tokens
    """a sentence has at least this many tokens"""
    length_penalty: float = Decoding.length_penalty
    """beam search: a sentence's log-probability is divided by its length to this power"""
    no_repeat_ngram_size: int = Decoding.no_repeat_ngram_size
    """no run of this many tokens comes twice, the table's own text included; 0: any may"""
    num_return_sequences: int = Decoding.num_return_sequences
    """sentences per table, a line each: the best beams, best first, or samples; a bad table gets as
    many empty lines"""


@dataclass(frozen=True)
class ServerFlags:
    """server"""

    beside: Annotated[tuple[Path, ...], arg(metavar="PATH [PATH ...]")] = ()
    """further runs, prefix files and LoRA files to choose from"""
    watch: Annotated[Path | None, _FOLDER] = None
    """a folder whose prefix files, and those of the runs in it, are served as they come, change and
    go"""
    cors: Annotated[tuple[str, ...], arg(metavar="ORIGIN [ORIGIN ...]")] = ()
    """web origins whose pages may ask, such as https://example.org; * is any"""
    host: str = "127.0.0.1"
    """the address to listen on; other machines reach any but the default"""
    port: int = 8000
    """the port to listen on; 0 is any that is free"""


@dataclass(frozen=True)
class MachineFlags:
    """machine"""

    device: str = "auto"
    """auto, cpu or cuda"""
    dtype: str = "auto"
    """auto, fp32, bf16, fp16 or fp64"""
    attention: str = "auto"
    """triton, or reference (plain PyTorch), which auto means too"""


@dataclass(frozen=True)
class SampleConfig(
    TableFlags, DataFlags, WriterFlags, BankFlags, DecodingFlags, ServerFlags, MachineFlags
):
    """What writes sentences, for which tables, and how."""

    DEFAULTS: ClassVar[Mapping[str, str]] = {
        "split": "test",
        "text_field": "text",
        "run": "the newest finished one under runs/, else the embedded model's prefix",
        "beams": f"{BEAMS}, or 1 with --temperature, --top-k or --top-p",
    }

    def seed_of(self, number: int) -> int:
        """The seed of table `number`, so that equal tables are sampled differently."""
        return self.seed * 1_000_003 + number

    @property
    def decoding(self) -> Decoding:
        """Raises ConfigError for a flag out of range."""
        given = {field.name: getattr(self, field.name) for field in dataclasses.fields(Decoding)}
        if self.beams is None:
            samples = any(given[name] is not None for name in ("temperature", "top_k", "top_p"))
            given["beams"] = 1 if samples else max(BEAMS, self.num_return_sequences)
        return Decoding(**given)
