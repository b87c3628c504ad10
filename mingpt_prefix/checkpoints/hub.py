"""GPT-2's weights from the Hugging Face hub, through huggingface_hub and its own cache.

`huggingface_hub` is imported only when a hub model is asked for; it reads HF_ENDPOINT, HF_HOME and
HF_HUB_OFFLINE then.
"""

import hashlib
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mingpt_prefix.config import MODELS
from mingpt_prefix.errors import WeightsError, printable

REPOS = {name: f"openai-community/{name}" for name in MODELS if name != "tiny"}
FILE = "model.safetensors"
_PROBE_S = 3.0


def cached_weights(name: str) -> Path | None:
    """The weights file of a hub model, where the cache holds it; no network."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(REPOS[name], FILE)
    return Path(found) if isinstance(found, str) else None


def why_not_downloadable(name: str) -> str | None:
    """None where the hub offers the weights of `name`, else why not, found out in 3 s at most."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    url = hf_hub_url(REPOS[name], FILE)
    answer: list[str | None] = []

    def ask() -> None:
        try:
            get_hf_file_metadata(url, timeout=_PROBE_S)
            answer.append(None)
        except Exception as error:  # each version of the client has another family of errors
            answer.append(_why(error, f"{_host()} cannot be reached"))

    # In a thread, for looking up a host's name knows no time limit.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(_PROBE_S)
    return answer[0] if answer else f"{_host()} has not answered in {_PROBE_S:.0f} s"


def weights_file(name: str) -> Path:
    """The weights file of a hub model: from the cache, else downloaded to it.

    Raises:
        WeightsError: when it is not cached and cannot be downloaded.
    """
    from huggingface_hub import hf_hub_download

    if (path := cached_weights(name)) is not None:
        return path
    # Asked first, for a download that cannot begin is tried again for half a minute.
    why = why_not_downloadable(name)
    if why is None:
        try:
            with _quiet():
                path = Path(hf_hub_download(REPOS[name], FILE, etag_timeout=_PROBE_S))
            if _is_as_promised(path):
                return path
            why = f"what {_host()} sent is damaged (its SHA-256 differs)"
        except Exception as error:  # as above
            why = _why(error, f"the download from {_host()} broke off")
    raise WeightsError(
        f"{name}: the weights are not in the Hugging Face cache, and {why}; "
        "try later, or give a folder that holds them"
    )


def _is_as_promised(path: Path) -> bool:
    """Whether a file just downloaded has the SHA-256 the hub told; one that has not is deleted.

    huggingface_hub looks at the size alone. It names a large file in its cache by that SHA-256.
    """
    held = path.resolve()
    if re.fullmatch("[0-9a-f]{64}", held.name) is None:
        return True
    with held.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() == held.name:
            return True
    path.unlink()
    held.unlink(missing_ok=True)
    return False


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the hub's warnings: what is wrong is said by the error. Its progress bar stays."""
    from huggingface_hub.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _host() -> str:
    from huggingface_hub import constants

    return printable(constants.ENDPOINT.split("://")[-1], 100)


def _why(error: Exception, what: str) -> str:
    kind = type(error).__name__
    if kind == "OfflineModeIsEnabled":
        return "HF_HUB_OFFLINE is set"
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status is not None:
        return f"{what} (it said {status})"
    return f"{what} ({printable(f'{kind}: {error}', 120)})"
