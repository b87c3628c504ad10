"""The flags of the programs that write sentences, as a frozen dataclass of groups.

`mingpt-prefix sample`, `score` and `serve` each take some of the groups.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

from tyro.conf import UseAppendAction, arg

from mingpt_prefix.checkpoints.run_folder import RUNS, kept_by, newest_finished
from mingpt_prefix.config import Decoding, Split
from mingpt_prefix.data.rows import Columns
from mingpt_prefix.data.templates import template_fields, text_format_of

BEAMS = 5

_FILE, _FOLDER = arg(metavar="FILE"), arg(metavar="DIR")


@dataclass(frozen=True)
class TableFlags:
    """tables"""

    table: str | None = None
    """one table: "name[The Mill], eatType[pub]", JSON such as {"name": "The Mill"}, or triples"""
    input: Annotated[str | None, _FILE] = None
    """a file of tables, one per line, or a CSV file with one per row, in the columns that the run
    was trained on or in a column mr; - reads stdin"""
    scores: bool = False
    """begin each line with the sentence's score and a tab; the score is the log-probability,
    with beam search divided as --length-penalty describes"""


@dataclass(frozen=True)
class DataFlags:
    """data"""

    data: str | None = None
    """read tables from e2e, sample, a folder or a file, in any format that train reads. Rows with
    the same table are grouped: one sentence per distinct table. A single file is used as a whole"""
    split: Split | None = None
    """the split of --data to use; test-known is the sample's second test set, with names made of
    words from training"""
    text_field: str | None = None
    """the column or field of your own files that contains the reference sentences; "" for files
    with the columns mr and ref"""


@dataclass(frozen=True)
class WriterFlags:
    """model"""

    run: Annotated[Path | None, _FOLDER] = None
    """a run's folder"""
    prefix: Annotated[Path | None, _FILE] = None
    """a prefix file, instead of a run"""
    lora: Annotated[Path | None, _FILE] = None
    """a LoRA file, instead of a run; with --prefix, the one that was trained together with it"""
    model: str | None = None
    """the model that the prefix or LoRA was trained on; needed if it is a folder or a hub id"""


@dataclass(frozen=True)
class BankFlags:
    """bank"""

    bank: Annotated[Path | None, _FOLDER] = None
    """a folder of prefixes, instead of a single one: a prompt selects one with <|prefix:NAME|>, or
    the model chooses"""
    prompt: UseAppendAction[tuple[str, ...]] = ()
    """with --bank: "<|prefix:films|> title[The River]", or plain text for the model to continue;
    can be repeated"""
    prompts: Annotated[str | None, _FILE] = None
    """with --bank: a file of prompts, one per line; - reads stdin"""


@dataclass(frozen=True)
class DecodingFlags:
    """decoding"""

    beams: int | None = None
    """beam search with this many beams; 1 is greedy"""
    temperature: float | None = None
    """sample from the model's distribution at this temperature; 0 is greedy"""
    top_k: int | None = None
    """sample only from this many of the most likely tokens"""
    top_p: float | None = None
    """sample only from the most likely tokens that together have this probability"""
    seed: int = 0
    """random seed for sampling"""
    max_new_tokens: int = Decoding.max_new_tokens
    """maximum number of tokens per sentence"""
    min_new_tokens: int = Decoding.min_new_tokens
    """minimum number of tokens per sentence"""
    length_penalty: float = Decoding.length_penalty
    """in beam search, divide a sentence's log-probability by its length to this power"""
    no_repeat_ngram_size: int = Decoding.no_repeat_ngram_size
    """never repeat a sequence of this many tokens, the table's text included; 0: no limit"""
    num_return_sequences: int = Decoding.num_return_sequences
    """sentences per table, one per line: the best beams, best first, or samples; for an invalid
    table, as many empty lines"""


@dataclass(frozen=True)
class ServerFlags:
    """server"""

    beside: Annotated[tuple[Path, ...], arg(metavar="PATH [PATH ...]")] = ()
    """more runs, prefix files and LoRA files to serve"""
    watch: Annotated[Path | None, _FOLDER] = None
    """also serve the prefix files in this folder and those of the runs in it, and reload them when
    they change"""
    cors: Annotated[tuple[str, ...], arg(metavar="ORIGIN [ORIGIN ...]")] = ()
    """web origins whose pages may send requests, such as https://example.org; * allows any"""
    host: str = "127.0.0.1"
    """the address to listen on; only this machine can reach the default"""
    port: int = 8000
    """the port to listen on; 0 picks a free one"""


@dataclass(frozen=True)
class MachineFlags:
    """machine"""

    device: str = "auto"
    """auto, cpu or cuda"""
    dtype: str = "auto"
    """auto, fp32, bf16, fp16 or fp64"""
    attention: str = "auto"
    """triton, or reference (plain PyTorch); auto is reference"""


@dataclass(frozen=True)
class SampleConfig(
    TableFlags, DataFlags, WriterFlags, BankFlags, DecodingFlags, ServerFlags, MachineFlags
):
    """What writes sentences, for which tables, and how."""

    DEFAULTS: ClassVar[Mapping[str, str]] = {
        "split": "test",
        "text_field": "that of the run, or text",
        "run": "the newest finished run in runs/, else the embedded model's prefix",
        "beams": f"{BEAMS}, or 1 with --temperature, --top-k or --top-p",
    }

    def seed_of(self, number: int) -> int:
        """The seed of table `number`, so that equal tables are sampled differently."""
        return self.seed * 1_000_003 + number

    @property
    def writing_run(self) -> Path | None:
        """The folder of the run that writes; None if what writes is named by itself, or shipped."""
        if self.run is None and any((self.prefix, self.lora, self.model, self.bank)):
            return None
        return self.run or newest_finished(RUNS)

    @property
    def columns(self) -> Columns:
        """How the user's own files are read: as in training, except for --text-field.

        Raises:
            CheckpointError, ConfigError: as `kept_by` and `template_fields` for the run.
        """
        if (run := self.writing_run) is None or self.data in ("e2e", "sample"):
            return Columns(text=self.text_field or "")
        kept = kept_by(run)
        inputs = template_fields(text_format_of(kept.template)) if kept.template else ()
        text = kept.settings.get("text_field") if self.text_field is None else self.text_field
        return Columns(inputs, str(text or ""))

    @property
    def decoding(self) -> Decoding:
        """Raises ConfigError for a flag out of range."""
        given = {field.name: getattr(self, field.name) for field in dataclasses.fields(Decoding)}
        if self.beams is None:
            samples = any(given[name] is not None for name in ("temperature", "top_k", "top_p"))
            given["beams"] = 1 if samples else max(BEAMS, self.num_return_sequences)
        return Decoding(**given)
