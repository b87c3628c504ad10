"""PEFT's adapter folder: adapter_config.json, adapter_model.safetensors, and a card for readers.

    write_folder(folder, config, tensors, info, form, base)
    kind = read_config(folder).get("peft_type")
    with open_weights(folder, form) as file:
        ...

What the first two hold is known to `peft_prefix` (prefixes) and `peft_lora` (LoRA); `form` is that
of our own file of the same kind, whose metadata are kept in what we write. PEFT is not imported,
and nothing pickled is read.
"""

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from mingpt_prefix.adapters.adapter_file import AdapterFormat
from mingpt_prefix.checkpoints.atomic_write import write_atomically
from mingpt_prefix.checkpoints.hf_format import read_json
from mingpt_prefix.checkpoints.hub import REPOS
from mingpt_prefix.data.tables import Table, linearize
from mingpt_prefix.data.templates import TEMPLATE_FORMAT
from mingpt_prefix.data.tokenizer import END_OF_TEXT
from mingpt_prefix.errors import printable, shown

CONFIG_FILE, WEIGHTS_FILE, PICKLED_FILE, CARD_FILE = (
    "adapter_config.json",
    "adapter_model.safetensors",
    "adapter_model.bin",
    "README.md",
)
_DTYPES = ("F16", "BF16", "F32", "F64")
_SIZE_LIMIT = 1 << 20
_CARD = """\
---
{header}library_name: peft
tags: [{kind}, table-to-text]
---

# {kind} for {name}

Trained and exported by mingpt-prefix. It fits no other weights than those whose fingerprint
(SHA-256 over the sorted names, shapes and fp32 values) is `{fingerprint}`.

```python
from peft import AutoPeftModelForCausalLM

model = AutoPeftModelForCausalLM.from_pretrained("this folder")
```

{prompt}
"""


def write_folder(
    folder: Path,
    config: dict,
    tensors: Mapping[str, Tensor],
    info: Any,
    form: AdapterFormat,
    base: str | None,
) -> None:
    """Write a folder that `PeftModel.from_pretrained` loads; equal adapters give equal bytes.

    `config` names no base model and no task: both are added. With `base`, the base's hub name or
    path, `AutoPeftModelForCausalLM` loads it too.

    Raises:
        form.error: naming the folder, when it holds something else, or cannot be written.
    """
    config = {
        **config,
        "base_model_name_or_path": base,
        "inference_mode": True,
        "task_type": "CAUSAL_LM",
    }
    with form.naming(folder):
        others = {path.name for path in folder.iterdir()} if folder.exists() else set()
        if others - {CONFIG_FILE, WEIGHTS_FILE, CARD_FILE} or others == {CARD_FILE}:
            raise form.error("not empty; name a new folder")
        content = save(dict(tensors), form.metadata(info, tensors))
        write_atomically(folder / WEIGHTS_FILE, content)
        text = json.dumps(config, indent=2, sort_keys=True) + "\n"
        write_atomically(folder / CONFIG_FILE, text.encode())
        write_atomically(folder / CARD_FILE, _card(form.kind, info).encode())


def _card(kind: str, info: Any) -> str:
    """What README.md says: of which model, how it is loaded, and how its prompts are spelled."""
    repo = REPOS.get(info.base)
    if info.text_format.startswith(TEMPLATE_FORMAT):
        spelled = f" {info.text_format.removeprefix(TEMPLATE_FORMAT)}"
        what = "the template below, its fields filled"
    else:
        spelled = linearize(Table((("name", "The Mill"), ("eatType", "pub"))), info.text_format)
        what = "a table, spelled as below"
    prompt = (
        f"A prompt is {what}, and the end token behind it; the space in front belongs to it."
        f" The sentence ends with the end token too.\n\n```\n{spelled}{END_OF_TEXT}\n```"
    )
    return _CARD.format(
        header=f"base_model: {repo}\n" if repo else "",
        kind=kind,
        name=repo or ("mingpt-prefix's embedded model" if info.base else "a GPT-2 of your own"),
        fingerprint=info.fingerprint,
        prompt=prompt,
    )


def read_config(folder: Path) -> dict:
    """The adapter's configuration; raises WeightsError, naming the file, where there is none."""
    return read_json(folder / CONFIG_FILE)


def check_type(config: dict, kind: str, form: AdapterFormat) -> None:
    """Raises `form.error` unless the adapter is of this kind, for a language model."""
    if (found := config.get("peft_type")) != kind:
        raise form.error(f"peft_type is '{printable(str(found))}', not '{kind}'")
    if config.get("task_type") not in ("CAUSAL_LM", None):
        raise form.error(f"task_type is '{printable(str(config['task_type']))}', not 'CAUSAL_LM'")


def sizes_of(config: dict, names: tuple[str, ...], form: AdapterFormat) -> tuple[int, ...]:
    """The sizes that the configuration has under `names`; raises `form.error`."""
    sizes = tuple(config.get(name) for name in names)
    for name, size in zip(names, sizes, strict=True):
        if type(size) is not int or not 0 < size <= _SIZE_LIMIT:
            raise form.error(f"{name} must be a positive whole number")
    return sizes


def named_base(config: dict) -> str:
    """The known model that the adapter names, by its hub name or the short one; else ""."""
    named = config.get("base_model_name_or_path")
    return next((name for name, repo in REPOS.items() if named in (name, repo)), "")


@contextlib.contextmanager
def open_weights(folder: Path, form: AdapterFormat) -> Iterator[safe_open]:
    """The adapter's tensors; what goes wrong meanwhile becomes `form.error`, naming the file."""
    path = folder / WEIGHTS_FILE
    if not path.exists() and (folder / PICKLED_FILE).exists():
        advice = "it is pickled, which is not read; save it with safe_serialization=True"
        raise form.error(f"{shown(folder / PICKLED_FILE)}: {advice}")
    with form.reading(path), safe_open(path, "pt") as file:
        yield file


def read_values(file: safe_open, name: str, shape: tuple[int, ...], form: AdapterFormat) -> Tensor:
    """A copy of a tensor in float32; raises `form.error` unless it is finite and of `shape`."""
    header = file.get_slice(name)
    if (found := tuple(header.get_shape())) != shape:
        raise form.error(f"{name} has shape {found}, not {shape}")
    if header.get_dtype() not in _DTYPES:
        raise form.error(f"{name} has dtype {header.get_dtype()}")
    values = file.get_tensor(name).float().clone()
    form.check_values(name, values)
    return values


def own_info(file: safe_open, form: AdapterFormat) -> Any | None:
    """What was saved with an adapter that `write_folder` wrote, verified; None for another's."""
    return form.parse(file) if form.key in (file.metadata() or {}) else None
