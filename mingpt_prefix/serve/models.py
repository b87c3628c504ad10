"""The models a server answers by: the frozen model, prefixes on it, fine-tuned models.

    models = open_models(SampleConfig(run=Path("runs/a"), beside=(Path("runs/b"),)))
    prompt = models[0].pipeline.prompt(parse_table("name[The Mill]"))

The first is what `open_pipeline` gives for the same flags. All prefixes share one model in memory;
each model is known by a name of its own, which is what a request gives: never a path.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from mingpt_prefix.adapters.lora_file import FORMAT as LORA_FORMAT
from mingpt_prefix.adapters.prefix_file import read_fitting
from mingpt_prefix.checkpoints.run_folder import (
    RUN_FILE,
    RUNS,
    RunFolder,
    kept_by,
    newest_finished,
)
from mingpt_prefix.errors import ConfigError, printable, shown
from mingpt_prefix.evaluation.pipeline import open_pipeline
from mingpt_prefix.evaluation.sample_config import SampleConfig
from mingpt_prefix.evaluation.table_to_text import Pipeline

Kind = Literal["frozen", "prefix", "fine-tuned"]
FROZEN = "frozen"


@dataclass(frozen=True)
class ServedModel:
    """A pipeline by name."""

    name: str
    kind: Kind
    pipeline: Pipeline


def open_models(config: SampleConfig) -> list[ServedModel]:
    """All that the flags name, the first of them first; the frozen model is behind the prefixes.

    Raises:
        MingptPrefixError: as `open_pipeline`; and if a prefix beside is not of the first's model.
    """
    if all(named is None for named in (config.run, config.prefix, config.lora, config.model)):
        config = replace(config, run=newest_finished(RUNS))
    first = open_pipeline(config)
    tuned, prefixes = [], []
    if config.lora is not None or (config.run is not None and not kept_by(config.run).is_prefix):
        tuned.append((_first_name(config), first))
    elif first.prefix is not None:
        prefixes.append((_first_name(config), first))
    alone = replace(config, run=None, prefix=None, lora=None)
    for path in config.beside:
        kept = kept_by(path) if (path / RUN_FILE).exists() else None
        name = _file_name(path) if kept is None else path.resolve().name
        if kept is not None and not kept.is_prefix:
            # LoRA is on a base that may have to be named; other runs have a model of their own.
            base = config.model if kept.model is None else None
            tuned.append((name, open_pipeline(replace(alone, run=path, model=base))))
        elif kept is None and LORA_FORMAT.claims(path):
            tuned.append((name, open_pipeline(replace(alone, lora=path))))
        else:
            prefixes.append((name, _prefix_beside(kept.prefix if kept else path, first)))
    origin = "the same model without a prefix" if prefixes else first.origin
    frozen = (
        []
        if tuned and tuned[0][1] is first
        else [(FROZEN, replace(first, prefix=None, origin=origin))]
    )
    kinds: list[tuple[Kind, list]] = [("prefix", prefixes), (FROZEN, frozen), ("fine-tuned", tuned)]
    models: list[ServedModel] = []
    for kind, found in kinds:
        for name, pipeline in found:
            taken = {FROZEN, *(served.name for served in models)} if kind != FROZEN else ()
            models.append(_served(_free_name(name, taken), kind, pipeline))
    return models


def prefix_beside(file: Path, first: Pipeline, taken: set[str]) -> ServedModel:
    """The prefix of a file on the first one's model; its name is none of those taken.

    Raises:
        PrefixError: as `read_fitting`.
    """
    pipeline = _prefix_beside(file, first)
    return _served(_free_name(_file_name(file), taken), "prefix", pipeline)


def _served(name: str, kind: Kind, pipeline: Pipeline) -> ServedModel:
    if (prefix := pipeline.prefix) is not None:
        model = pipeline.model
        pipeline = replace(pipeline, prefix=prefix.to(model.device, model.wte.weight.dtype))
    return ServedModel(name, kind, pipeline)


def _first_name(config: SampleConfig) -> str:
    if config.run is not None:
        return config.run.resolve().name
    file = config.prefix if config.lora is None else config.lora
    return "shipped" if file is None else _file_name(file)


def _file_name(file: Path) -> str:
    """What a learned file is called: by its folder where its own name is that of all runs'."""
    run = RunFolder(file.parent)
    is_of_run = file.name in (run.prefix_file.name, run.lora_file.name)
    return file.resolve().parent.name if is_of_run else file.stem


def _prefix_beside(file: Path, first: Pipeline) -> Pipeline:
    """The pipeline of a prefix on the first one's model."""
    kv, info = read_fitting(file, first.model)
    origin = f"the prefix {shown(file)} on the same model"
    return replace(
        first, prefix=kv, text_format=info.text_format, placement=info.placement, origin=origin
    )


def _free_name(name: str, taken: set[str] | tuple[()]) -> str:
    """`name`, or with the first number behind it that makes it another's than those taken."""
    name = printable(name, 60)
    if not name:
        raise ConfigError("a prefix or run without a name")
    numbers = ["", *(f"-{n}" for n in range(2, len(taken) + 3))]
    return next(name + number for number in numbers if name + number not in taken)
