"""GPT-2s from the Hugging Face hub, through huggingface_hub and its own cache.

`huggingface_hub` is imported only when a hub model is asked for; it reads HF_ENDPOINT, HF_HOME and
HF_HUB_OFFLINE then.
"""

import hashlib
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mingpt_prefix.checkpoints.hf_format import (
    CONFIG_FILE,
    INDEX_FILE,
    TOKENIZER_FILES,
    WEIGHTS_FILE,
    read_config,
    weight_files,
)
from mingpt_prefix.config import MODELS, ModelConfig
from mingpt_prefix.errors import WeightsError, printable

REPOS = {name: f"openai-community/{name}" for name in MODELS if name != "tiny"}
# Repositories that the hub had under a shorter name: caches are filled under either.
_SHORT = {**{repo: name for name, repo in REPOS.items()}, "distilbert/distilgpt2": "distilgpt2"}
_PROBE_S = 3.0


def known_name(given: str | Path) -> str:
    """The known model that is meant, by its name or its id on the hub; "" for any other."""
    if isinstance(given, str) and given in REPOS.values() and not Path(given).is_dir():
        return _SHORT[given]
    return given if isinstance(given, str) and given in MODELS else ""


def is_id(given: str | Path) -> bool:
    """Whether this may be the id of a model on the hub."""
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(given)
    except HFValidationError:
        return False
    return True


def cached_weights(name: str) -> Path | None:
    """The weights file of a hub model, where the cache holds it; no network."""
    return _cached(_repository(name), WEIGHTS_FILE)


def why_not_downloadable(name: str) -> str | None:
    """None where the hub offers the weights of `name`, else why not, found out in 3 s at most."""
    error = _ask(_repository(name), WEIGHTS_FILE)
    return None if error is None else _why(error, f"{_host()} cannot be reached")


def weights_file(name: str) -> Path:
    """The weights file of a hub model: from the cache, else downloaded to it.

    Raises:
        WeightsError: when it is not cached and cannot be downloaded.
    """
    return _needed(name, WEIGHTS_FILE, "; pickled weights are not read")


def config_file(name: str) -> Path:
    """The config.json of a hub model: from the cache, else downloaded to it.

    Raises:
        WeightsError: when it is not cached and cannot be downloaded.
    """
    return _needed(name, CONFIG_FILE, " of it")


def _needed(name: str, file: str, what_else: str) -> Path:
    if (path := _fetch(_repository(name), file)) is not None:
        return path
    raise WeightsError(f"{name}: {_host()} has no {file}{what_else}")


def model_folder(name: str, config: Path) -> Path:
    """The folder of a hub model's `config_file`, with its other files, as transformers saves them.

    Raises:
        WeightsError: when they are neither there nor to be downloaded, or it is no GPT-2.
    """
    repo, folder, commit = _repository(name), config.parent, config.parent.name
    if read_config(config).vocab_size >= ModelConfig.vocab_size and repo not in _SHORT:
        with suppress(WeightsError):  # offline, a cache without one is taken as a folder would be
            any(find(repo, file, commit) for find in (_cached, _fetch) for file in TOKENIZER_FILES)
    files = (WEIGHTS_FILE, INDEX_FILE)
    if not any(find(repo, file, commit) for find in (_cached, _fetch) for file in files):
        raise WeightsError(f"{name}: no {WEIGHTS_FILE} in it; pickled weights are not read")
    if _cached(repo, WEIGHTS_FILE, commit) is None:
        for shard in weight_files(folder):
            _fetch(repo, shard.name, commit)
    return folder


def _repository(name: str) -> str:
    """A model's repository, by the name that the cache has its weights under, else the present."""
    repo = next((repo for repo, short in _SHORT.items() if name == short), name)
    names = (repo, _SHORT.get(repo, repo))
    files = (WEIGHTS_FILE, INDEX_FILE)
    return next((n for n in names if any(_cached(n, file) for file in files)), repo)


def _cached(repo: str, file: str, revision: str = "main") -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(repo, file, revision=revision)
    return Path(found) if isinstance(found, str) else None


def _ask(repo: str, file: str, revision: str = "main") -> Exception | None:
    """What is wrong, if the hub does not offer a file, found out in 3 s at most."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    url = hf_hub_url(repo, file, revision=revision)
    answer: list[Exception | None] = []

    def ask() -> None:
        try:
            get_hf_file_metadata(url, timeout=_PROBE_S)
            answer.append(None)
        except Exception as error:  # each version of the client has another family of errors
            answer.append(error)

    # In a thread, for looking up a host's name knows no time limit.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(_PROBE_S)
    return answer[0] if answer else TimeoutError(f"no answer in {_PROBE_S:.0f} s")


def _fetch(repo: str, file: str, revision: str = "main") -> Path | None:
    """A file of a repository: from the cache, else downloaded to it; None if the hub has it not.

    Raises:
        WeightsError: when it is not cached and cannot be downloaded.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.utils import EntryNotFoundError

    if (path := _cached(repo, file, revision)) is not None:
        return path
    # Asked first, for a download that cannot begin is tried again for half a minute.
    error = _ask(repo, file, revision)
    if isinstance(error, EntryNotFoundError):
        return None
    why = f"what {_host()} sent is damaged (its SHA-256 differs)"
    if error is not None:
        why = _why(error, f"{_host()} cannot be reached")
    else:
        try:
            with _quiet():
                path = hf_hub_download(repo, file, revision=revision, etag_timeout=_PROBE_S)
            if _is_as_promised(path := Path(path)):
                return path
        except Exception as broken:  # as above
            why = _why(broken, f"the download from {_host()} broke off")
    name = _SHORT.get(repo, repo)
    raise WeightsError(
        f"{name}: {file} is not in the Hugging Face cache, and {why}; "
        "try later, or give a folder that holds it"
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
