"""The same training steps by transformers and PEFT, at their best ordinary settings.

SDPA attention, fused AdamW, bf16 autocast where bf16 is asked for, padding to the longest example
of a batch, and the loss as their models compute it. Dropout as ours: none with a prefix; on
embeddings and residuals, but not on attention weights, in fine-tuning.
"""

import warnings
from collections.abc import Sequence
from contextlib import nullcontext

import peft
import torch
import transformers
from torch import Tensor, nn
from torch.profiler import record_function

from mingpt_prefix.accel.cuda_graphs import prefetch
from mingpt_prefix.batch import Encoded
from mingpt_prefix.config import TrainConfig
from mingpt_prefix.model import GPT2

# PEFT calls transformers in ways that it has deprecated.
warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
transformers.logging.set_verbosity_error()


class Base(transformers.GPT2LMHeadModel):
    """PEFT 0.21's `generate` loses its prefix where transformers gives the cache a newer name."""

    def prepare_inputs_for_generation(self, *args, **kwargs):
        inputs = super().prepare_inputs_for_generation(*args, **kwargs)
        if "cache" in inputs:
            inputs["past_key_values"] = inputs.pop("cache")
        return inputs


def build(ours: GPT2, config: TrainConfig, encoder: nn.Module | None = None) -> nn.Module:
    """transformers' GPT-2 with the weights of `ours`; in prefix mode frozen, with PEFT's prefix,
    whose encoder has the weights of `encoder`, if it is given."""
    shape = ours.config
    their_config = transformers.GPT2Config(
        vocab_size=shape.vocab_size, n_positions=shape.n_positions, n_embd=shape.n_embd,
        n_layer=shape.n_layer, n_head=shape.n_head, embd_pdrop=config.dropout,
        resid_pdrop=config.dropout, attn_pdrop=0.0, attn_implementation="sdpa",
        bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    model = Base(their_config)
    weights = {f"transformer.{name}": p.float() for name, p in ours.state_dict().items()}
    missing = model.load_state_dict(weights, strict=False).missing_keys
    assert set(missing) <= {"lm_head.weight"}, missing  # tied to wte
    if config.mode == "prefix":
        model = model.to(ours.wte.weight.dtype)  # frozen: held in the compute dtype, as ours is
        prefix = peft.PrefixTuningConfig(
            task_type="CAUSAL_LM", num_virtual_tokens=config.prefix_length,
            prefix_projection=True, encoder_hidden_size=config.mid_dim,
        )  # fmt: skip
        model = peft.get_peft_model(model, prefix)
        if encoder is not None:
            model.prompt_encoder["default"].load_state_dict(encoder.state_dict())
    return model.to(ours.device)


def pad(examples: Sequence[Encoded], device: torch.device, step: int = 1) -> dict[str, Tensor]:
    """input_ids, attention_mask and labels (B, S), S a multiple of `step`; -100 marks what is not
    predicted."""
    rows = [e.ids for e in examples]
    ids = nn.utils.rnn.pad_sequence(rows, batch_first=True)
    ids = nn.functional.pad(ids, (0, -ids.shape[1] % step))
    lengths = torch.tensor([len(row) for row in rows])
    contexts = torch.tensor([e.prompt_length for e in examples])
    column = torch.arange(ids.shape[1])
    real = column < lengths[:, None]
    labels = ids.masked_fill(~real | (column < contexts[:, None]), -100)
    batch = {"input_ids": ids, "attention_mask": real.long(), "labels": labels}
    return {name: tensor.to(device) for name, tensor in batch.items()}


class Stepper:
    """One training step after another. If `compiled`, batches have few widths, each with a CUDA
    graph of its own on a GPU."""

    def __init__(
        self, model: nn.Module, config: TrainConfig, total_steps: int, compiled: bool = False
    ) -> None:
        self.model, self.config, self.width = model, config, 32 if compiled else 1
        self.trained = [p for p in model.parameters() if p.requires_grad]
        if compiled:
            self.model = torch.compile(model, mode="reduce-overhead", dynamic=False)
        self.optimizer = torch.optim.AdamW(
            self.trained, lr=config.lr, weight_decay=config.weight_decay, fused=True
        )
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda step: 1 - step / total_steps
        )

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        """Mean over a padded batch's target tokens."""
        device = self.trained[0].device
        is_bf16 = self.config.dtype == "bf16"
        with torch.autocast(device.type, torch.bfloat16) if is_bf16 else nullcontext():
            return self.model(**batch).loss

    def run(self, batches: Sequence[Sequence[Encoded]]) -> None:
        """A step a batch; they are padded and brought to the device by a thread, some ahead."""
        self.model.train()
        for batch in prefetch(self.padded, batches):
            self.step(batch)

    def padded(self, examples: Sequence[Encoded]) -> dict[str, Tensor]:
        return pad(examples, self.trained[0].device, self.width)

    def step(self, batch: dict[str, Tensor]) -> Tensor:
        """Take it; returns its loss."""
        torch.compiler.cudagraph_mark_step_begin()
        with record_function("forward"):
            loss = self.loss(batch)
        with record_function("backward"):
            loss.backward()
        nn.utils.clip_grad_norm_(self.trained, self.config.clip)
        with record_function("optimizer"):
            self.optimizer.step()
            self.schedule.step()
            self.optimizer.zero_grad(set_to_none=True)
        return loss.detach()
