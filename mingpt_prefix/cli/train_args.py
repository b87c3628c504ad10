"""The flags of train.py, as a frozen dataclass of groups."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, ClassVar, Literal, get_args

import tyro

from mingpt_prefix.cli.recipes import default_in_words
from mingpt_prefix.config import Depth, Init, Mode, Optimizer, Placement, Target, TrainConfig

File = tyro.conf.arg(metavar="FILE")


@dataclass(frozen=True)
class DataFlags:
    """data"""

    mode: Mode | None = None
    """what to train: a prefix, LoRA, both, all weights, or all weights on plain text (pretrain)"""
    model: str | None = None
    """tiny, gpt2, gpt2-medium, gpt2-large, gpt2-xl, a folder with a model in transformers format,
    or the id of a GPT-2 on the Hugging Face hub"""
    data: tuple[str, ...] = ()
    """e2e, sample, files (.csv, .tsv, .jsonl, .json, .xml, or .txt with table||sentence lines) or
    folders; for pretrain, .txt and .txt.xz files, with a line <|endoftext|> between documents"""
    input_template: str | None = None
    """the model's input for a table, such as "{title} by {author}"; saved with the prefix"""
    text_field: str | None = None
    """the column or field of your own files that contains the target sentences"""
    limit_examples: int | None = None
    """train on only this many examples, chosen at random with --seed; 0: on all"""
    block_size: int | None = None
    """tokens per window in pretraining"""
    config: Annotated[Path | None, File] = None
    """repeat the run that saved this run.json; other flags override its settings"""
    resume: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """continue the run in this folder from its last checkpoint"""
    out: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """the run's folder"""


@dataclass(frozen=True)
class PrefixFlags:
    """prefix"""

    prefix_length: int | None = None
    """rows in front of every layer's keys and values"""
    reparam: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """train an embedding and an MLP that compute the rows, as in the paper"""
    no_reparam: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """train the rows directly"""
    placement: Placement | None = None
    """prefix: the table and the sentence attend to the rows; infix: only the sentence does"""
    depth: Depth | None = None
    """all: learn rows for every layer; embedding: learn only virtual tokens, from which the model
    computes the rows"""
    init_text: str | None = None
    """words whose keys and values initialize the rows; without --prefix-length, the prefix length
    is their number of tokens"""
    init: Init | None = None
    """how to initialize the rows: noise, or the keys and values of training examples"""
    init_prefix: Annotated[str | None, File] = None
    """continue training from this prefix file, which must be for the same model; its length,
    placement and template stay the same"""
    prefix_dropout: float | None = None
    """dropout probability on the prefix"""


@dataclass(frozen=True)
class LoraFlags:
    """LoRA"""

    lora_rank: int | None = None
    """rank of the LoRA matrices"""
    lora_alpha: float | None = None
    """LoRA's output is multiplied by this value divided by the rank"""
    lora_targets: Annotated[
        tuple[Target, ...] | None, tyro.conf.arg(metavar="WEIGHT [WEIGHT ...]")
    ] = None
    """weights of each block that LoRA changes: attn.c_attn, attn.c_proj, mlp.c_fc, mlp.c_proj"""
    lora_dropout: float | None = None
    """dropout probability on LoRA's inputs"""
    lora_lr: float | None = None
    """learning rate of LoRA with prefix+lora; --lr is that of the prefix"""


@dataclass(frozen=True)
class OptimisationFlags:
    """optimisation"""

    lr: Annotated[float | None, tyro.conf.arg(aliases=("--learning-rate",))] = None
    """peak learning rate (linear decay to 0)"""
    epochs: float | None = None
    """passes over the training examples"""
    max_steps: int | None = None
    """stop after this many steps; 0: stop after --epochs"""
    batch_size: int | None = None
    """examples per optimizer step"""
    micro_batch_size: int | None = None
    """examples per forward and backward pass; gradients are accumulated up to --batch-size"""
    optimizer: Optimizer | None = None
    """muon uses Muon for the blocks' matrices (with --no-reparam: the rows) and AdamW for the
    rest"""
    dropout: float | None = None
    """dropout on embeddings and residuals, when the model itself is trained"""
    weight_decay: float | None = None
    """weight decay of AdamW and Muon"""
    warmup: float | None = None
    """fraction of steps used for linear warmup"""
    evals: int | None = None
    """number of dev evaluations, evenly spaced"""
    seed: int | None = None
    """random seed for the order of examples, dropout and initial weights"""
    sweep: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME=VALUE,VALUE...")] = ()
    """train a prefix for each combination of these settings, all in one run"""
    sweep_width: int | None = None
    """number of prefixes in a sweep that are trained at once"""


@dataclass(frozen=True)
class MachineFlags:
    """machine"""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto uses the GPU if there is one"""
    dtype: Literal["auto", "fp32", "bf16"] = "auto"
    """the data type; auto is bf16 on a GPU, fp32 on the CPU"""
    attention: Literal["auto", "triton", "reference"] = "auto"
    """the attention implementation: the Triton kernels, or plain PyTorch (reference, and auto)"""
    graphs: bool = True
    """run whole steps as CUDA graphs if possible: on a GPU, with the Triton kernels"""
    grad_checkpoint: bool = False
    """recompute activations in the backward pass: less memory, more time"""
    shard: bool = False
    """with torchrun: split the model across the processes (finetune and pretrain only)"""
    log: Literal["tensorboard"] | None = None
    """also write the log to tensorboard/ in the run's folder; a resumed run appends to it"""


def _by_recipe() -> dict[str, str]:
    """The recipes' defaults in words, by flag."""
    settings = {each.name for each in fields(TrainConfig)}
    modes: dict[type, tuple[Mode, ...]] = {
        PrefixFlags: ("prefix", "prefix+lora"),
        LoraFlags: ("lora", "prefix+lora"),
        OptimisationFlags: get_args(Mode),
    }
    words = {
        each.name: default_in_words(each.name, of)
        for group, of in modes.items()
        for each in fields(group)
        if each.name in settings
    }
    words["lora_lr"] = default_in_words("lora_lr", ("prefix+lora",))
    words["limit_examples"] = default_in_words("limit_examples", ("prefix",))
    words["block_size"] = default_in_words("block_size", ("pretrain",))
    return {name: f"by recipe: {text}" if "tiny" in text else text for name, text in words.items()}


@dataclass(frozen=True)
class TrainArgs(DataFlags, PrefixFlags, LoraFlags, OptimisationFlags, MachineFlags):
    """Flags of train.py; the recipe of the mode and model sets those that are not given."""

    DEFAULTS: ClassVar[Mapping[str, str]] = {
        **_by_recipe(),
        "no_reparam": "",
        "mode": "prefix",
        "model": "gpt2 if there is a GPU and its weights are available, else tiny",
        "data": "e2e, or sample for tiny",
        "text_field": "text",
        "sweep_width": "as many as memory allows",
        "out": "a new folder under runs/",
    }
