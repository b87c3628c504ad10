"""A compact GPT-2 that learns table-to-text by prefix-tuning: the public interface.

    from mingpt_prefix import generate, load_model, load_prefix

    model = load_model("gpt2")
    logits = model.logits([[464, 6840]], load_prefix("prefix.safetensors"))

A name is imported from its module when it is first used, so that importing the package is quick.
"""

from importlib import import_module

__version__ = "0.1.0"
_MODULES = {
    "Decoding": "config",
    "GPT2": "model",
    "MingptPrefixError": "errors",
    "PrefixKV": "batch",
    "Scored": "generation.sampling",
    "Table": "data.tables",
    "TableError": "errors",
    "generate": "generation.decoding",
    "generate_scored": "generation.decoding",
    "load_model": "checkpoints.pretrained",
    "load_prefix": "adapters.prefix_file",
    "parse_table": "data.tables",
    "score": "metrics.scores",
}
__all__ = list(_MODULES)


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
