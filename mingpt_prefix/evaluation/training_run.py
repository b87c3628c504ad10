"""A training run put together, and what it leaves behind.

trainer = make_trainer(config, model, task.train_set, task.dev_set)
save_trained(trainer, run)
end_run(trainer, task, run, seconds).line      # "dev BLEU 61.2"
"""

import hashlib
from collections.abc import Sequence

from mingpt_prefix.accel.buckets import of_few_sizes
from mingpt_prefix.accel.cuda_graphs import GraphedStep, why_not_graphs
from mingpt_prefix.accel.distributed import ALONE, World
from mingpt_prefix.accel.distributed_step import DistributedStep
from mingpt_prefix.accel.environment import peak_memory
from mingpt_prefix.accel.fsdp import whole_model
from mingpt_prefix.accel.prepacked_linear import prepack
from mingpt_prefix.adapters.learned import make_adapters
from mingpt_prefix.adapters.lora_file import LoraInfo, folded_fingerprint, load_folded, save_lora
from mingpt_prefix.adapters.prefix_file import PrefixInfo, load_prefix, save_prefix
from mingpt_prefix.batch import Encoded
from mingpt_prefix.checkpoints.pretrained import load_model, save_model
from mingpt_prefix.checkpoints.run_folder import RunFolder, read_run
from mingpt_prefix.config import TrainConfig, to_json
from mingpt_prefix.data.templates import text_format_of
from mingpt_prefix.data.tokenizer import load_tokenizer
from mingpt_prefix.data.tokenizer_json import tokenizer_json
from mingpt_prefix.evaluation.tasks import Score, Task
from mingpt_prefix.model import GPT2
from mingpt_prefix.step import EagerStep, TrainStep
from mingpt_prefix.trainer import Trainer


def make_trainer(
    config: TrainConfig,
    model: GPT2,
    train_set: Sequence[Encoded],
    dev_set: Sequence[Encoded],
    world: World = ALONE,
    graphs: bool = True,
) -> Trainer:
    """The trainer of a run, at its beginning.

    If adapters are trained, `model` is frozen, in whatever dtype it is held; else its weights are
    trained in float32, with matrix products in `config.dtype` (autocast). `graphs`: steps are taken
    whole, as CUDA graphs, if `why_not_graphs` has nothing against it.

    Raises:
        ConfigError: when an example does not fit the model's positions, for settings that do not
            go together, and for shards of what is not cut up.
        PrefixError: as `make_adapters`.
    """
    model.requires_grad_(not config.is_frozen)
    model.dropout = 0.0 if config.is_frozen else config.dropout
    model.grad_checkpoint = config.grad_checkpoint
    adapters = make_adapters(config, model, train_set)
    if adapters is not None:
        prepack(model, backward=True)
    if world.size > 1:
        gradients = DistributedStep(config, model, adapters, world)
    else:
        gradients = TrainStep(config, model, adapters)
    if config.dtype == "bf16" and model.device.type == "cpu":
        gradients.pad = of_few_sizes
    if graphs and why_not_graphs(config, world) is None:
        stepper = GraphedStep(gradients, config, train_set)
    else:
        stepper = EagerStep(gradients, config)
    return Trainer(config, gradients, stepper, train_set, dev_set)


def origin(task: Task, base: GPT2) -> dict[str, str]:
    """Digests of what a run begins with, by name: a resumed run must see the same."""
    data = {"data": _digest(task.train_set), "dev_data": _digest(task.dev_set)}
    return {**data, "base_model": base.fingerprint}


def _digest(examples: Sequence[Encoded]) -> str:
    """SHA-256 over all ids in order."""
    digest = hashlib.sha256()
    for example in examples:
        digest.update(example.prompt_length.to_bytes(4, "little"))
        digest.update(example.ids.numpy().tobytes())
    return digest.hexdigest()


def save_trained(trainer: Trainer, run: RunFolder | None, world: World = ALONE) -> None:
    """Write what has been trained as it is now: the folded adapters, or the model.

    All ranks call it; the one that has a run folder writes.
    """
    config, model = trainer.config, whole_model(trainer.model, world)
    if run is None:
        return
    if not config.is_frozen:
        name = model.config.tokenizer
        text = None if name is None else tokenizer_json(load_tokenizer(name))
        save_model(model, run.model_folder, tokenizer=text)
        return
    learned, fingerprint = trainer.folded(), model.fingerprint
    same = {
        "base": model.name,
        "text_format": text_format_of(config.input_template),
        "training": _learning_settings(config),
    }
    if learned.low_rank is not None:
        info = LoraInfo(
            fingerprint=fingerprint,
            rank=config.lora_rank,
            alpha=float(config.lora_alpha),
            targets=sorted(config.lora_targets),
            **same,
        )
        save_lora(run.lora_file, learned.low_rank, info)
        fingerprint = folded_fingerprint(fingerprint, learned.low_rank)
    if learned.prefix is not None:
        info = PrefixInfo(
            fingerprint=fingerprint,
            length=config.prefix_length,
            placement=config.placement,
            **same,
        )
        save_prefix(run.prefix_file, learned.prefix.kv, info)


def _learning_settings(config: TrainConfig) -> dict:
    """The settings that affect the learned weights: no folders, devices or files."""
    skip = "model data device attention evals block_size grad_checkpoint init_prefix".split()
    return {name: value for name, value in to_json(config).items() if name not in skip}


def first_content(config: TrainConfig, began_with: dict[str, str]) -> dict:
    """What run.json holds of a run that has not begun; `began_with` is its `origin`."""
    return {"config": to_json(config), **began_with, "result": None}


def end_run(trainer: Trainer, task: Task, run: RunFolder, seconds: float | None) -> Score:
    """Score what was kept, and write the run's result; `seconds` None: they are not known."""
    cost = {
        "seconds": seconds,
        "peak_memory": peak_memory(trainer.model.device),
        "trained": trainer.n_trained,
        "kept": trainer.n_kept,
    }
    score = _score_kept(trainer, task, run)
    result = {"steps": trainer.step, "best_step": trainer.best_step, **score.values, **cost}
    run.write_run({**read_run(run.path), "result": result})
    return score


def _score_kept(trainer: Trainer, task: Task, run: RunFolder) -> Score:
    """The score of what the run has kept, read back from its files."""
    config = trainer.config
    how = {"device": config.device, "attention": config.attention}
    if config.has_lora:
        model, _ = load_folded(config.model, run.lora_file, dtype=config.dtype, **how)
    elif config.has_prefix:
        model = trainer.model.eval()
    else:
        model = load_model(run.model_folder, dtype="fp32", **how)
    return task.score(model, load_prefix(run.prefix_file) if config.has_prefix else None)
