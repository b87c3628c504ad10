"""A compact GPT-2 that learns table-to-text by prefix-tuning: the public interface.

    from mingpt_prefix import load_model, load_pipeline, load_prefix

    load_pipeline("runs/prefix-tiny-1")(["name[The Mill], eatType[pub]"])    # sentences of tables
    model = load_model("gpt2")
    logits = model.logits([[464, 6840]], load_prefix("prefix.safetensors"))

Errors that a user can fix are `MingptPrefixError`s with a one-line message.

Each name is imported from its module on first use, so importing the package is fast.
"""

from importlib import import_module

__version__ = "0.1.0"
_MODULES = {
    "CheckpointError": "errors",
    "ConfigError": "errors",
    "DataError": "errors",
    "Decoding": "config",
    "GPT2": "model",
    "LoraError": "errors",
    "MingptPrefixError": "errors",
    "Pipeline": "evaluation.table_to_text",
    "PrefixError": "errors",
    "PrefixKV": "batch",
    "Scored": "generation.sampling",
    "Sentence": "evaluation.table_to_text",
    "Table": "data.tables",
    "TableError": "errors",
    "Tokenizer": "data.tokenizer",
    "WeightsError": "errors",
    "generate": "generation.decoding",
    "generate_scored": "generation.decoding",
    "load_model": "checkpoints.pretrained",
    "load_pipeline": "evaluation.pipeline",
    "load_prefix": "adapters.prefix_file",
    "load_tokenizer": "data.tokenizer",
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
