#!/usr/bin/env bash
# Fetch wheels for a machine that has torch and Triton, but no package index.
#
#   bench/wheels.sh DIR [PACKAGE...]   # default: what such a machine usually lacks, in pure Python
#
# There `bench/gpu.sh --wheels DIR` uses them; its first lines say what else is missing.
set -euo pipefail
into=${1:?a folder}
shift
(($#)) || set -- tyro docstring_parser typeguard defusedxml nltk
constraints=$(dirname "${BASH_SOURCE[0]}")/../constraints.txt
exec "${PYTHON:-python3}" -m pip download --no-deps --only-binary=:all: -c "$constraints" -d "$into" "$@"
