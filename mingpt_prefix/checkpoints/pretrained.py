"""Loading a model's weights (from the hub, a folder, or the package), and saving them.

    model = load_model("gpt2")          # or "tiny", a folder that transformers saved, a hub id
    save_model(model, Path("folder"))   # a folder that transformers loads, too

The fingerprint of its weights identifies a model: a prefix fits only the one it was trained on.
"""

import hashlib
import json
import os
import shutil
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from mingpt_prefix import kernels, tiny
from mingpt_prefix.accel.prepacked_linear import prepack
from mingpt_prefix.checkpoints import hub
from mingpt_prefix.checkpoints.atomic_write import part_of, swap_in, sync_folder
from mingpt_prefix.checkpoints.file_kinds import instead_of
from mingpt_prefix.checkpoints.hf_format import (
    CONFIG_FILE,
    TOKENIZER_FILE,
    WEIGHTS_FILE,
    config_json,
    read_config,
    read_tensors,
    weight_files,
)
from mingpt_prefix.config import MODELS, TrainConfig
from mingpt_prefix.errors import ConfigError, WeightsError, listed, printable, reason, shown
from mingpt_prefix.model import GPT2

DEVICES = ("cpu", "cuda")
DTYPES = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp64": torch.float64,
}


def load_model(
    name_or_folder: str | Path,
    device: str = "auto",
    dtype: str | torch.dtype = "auto",
    attention: str = "auto",
) -> GPT2:
    """Load and verify a model, in eval mode with all parameters frozen.

    A string is tried as a known name, then as a folder, then as the id of a GPT-2 on the Hugging
    Face hub, which is downloaded once to huggingface_hub's cache. `.name` is the known name, or "";
    `.fingerprint` is that of the stored weights, before the cast to `dtype`.

    Raises:
        WeightsError: if the model is unknown, unavailable, damaged, or not a GPT-2.
        ConfigError: if the device, dtype or attention is unknown or unavailable.
    """
    to_device = choose_device(device)
    to_dtype = choose_dtype(dtype, to_device)
    attention = choose_attention(attention, to_device, to_dtype)
    name = hub.known_name(name_or_folder)
    if name in hub.REPOS:
        config, files = MODELS[name], [hub.weights_file(name)]
    else:
        folder = tiny.MODEL if name else model_folder(name_or_folder)
        config, files = read_config(folder / CONFIG_FILE), weight_files(folder)
    with torch.device("meta"):
        model = GPT2(config, attention)
    shapes = {key: tuple(parameter.shape) for key, parameter in model.named_parameters()}
    digest, tensors = hashlib.sha256(), {}
    try:
        for key, tensor in read_tensors(files, shapes):
            _digest(digest, key, tensor)
            tensors[key] = tensor.to(to_device, to_dtype, copy=True)
    except WeightsError as error:
        advice = "; delete the file to download it again" if name in hub.REPOS else ""
        raise WeightsError(f"{error}{advice}") from None
    model.load_state_dict(tensors, assign=True)
    model.name, model.fingerprint = name, digest.hexdigest()
    model.requires_grad_(False).eval()
    prepack(model)
    return model


def load_base(config: TrainConfig) -> GPT2:
    """The model that a run starts from: frozen in the compute dtype, or trained in float32.

    In pretraining, a known name means its shape with fresh weights. Raises like `load_model`.
    """
    if config.mode == "pretrain" and (name := hub.known_name(config.model)):
        fresh = GPT2(MODELS[name], config.attention).initialize(config.seed)
        return fresh.to(config.device)
    dtype = config.dtype if config.is_frozen else "fp32"
    return load_model(config.model, config.device, dtype, config.attention)


def save_model(
    model: GPT2,
    folder: Path,
    dtype: torch.dtype = torch.float32,
    tokenizer: str | None = None,
) -> None:
    """Write the model in transformers' format; replaces `folder` whole, or leaves it unchanged.

    `tokenizer` is the text of its tokenizer.json. Equal models give equal bytes.

    Raises:
        WeightsError: if it cannot be written, or if `folder` has other files, which would be lost.
    """
    folder = Path(folder).absolute()
    part = part_of(folder)
    try:
        others = {path.name for path in folder.iterdir()} if folder.exists() else set()
        if others := others - {CONFIG_FILE, WEIGHTS_FILE, TOKENIZER_FILE}:
            raise WeightsError(f"{shown(folder)}: not replaced, for it holds {listed(others)}")
        part.mkdir(parents=True)
        _write_model(model, part, dtype, tokenizer)
        swap_in(part, folder)
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"{shown(folder)}: {reason(error)}") from None
    finally:
        shutil.rmtree(part, ignore_errors=True)


