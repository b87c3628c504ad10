"""How much of its attention each token pays to the prefix, layer by layer.

    shares = prefix_shares(model, ids, prefix)      # (L, H, T), each in [0, 1]
    shares.mean(1)                                  # (L, T): a heat map

Attention is a mean of values, weighted by what a query pays to each row. With values of 1 in the
prefix's rows and of 0 in all others it is the share that the prefix's rows get: so the arithmetic
is that of `kernels.reference`, and no matrix of attention weights is ever written.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from mingpt_prefix.batch import PrefixKV, make_layout, make_positions
from mingpt_prefix.kernels import reference
from mingpt_prefix.model import GPT2


@torch.inference_mode()
def prefix_shares(
    model: GPT2,
    ids: Sequence[int] | Tensor,
    prefix: PrefixKV,
    prefix_id: int = 0,
    prefix_from: int | None = None,
) -> Tensor:
    """The share of each of T queries' attention that goes to prefix `prefix_id`: (L, H, T).

    One pass of the model over `ids` (T,). `prefix_from` is the first token that sees the prefix,
    which then moves no positions; None means that it stands in front. Queries that do not see it,
    and all of them where `prefix_id` is -1, have 0.

    Raises:
        ValueError: for no ids, a position past the model's limit, an id that names no prefix, or a
            prefix of another shape than the model's.
    """
    tokens = torch.as_tensor(ids, dtype=torch.long, device=model.device)
    if not len(tokens):
        raise ValueError("ids: expected at least one")
    if not -1 <= prefix_id < len(prefix.lengths):
        raise ValueError(f"prefix_id: {prefix_id} of {len(prefix.lengths)} prefixes (-1: none)")
    prefix = prefix.to(model.device, model.wte.weight.dtype)
    first = None if prefix_from is None else [prefix_from]
    layout = make_layout([len(tokens)], [prefix_id], first).to(model.device)
    positions = make_positions(layout, prefix.lengths if prefix_from is None else None)
    if (last := int(positions[-1])) >= model.config.n_positions:
        raise ValueError(f"ids: position {last} passes the limit {model.config.n_positions}")
    attend = model.bind_attention(len(tokens), layout, prefix)
    plan = reference.PaddedPlan(len(tokens), layout, prefix.starts)
    shares = []

    def attend_and_weigh(layer: int, qkv: Tensor) -> Tensor:
        marked, rows = qkv.clone(), prefix.kv[layer].clone()
        marked[:, 2], rows[1] = 0, 1
        shares.append(plan(marked, rows)[..., 0].T)  # (H, T)
        return attend(layer, qkv)

    model.trunk(model.embed(tokens, positions), attend_and_weigh)
    shares = torch.stack(shares)
    return shares if shares.dtype == torch.float64 else shares.float()
