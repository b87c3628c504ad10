"""The flags of sample.py, as a frozen dataclass."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from tyro.conf import UseAppendAction

from mingpt_prefix.config import Decoding

BEAMS = 5


@dataclass(frozen=True)
class SampleConfig:
    """Flags of sample.py."""

    table: str | None = None
    """one table: "name[The Mill], eatType[pub]", or as JSON: {"name": "The Mill"}, or triples"""
    input: str | None = None
    """a file of tables, one a line, or CSV with a column mr; - reads them from stdin"""
    run: Path | None = None
    """a run's folder; the newest finished one under runs/ if not given"""
    prefix: Path | None = None
    """a prefix file, in place of a run"""
    lora: Path | None = None
    """a LoRA file, in place of a run; with --prefix: one that was trained together with it"""
    bank: Path | None = None
    """a folder of prefixes, in place of one: which of them is seen is said in a prompt by
    <|prefix:NAME|>, or chosen by the model"""
    prompt: UseAppendAction[tuple[str, ...]] = ()
    """with --bank: "<|prefix:films|> title[The River]", or plain text for the model to go on with;
    may be given several times"""
    prompts: str | None = None
    """with --bank: a file of prompts, one a line; - reads them from stdin"""
    model: str | None = None
    """the model a prefix or LoRA was made for: a folder or hub id must be named, a known name is
    found"""
    beams: int | None = None
    """beam search with so many beams; 1 is greedy. 5 if not given, or 1 with --temperature, --top-k
    or --top-p"""
    temperature: float | None = None
    """sample, from the model's distribution at this temperature; 0 is greedy"""
    top_k: int | None = None
    """sample, from so many likeliest tokens only"""
    top_p: float | None = None
    """sample, from the likeliest tokens that together have this probability"""
    seed: int = 0
    max_new_tokens: int = 100
    length_penalty: float = 1.0
    """beam search: a sentence's log-probability is divided by its length to this power"""
    no_repeat_ngram_size: int = 0
    """no run of so many tokens comes twice, the table's own text counted; 0: any may"""
    min_new_tokens: int = 0
    """so many tokens at least before a sentence may end"""
    num_return_sequences: int = 1
    """so many sentences a table, a line each: the best beams, best first, or samples; a bad table
    gets as many empty lines"""
    scores: bool = False
    """begin each line with the sentence's score and a tab: its log-probability (beams: divided)"""
    device: str = "auto"
    """auto, cpu or cuda"""
    dtype: str = "auto"
    """auto, fp32, bf16, fp16 or fp64"""
    attention: str = "auto"
    """triton, or reference (plain PyTorch), which auto means too"""
    serve: bool = False
    """a web page and HTTP endpoints on this machine, in place of --table and --input"""
    beside: tuple[Path, ...] = ()
    """with --serve: further runs, prefix files and LoRA files to choose from"""
    watch: Path | None = None
    """with --serve: a folder whose prefix files, and those of the runs in it, are served as they
    come, change and go"""
    cors: tuple[str, ...] = ()
    """with --serve: web origins whose pages may ask, as https://example.org; * is any"""
    host: str = "127.0.0.1"
    """with --serve: the address to listen on; other machines reach any but the default"""
    port: int = 8000
    """with --serve: the port to listen on; 0 is any that is free"""

    @property
    def decoding(self) -> Decoding:
        """Raises ConfigError for a flag out of range."""
        given = {field.name: getattr(self, field.name) for field in dataclasses.fields(Decoding)}
        if self.beams is None:
            samples = any(given[name] is not None for name in ("temperature", "top_k", "top_p"))
            given["beams"] = 1 if samples else max(BEAMS, self.num_return_sequences)
        return Decoding(**given)
