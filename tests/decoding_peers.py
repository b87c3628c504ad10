"""A little model whose outputs vary and end, and its peer: transformers' GPT-2, PEFT's prefix.

All is in float64: a random GPT-2 of the usual kind repeats one token, and near ties are many. The
peers run one prompt at a time, unpadded.
"""

import pytest
import torch

from mingpt_prefix.batch import PrefixKV
from mingpt_prefix.config import ModelConfig
from mingpt_prefix.model import GPT2

P, MOST, EOS = 4, 50, 60
CONFIG = ModelConfig(2, 2, 32, vocab_size=61, n_positions=96, eos_token_id=EOS, tokenizer=None)
SHAPE = (CONFIG.n_layer, 2, P, CONFIG.n_head, CONFIG.head_dim)


def make_model() -> GPT2:
    model, generator = GPT2(CONFIG), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(std=0.2, generator=generator)
            if "ln_" in name and name.endswith("weight"):
                parameter.fill_(1.0)
        model.wpe.weight *= 10.0  # outputs vary with the position
        model.wte.weight[EOS] *= 2.2  # and end
    return model.double().requires_grad_(False).eval()


def make_prefix() -> PrefixKV:
    generator = torch.Generator().manual_seed(0)
    return PrefixKV.from_tensor(2 * torch.randn(SHAPE, generator=generator, dtype=torch.double))


def make_prompts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, 31, (50,), generator=generator).tolist()
    return [torch.randint(EOS, (length,), generator=generator).tolist() for length in lengths]


def make_peer(model: GPT2, prefix: PrefixKV | None):
    """transformers' model of the same weights, behind PEFT's prefix of the same rows."""
    transformers, peft = pytest.importorskip("transformers"), pytest.importorskip("peft")

    from bench.methods.peers import Base

    config = transformers.GPT2Config(
        n_layer=CONFIG.n_layer,
        n_head=CONFIG.n_head,
        n_embd=CONFIG.n_embd,
        vocab_size=CONFIG.vocab_size,
        n_positions=CONFIG.n_positions,
        bos_token_id=EOS,
        eos_token_id=EOS,
    )
    peer = Base(config).double().eval()
    weights = {f"transformer.{name}": tensor for name, tensor in model.state_dict().items()}
    assert set(peer.load_state_dict(weights, strict=False).missing_keys) <= {"lm_head.weight"}
    peer.tie_weights()
    if prefix is None:
        return peer
    settings = peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=P)
    peer = peft.get_peft_model(peer, settings).double().eval()
    rows = prefix.kv.permute(2, 0, 1, 3, 4).reshape(P, -1)  # (P, L * 2 * H * D)
    peer.prompt_encoder["default"].load_state_dict({"embedding.weight": rows})
    return peer


def run_peer(peer, prompt: list[int], eos: int | None = EOS, **flags):
    """What its `generate` gives for one prompt: `sequences`, `scores` and the like."""
    ids = torch.tensor([prompt])
    rules = {"max_new_tokens": MOST, "do_sample": False, "early_stopping": False, **flags}
    return peer.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        eos_token_id=eos,
        pad_token_id=EOS,
        return_dict_in_generate=True,
        output_scores=True,
        **rules,
    )


def new_ids(out, prompt: list[int], eos: int | None = EOS) -> list[list[int]]:
    """The new ids of each returned sequence, without the end token."""
    new = out.sequences[:, len(prompt) :].tolist()
    return [ids[: ids.index(EOS)] if eos is not None and EOS in ids else ids for ids in new]


def theirs(peer, prompt: list[int], eos: int | None = EOS, **flags) -> list[int]:
    """The new ids of the one sequence."""
    (ids,) = new_ids(run_peer(peer, prompt, eos, **flags), prompt, eos)
    return ids


def assert_varied(outputs: list[list[int]]) -> None:
    """That equal outputs mean something."""
    assert sum(len(set(ids)) for ids in outputs) / len(outputs) >= 10
    assert len(set(map(tuple, outputs))) > len(outputs) / 2


def assert_ending(outputs: list[list[int]]) -> None:
    """That at least half of them end by the end token."""
    assert sum(len(ids) < MOST for ids in outputs) >= len(outputs) / 2
