#!/usr/bin/env bash
# All that needs a GPU, in one command of less than 9 minutes: the gpu tests, what is timed, the
# kernels' block sizes, and a quick table of the embedded model.
#
#   bench/gpu.sh [FOLDER]      # default: runs/gpu; PYTHON names another Python than .venv's
#
# Each part has a time limit and leaves its JSON and its output in FOLDER. A part that fails does not
# stop the others; what failed is said at the end, and is the exit code.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

out=${1:-runs/gpu}
mkdir -p "$out"
out=$(cd "$out" && pwd)
if [[ -z "${PYTHON:-}" ]]; then
  PYTHON=python3
  [[ -x .venv/bin/python ]] && PYTHON=.venv/bin/python
fi
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
limit=${LIMIT_S:-530}
failed=()
SECONDS=0

# part NAME SECONDS COMMAND...: within its own limit, and within what is left of the whole.
part() {
  local name=$1 most=$2 began=$SECONDS code=0
  shift 2
  ((most > limit - SECONDS)) && most=$((limit - SECONDS))
  if ((most < 5)); then
    echo "$name: no time left"
    failed+=("$name (no time left)")
    return
  fi
  timeout -k 5 "$most" "$@" >"$out/$name.log" 2>&1 || code=$?
  echo "$name: exit code $code after $((SECONDS - began)) s"
  case $code in
    0) ;;
    124 | 137) failed+=("$name (stopped after $most s)") ;;
    *) failed+=("$name (exit code $code)") ;;
  esac
  ((code == 0)) || tail -n 5 "$out/$name.log" | sed 's/^/  /'
}

# In a checkout that is not installed, only a link makes the kernels a part of the package.
if ! "$PYTHON" -c 'import mingpt_prefix.kernels' 2>/dev/null; then
  ln -s ../kernels mingpt_prefix/kernels
  trap 'rm mingpt_prefix/kernels' EXIT
  "$PYTHON" -c 'import mingpt_prefix.kernels, mingpt_prefix.trainer' || exit 1
fi

"$PYTHON" -c 'import torch; from mingpt_prefix.accel.environment import machine_line as line
print(line(torch.device("cuda" if torch.cuda.is_available() else "cpu")))'

# pytest-xdist, where it is installed, has the kernels compiled side by side.
workers=()
"$PYTHON" -c 'import xdist' 2>/dev/null && workers=(-n 8)

# cuBLAS is deterministic with this, which the checks ask for.
part kernels 150 env CUBLAS_WORKSPACE_CONFIG=:4096:8 \
  "$PYTHON" -m pytest -q -p no:cacheprovider "${workers[@]}" tests/kernel_checks.py
part tests 100 "$PYTHON" -m pytest -m gpu -q -p no:cacheprovider tests/test_graphs.py
part speed 130 "$PYTHON" bench/speed.py --attention triton --rounds 5 --json "$out/speed_gpu.json"
part decode 45 "$PYTHON" bench/decode.py --attention triton --json "$out/decode_gpu.json"
part bank 30 "$PYTHON" bench/bank.py --only-batches --model tiny --attention triton \
  --json "$out/bank_gpu.json"
part attention 130 "$PYTHON" bench/attention.py --quick --json "$out/attention.json"
part tiles 90 "$PYTHON" bench/tiles.py --json "$out/tiles.json"
part table 150 "$PYTHON" bench/table.py --quick --beams 1 --attention triton \
  --methods frozen prefix finetune --out "$out/table" --json "$out/table_gpu.json"

echo "In $out after $SECONDS s:" "$(cd "$out" && ls -- *.json 2>/dev/null | tr '\n' ' ')"
if ((${#failed[@]})); then
  printf 'Failed: %s\n' "${failed[@]}"
fi
exit ${#failed[@]}
