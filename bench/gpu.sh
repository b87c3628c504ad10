#!/usr/bin/env bash
# All that needs a GPU, in one command of less than 9 minutes: kernel checks, timings, GPU tests.
#
#   bench/gpu.sh [--wheels DIR] [OUT [PART...]]   # default: runs/gpu, and the parts of --list
#   bench/gpu.sh --list                           # those parts, and the most seconds of each
#
# Parts run in order of worth; `bank`, `sweep` and `table` run only if they are named. Each leaves its JSON
# and its output in OUT, and OUT.tgz holds the whole folder, however this ends. A part that fails, or
# lacks an import, does not stop the others: the last lines name it, and the exit code counts them.
#
# --wheels DIR   use the packages that `bench/wheels.sh DIR` has put into DIR
# PYTHON         names another Python than .venv's; LIMIT_S another limit than 530 for the whole,
#                LIMITS others for parts: LIMITS='speed=200 tiles=45'
set -um -o pipefail # -m: each part is a process group of its own, which an interrupt reaches
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 2

limit=${LIMIT_S:-530}
default=(kernels speed decode attention tiles tests)
declare -A most=([kernels]=110 [speed]=170 [decode]=55 [attention]=80 [tiles]=75 [tests]=40
  [bank]=30 [sweep]=55 [table]=150)
for each in ${LIMITS:-}; do most[${each%=*}]=${each#*=}; done

wheels=''
case ${1:-} in
  --list)
    for part in "${default[@]}"; do echo "$part ${most[$part]}"; done
    exit
    ;;
  --wheels)
    wheels=$(cd "${2:?a folder}" && pwd) || exit 2
    shift 2
    ;;
esac
out=${1:-runs/gpu}
parts=("${@:2}")
((${#parts[@]})) || parts=("${default[@]}")
for part in "${parts[@]}"; do
  [[ -n ${most[$part]:-} ]] || { echo "no part is named $part" >&2; exit 2; }
done
mkdir -p "$out" && out=$(cd "$out" && pwd) || exit 2
if [[ -z ${PYTHON:-} ]]; then
  PYTHON=python3
  [[ -x .venv/bin/python ]] && PYTHON=.venv/bin/python
fi
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
waiting=("${parts[@]}") failed=() running='' link='' site=''
SECONDS=0

scripts() { # of a part: what it runs, and what that starts
  case $1 in
    kernels) echo tests/kernels/kernel_checks.py ;;
    tests) echo tests/accel/test_graphs.py train.py ;;
    table) echo bench/table.py train.py ;;
    *) echo "bench/$1.py" ;;
  esac
}

pack() { # whole, or as it was
  tar -czf "$out.tgz.part" -C "${out%/*}" "${out##*/}" && mv "$out.tgz.part" "$out.tgz"
}

# What still runs is interrupted first: Python then says how far it has come.
stop() {
  [[ -n $running ]] || return 0
  kill -INT -- "-$running" 2>/dev/null
  for _ in {1..30}; do
    kill -0 -- "-$running" 2>/dev/null || return 0
    sleep 0.1
  done
  kill -KILL -- "-$running" 2>/dev/null
}

