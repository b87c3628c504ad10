"""Serve one or several prefixes: a page to try them on, and HTTP endpoints, OpenAI's among them.
    mingpt-prefix serve
    mingpt-prefix serve --run runs/prefix-tiny-1 --beside runs/finetune-tiny-1
    mingpt-prefix serve --prefix books.safetensors --watch prefixes --port 9000

Without --run, --prefix and --lora, the newest finished run is served. The flags for decoding are
the defaults of requests. docs/serving.md has the endpoints.
"""

from collections.abc import Sequence

from mingpt_prefix.cli.terminal import parse, run_script
from mingpt_prefix.evaluation.sample_config import SampleConfig

GROUPS = ("model", "server", "decoding", "machine")


def main(argv: Sequence[str] | None = None, prog: str = "mingpt-prefix serve") -> int:
    """The whole program; returns the exit code."""

    def run() -> int:
        config = parse(SampleConfig, argv, prog, __doc__, GROUPS)
        # Imported here, for it brings torch, and needs an extra.
        from mingpt_prefix.serve.server import serve

        return serve(config)

    return run_script(prog, run)
