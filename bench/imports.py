"""Which packages scripts import that are not there: python bench/imports.py FILE...

Prints a line for each file that lacks some: the file, then their names. Sources are read, not run,
and the project's own modules in turn. What is imported only when a function is called counts if the
project requires it.
"""

import ast
import re
import sys
import tomllib
from functools import cache
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
REQUIRED = {re.match(r"[\w-]+", each)[0].replace("-", "_") for each in PROJECT["dependencies"]}
# What a package that is not there would import in turn.
BEHIND = {"tyro": ("docstring_parser", "typeguard")}


@cache
def imported(path: Path) -> list[tuple[str, bool]]:
    """Names of modules, and of what may be one, that `path` imports; whether always."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    at_top, found = set(map(id, tree.body)), []
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        found += ((name, id(node) in at_top) for name in names)
    return found


@cache
def own_files(name: str, folder: Path) -> list[Path]:
    """The project's files that importing `name` runs, from a script in `folder`."""
    parts, found = name.split("."), []
    for end in range(1, len(parts) + 1):
        inner = parts[:end]
        for base in (folder, ROOT):
            at = base.joinpath(*inner)
            if inner[:2] == ["mingpt_prefix", "kernels"]:  # installed under another name
                at = ROOT.joinpath(*inner[1:])
            found += (p for p in (at.with_suffix(".py"), at / "__init__.py") if p.is_file())
    return found


def missing(script: Path) -> list[str]:
    """The packages that `script` lacks."""
    found: set[str] = set()
    met, waiting = set(), [(script.resolve(), True)]
    while waiting:
        path, always = now = waiting.pop()
        if now in met or (path, True) in met:
            continue
        met.add(now)
        for name, at_top in imported(path):
            files, package = own_files(name, script.resolve().parent), name.split(".")[0]
            waiting += [(file, always and at_top) for file in files]
            if not files and (always and at_top or package in REQUIRED):
                found |= {package, *BEHIND.get(package, ())}
    return sorted(name for name in found if find_spec(name) is None)


if __name__ == "__main__":
    for script in sys.argv[1:]:
        if lacking := missing(Path(script)):
            print(script, *lacking)
