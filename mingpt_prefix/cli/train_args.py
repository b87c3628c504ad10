"""The flags of train.py, as a frozen dataclass."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from mingpt_prefix.config import Depth, Init, Mode, Optimizer, Placement, Target


@dataclass(frozen=True)
class TrainArgs:
    """Flags of train.py; those not given come from the recipe of the mode and model."""

    mode: Mode | None = None
    """what is trained: a prefix (the default), LoRA, both, all weights, or all on plain text
    (pretrain)"""
    model: str | None = None
    """tiny, gpt2, gpt2-medium, gpt2-large, gpt2-xl, a folder as transformers saves a model, or the
    id of a GPT-2 on the Hugging Face hub"""
    data: tuple[str, ...] = ()
    """e2e, sample, files (.csv, .tsv, .jsonl, .json, .xml, or .txt with table||sentence lines) or
    folders; for pretrain .txt, .txt.xz, documents separated by a line <|endoftext|>"""
    input_template: str | None = None
    """what the model is given for a table, as "{title} by {author}"; kept with the prefix"""
    text_field: str | None = None
    """the column or field of the sentences in files of your own; text if not given"""
    prefix_length: int | None = None
    """rows in front of every layer's keys and values"""
    reparam: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """train the rows through an embedding and an MLP: the paper's way, the default but for tiny"""
    no_reparam: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """train the rows directly"""
    placement: Placement | None = None
    """prefix: the table and the sentence see the rows; infix: the sentence alone"""
    depth: Depth | None = None
    """all: rows for every layer are learned; embedding: those of learned virtual tokens"""
    init_text: str | None = None
    """words whose keys and values the rows start from; their number is the length"""
    init: Init | None = None
    """what rows start from: noise, or the keys and values of training examples"""
    init_prefix: Annotated[str | None, tyro.conf.arg(metavar="FILE")] = None
    """a prefix file of this model to train on from; its length, placement and template are taken"""
    prefix_dropout: float | None = None
    """of the rows, in training"""
    lora_rank: int | None = None
    """columns and rows of LoRA's matrices"""
    lora_alpha: float | None = None
    """LoRA's products count so many times, divided by the rank"""
    lora_targets: tuple[Target, ...] | None = None
    """the weights of every block that LoRA changes"""
    lora_dropout: float | None = None
    """of what goes into LoRA's products, in training"""
    lora_lr: float | None = None
    """LoRA's own learning rate beside a prefix, which has --lr"""
    lr: Annotated[float | None, tyro.conf.arg(aliases=("--learning-rate",))] = None
    epochs: float | None = None
    max_steps: int | None = None
    """end after so many steps, whatever --epochs says"""
    limit_examples: int | None = None
    """train on so many examples, drawn by the seed"""
    batch_size: int | None = None
    micro_batch_size: int | None = None
    """sequences at once; gradients add up to --batch-size"""
    optimizer: Optimizer | None = None
    """muon takes the blocks' matrices, or with --no-reparam the rows; AdamW takes the rest"""
    dropout: float | None = None
    weight_decay: float | None = None
    warmup: float | None = None
    """share of all steps in which the learning rate rises"""
    evals: int | None = None
    """how many dev losses are taken, evenly spaced"""
    block_size: int | None = None
    """tokens in a window of pretraining"""
    grad_checkpoint: bool = False
    """compute activations again in backward: less memory, a quarter more time or so"""
    seed: int | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"
    dtype: Literal["auto", "fp32", "bf16"] = "auto"
    attention: Literal["auto", "triton", "reference"] = "auto"
    """what computes attention: the Triton kernels, or plain PyTorch (reference, and auto)"""
    graphs: bool = True
    """take whole steps as CUDA graphs, where they can be: on a GPU, with the Triton kernels"""
    shard: bool = False
    """under torchrun: each process holds a part of the model, for finetune and pretrain"""
    log: Literal["tensorboard"] | None = None
    """write the log to tensorboard/ in the run's folder too; a resumed run goes on with it"""
    sweep: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME=VALUE,VALUE...")] = ()
    """train a prefix for each combination of these settings, all in one run"""
    sweep_width: int | None = None
    """members of a sweep that are trained at once; what memory allows if not given"""
    out: Path | None = None
    """the run's folder; a new one under runs/ if not given"""
    resume: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """go on with the run in this folder, exactly where it was saved"""