def fingerprint(model: GPT2) -> str:
    """SHA-256 over the model's tensors, sorted by name: name, shape, fp32 bytes."""
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        _digest(digest, name, parameter.detach())
    return digest.hexdigest()


def choose_device(name: str) -> torch.device:
    """The device of that name; "auto": CUDA if available, else CPU. Raises ConfigError."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        if device.type in DEVICES:
            torch.empty(0, device=device)
            return device
    except (RuntimeError, AssertionError):
        pass  # not a device's name, or none of its kind here
    if name == "cuda":
        raise ConfigError("device cuda: no GPU was found")
    known = ", ".join(("auto", *DEVICES))
    raise ConfigError(f"device '{printable(name)}' is unknown or absent here; known: {known}")


def choose_dtype(name: str | torch.dtype, device: torch.device) -> torch.dtype:
    """A torch dtype from our name ("fp32"), torch's name ("float32"), or itself; "auto": bf16 on
    CUDA, fp32 elsewhere. Raises ConfigError."""
    name = str(name).removeprefix("torch.")
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    dtype = DTYPES.get(name) or getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype) or dtype not in DTYPES.values():
        raise ConfigError(f"unknown dtype '{printable(name)}'; known: auto, {', '.join(DTYPES)}")
    return dtype


def choose_attention(name: str, device: torch.device, dtype: torch.dtype) -> str:
    """The backend of that name; "auto" is reference.

    Raises ConfigError if it is unknown, or if it is triton and triton cannot compute here.
    """
    if name == "auto":
        # The kernels have run only in the interpreter. Until they are shown right and faster on a
        # GPU, they must be asked for.
        return "reference"
    if name not in kernels.BACKENDS:
        known = ", ".join(("auto", *kernels.BACKENDS))
        raise ConfigError(f"unknown attention '{printable(name)}'; known: {known}")
    if name == "triton" and (why := kernels.why_not_triton(device, dtype)) is not None:
        raise ConfigError(f"attention triton, on {device.type}: {why}")
    return name


def weights_at_hand(name: str) -> tuple[bool, str]:
    """Whether a known model's weights are available, and why or why not; takes 3 s at most."""
    if name == "tiny":
        return True, "part of the package"
    if hub.cached_weights(name) is not None:
        return True, "in the Hugging Face cache"
    why = hub.why_not_downloadable(name)
    return why is None, why or "can be downloaded"


def model_folder(given: str | Path) -> Path:
    """The path of a model's folder; for a hub id, in the cache.

    Raises:
        WeightsError: if there is no such folder or id, or if the hub's model is not a GPT-2.
    """
    folder = Path(given)
    if str(given) and (other := instead_of("model", folder)):
        raise WeightsError(f"{shown(given)}: {other}")
    try:
        if folder.is_dir() and str(given):
            return folder
    except (OSError, ValueError):
        pass
    why = ""
    if hub.is_id(given):
        try:
            config = hub.config_file(given)
        except WeightsError as error:
            why = f" ({error})"
        else:
            return hub.model_folder(given, config)
    raise WeightsError(
        f"unknown model '{shown(given)}'; known: {', '.join(MODELS)}; the path of a folder as "
        f"transformers saves it, or the id of a GPT-2 on the Hugging Face hub{why}"
    )


def _write_model(model: GPT2, folder: Path, dtype: torch.dtype, tokenizer: str | None) -> None:
    """The files of a model in an empty folder, flushed to the disk."""
    tensors = {
        f"transformer.{name}": parameter.detach().to("cpu", dtype).contiguous()
        for name, parameter in model.named_parameters()
    }
    text = json.dumps(config_json(model.config), indent=2, sort_keys=True) + "\n"
    (folder / CONFIG_FILE).write_text(text, encoding="utf-8")
    if tokenizer is not None:
        (folder / TOKENIZER_FILE).write_text(tokenizer, encoding="utf-8")
    save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    # safetensors may write a file that only its owner can read.
    (folder / WEIGHTS_FILE).chmod((folder / CONFIG_FILE).stat().st_mode & 0o777)
    for path in folder.iterdir():
        with path.open("rb+") as file:
            os.fsync(file.fileno())
    sync_folder(folder)


def _digest(digest, name: str, tensor: Tensor) -> None:
    digest.update(f"{name} {tuple(tensor.shape)}\n".encode())
    digest.update(tensor.to("cpu", torch.float32).contiguous().numpy())
