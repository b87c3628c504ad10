"""A SHA-256 over tensors and their metadata, so that a changed bit is noticed."""

import hashlib
import json
from collections.abc import Mapping

import torch
from safetensors import SafetensorError
from torch import Tensor

# What reading and digesting the tensors and JSON of a file raise, whatever it holds.
UNREADABLE = (
    OSError,
    SafetensorError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    RuntimeError,
)


def digest_of(tensors: Mapping[str, Tensor], fields: Mapping) -> str:
    """Of CPU tensors by name and of `fields`, a JSON object; their order does not matter."""
    digest = hashlib.sha256(json.dumps(fields, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
