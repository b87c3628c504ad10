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
    """what is trained: a prefix, LoRA, both, all weights, or all on plain text (pretrain)"""
    model: str | None = None
    """tiny, gpt2, gpt2-medium, gpt2-large, gpt2-xl, a folder as transformers saves a model, or the
    id of a GPT-2 on the Hugging Face hub"""
    data: tuple[str, ...] = ()
    """e2e, sample, files (.csv, .tsv, .jsonl, .json, .xml, or .txt with table||sentence lines) or
    folders; for pretrain .txt and .txt.xz files, documents separated by a line <|endoftext|>"""
    input_template: str | None = None
    """what the model is given for a table, such as "{title} by {author}"; saved with the prefix"""
    text_field: str | None = None
    """the column or field of your own files that holds the sentences"""
    limit_examples: int | None = None
    """train on only this many examples, drawn by the seed; 0: on all"""
    block_size: int | None = None
    """tokens in a window of pretraining"""
    config: Annotated[Path | None, File] = None
    """repeat the run whose run.json this is; other flags change its settings"""
    resume: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """continue the run in this folder, exactly where it was saved"""
    out: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """the run's folder"""


@dataclass(frozen=True)
class PrefixFlags:
    """prefix"""

    prefix_length: int | None = None
    """rows in front of every layer's keys and values"""
    reparam: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """train the rows through an embedding and an MLP, as the paper does"""
    no_reparam: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """train the rows directly"""
    placement: Placement | None = None
    """prefix: the table and the sentence see the rows; infix: only the sentence does"""
    depth: Depth | None = None
    """all: rows for every layer are learned; embedding: only virtual tokens, whose rows the model
    computes"""
    init_text: str | None = None
    """words whose keys and values the rows start from; their number is the length"""
    init: Init | None = None
    """what rows start from: noise, or the keys and values of training examples"""
    init_prefix: Annotated[str | None, File] = None
    """a prefix file of this model to train on from; its length, placement and template are kept"""
    prefix_dropout: float | None = None
    """share of the rows' numbers that is dropped in training"""


@dataclass(frozen=True)
class LoraFlags:
    """LoRA"""

    lora_rank: int | None = None
    """the inner size of LoRA's two matrices"""
    lora_alpha: float | None = None
    """LoRA's output is scaled by this, divided by the rank"""
    lora_targets: Annotated[
        tuple[Target, ...] | None, tyro.conf.arg(metavar="WEIGHT [WEIGHT ...]")
    ] = None
    """which weights of every block LoRA changes: attn.c_attn, attn.c_proj, mlp.c_fc, mlp.c_proj"""
    lora_dropout: float | None = None
    """share of LoRA's inputs that is dropped in training"""
    lora_lr: float | None = None
    """LoRA's own learning rate in prefix+lora; --lr is the prefix's"""


@dataclass(frozen=True)
class OptimisationFlags:
    """optimisation"""

    lr: Annotated[float | None, tyro.conf.arg(aliases=("--learning-rate",))] = None
    """the highest learning rate; it falls linearly to 0"""
    epochs: float | None = None
    """passes over the training examples"""
    max_steps: int | None = None
    """stop after this many steps; 0: after --epochs"""
    batch_size: int | None = None
    """examples in one step of the optimizer"""
    micro_batch_size: int | None = None
    """examples that go through the model at once; gradients are accumulated over --batch-size"""
    optimizer: Optimizer | None = None
    """muon trains the blocks' matrices, or with --no-reparam the rows; AdamW trains the rest"""
    dropout: float | None = None
    """dropout of embeddings and residuals when the model itself is trained"""
    weight_decay: float | None = None
    """AdamW's and Muon's weight decay"""
    warmup: float | None = None
    """share of all steps in which the learning rate rises"""
    evals: int | None = None
    """how often the dev loss is measured, evenly spaced over the run"""
    seed: int | None = None
    """for the order of examples, dropout and fresh weights"""
    sweep: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME=VALUE,VALUE...")] = ()
    """train a prefix for each combination of these settings, all in one run"""
    sweep_width: int | None = None
    """members of a sweep that are trained at once"""


@dataclass(frozen=True)
class MachineFlags:
    """machine"""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """where to compute; auto is the GPU if there is one"""
    dtype: Literal["auto", "fp32", "bf16"] = "auto"
    """the number format; auto is bf16 on a GPU, fp32 on the CPU"""
    attention: Literal["auto", "triton", "reference"] = "auto"
    """what computes attention: the Triton kernels, or plain PyTorch (reference, and auto)"""
    graphs: bool = True
    """take whole steps as CUDA graphs if possible: on a GPU, with the Triton kernels"""
    grad_checkpoint: bool = False
    """recompute activations in the backward pass: less memory, about a quarter more time"""
    shard: bool = False
    """under torchrun: each process holds a part of the model, for finetune and pretrain"""
    log: Literal["tensorboard"] | None = None
    """also write the log to tensorboard/ in the run's folder; a resumed run continues it"""


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
    """Flags of train.py; those not given come from the recipe of the mode and model."""

    DEFAULTS: ClassVar[Mapping[str, str]] = {
        **_by_recipe(),
        "no_reparam": "",
        "mode": "prefix",
        "model": "gpt2 if there is a GPU and its weights are at hand, else tiny",
        "data": "e2e, or sample for tiny",
        "text_field": "text",
        "sweep_width": "as many as memory allows",
        "out": "a new folder under runs/",
    }