finish() {
  local code=$?
  trap '' INT TERM HUP
  stop
  for part in "${waiting[@]}"; do failed+=("$part (not finished)"); done
  [[ -z $link ]] || rm -f "$link"
  [[ -z $site ]] || rm -rf "$site"
  pack
  echo "In $out.tgz after $SECONDS s: $(cd "$out" && ls | tr '\n' ' ')"
  ((${#failed[@]} == 0)) || printf 'Failed: %s\n' "${failed[@]}"
  exit $((code ? code : ${#failed[@]}))
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
trap 'exit 129' HUP

# within SECONDS NAME COMMAND...: within this limit, and what is left of the whole.
within() {
  local seconds=$1 name=$2 began=$SECONDS code=0
  shift 2
  ((seconds > limit - SECONDS)) && seconds=$((limit - SECONDS))
  if ((seconds < 5)); then
    failed+=("$name (no time left)")
    return
  fi
  timeout -s INT -k 5 "$seconds" "$@" >"$out/$name.log" 2>&1 &
  running=$!
  wait "$running" || code=$?
  stop # what a part that was killed has left
  running=''
  echo "$name: exit code $code after $((SECONDS - began)) s"
  ((code == 0)) && return
  ((code == 124 || SECONDS - began >= seconds)) && code="stopped after $seconds s" || code="exit code $code"
  failed+=("$name ($code)")
  tail -n 5 "$out/$name.log" | sed 's/^/  /'
}

part() {
  local test=("$PYTHON" -m pytest -q -p no:cacheprovider) json=(--json "$out/$1_gpu.json") command
  local bench=("$PYTHON" "bench/$1.py") triton=(--attention triton)
  case $1 in
    # cuBLAS is deterministic with this, which the checks ask for.
    kernels) command=(env CUBLAS_WORKSPACE_CONFIG=:4096:8 "${test[@]}" "${workers[@]}" tests/kernels/kernel_checks.py) ;;
    tests) command=("${test[@]}" -m gpu tests/accel/test_graphs.py) ;;
    speed) command=("${bench[@]}" "${triton[@]}" --rounds 5 --steps 10 "${json[@]}") ;;
    decode) command=("${bench[@]}" "${triton[@]}" "${json[@]}") ;;
    attention) command=("${bench[@]}" --quick --json "$out/$1.json") ;;
    tiles) command=("${bench[@]}" --json "$out/$1.json") ;;
    bank) command=("${bench[@]}" "${triton[@]}" --only-batches --model tiny "${json[@]}") ;;
    sweep) command=("${bench[@]}" "${triton[@]}" --model gpt2 --members 1 4 16 "${json[@]}") ;;
    table) command=("${bench[@]}" "${triton[@]}" --quick --beams 1 --methods frozen prefix finetune
      --out "$out/table" "${json[@]}") ;;
  esac
  within "${most[$1]}" "$1" "${command[@]}"
}

if [[ -n $wheels ]]; then # a wheel is an archive of what an installer would copy
  site=$(mktemp -d)
  for wheel in "$wheels"/*.whl; do "$PYTHON" -m zipfile -e "$wheel" "$site"; done
  export PYTHONPATH=$PYTHONPATH:$site
fi
# In a checkout that is not installed, only a link makes the kernels a part of the package.
if [[ ! -e mingpt_prefix/kernels ]]; then
  link=$PWD/mingpt_prefix/kernels
  ln -s ../kernels "$link"
fi
nvidia-smi -L 2>/dev/null || echo 'nvidia-smi names no GPU.'
declare -A lacks=()
names=()
while read -r file missing; do
  lacks[$file]=$missing
  names+=($missing)
done < <("$PYTHON" bench/imports.py $(for part in "${parts[@]}"; do scripts "$part"; done) bench/methods/peers.py)
if ((${#names[@]})); then
  echo "Missing: $(printf '%s\n' "${names[@]}" | sort -u | tr '\n' ' ')(bench/wheels.sh DIR fetches" \
    "packages where there is an index; then --wheels DIR)"
fi
# pytest-xdist, where it is installed, has the kernels compiled side by side.
workers=()
"$PYTHON" -c 'import xdist' 2>/dev/null && workers=(-p xdist -n "${WORKERS:-8}")

for part in "${parts[@]}"; do
  missing=$(for file in $(scripts "$part"); do printf '%s\n' ${lacks[$file]:-}; done | sort -u | xargs)
  if [[ -n $missing ]]; then
    echo "$part: skipped"
    failed+=("$part (missing: $missing)")
  else
    part "$part"
  fi
  waiting=("${waiting[@]:1}")
  pack
done
exit 0
