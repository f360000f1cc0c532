#!/usr/bin/env bash
# Objectives side by side on sounds that follow one another and sounds that overlap: docs/studies/compositional.md.
#
#     bash docs/studies/compositional.sh ESC-10-FOLDER     # from recordings
#     bash docs/studies/compositional.sh                   # from the single sounds of the built-in corpus
#
# Start it again after an interruption: finished steps are skipped, unfinished runs are resumed. Environment:
# CLAPKIT_RUNS (where runs go), JOBS (runs at a time, one thread each), SEEDS, METHODS, EPOCHS, CLIPS (in train).
set -euo pipefail

export CLAPKIT_RUNS=${CLAPKIT_RUNS:-runs/compositional} OMP_NUM_THREADS=1
# glibc: keep the memory of one batch for the next instead of giving it back; saves an eighth of the time.
export MALLOC_MMAP_THRESHOLD_=4294967296 MALLOC_TRIM_THRESHOLD_=8589934592
jobs=${JOBS:-2}
seeds=${SEEDS:-0 1 2}
methods=${METHODS:-infonce siglip dcl mmts svr-fixed svr-static svr-adaptive svr-adaptive-mmts}
export epochs=${EPOCHS:-5} clips=${CLIPS:-6000}

flags_of() {
  case $1 in
    infonce)           echo --loss infonce ;;
    siglip)            echo --loss siglip ;;
    dcl)               echo --loss dcl ;;
    mmts)              echo --loss infonce --temperature mmts ;;
    svr-fixed)         echo --loss svr --radius fixed --radius-init 0 ;;
    svr-static)        echo --loss svr --radius static ;;
    svr-adaptive)      echo --loss svr --radius adaptive ;;
    svr-adaptive-mmts) echo --loss svr --radius adaptive --temperature mmts ;;
    # Not of the paper, for METHODS="svr-ratio svr-hard svr-clamp":
    svr-ratio)         echo --loss svr --radius ratio ;;
    svr-hard)          echo --loss svr --radius adaptive --radius-bound hard ;;
    svr-clamp)         echo --loss svr --radius adaptive --radius-bound clamp ;;
    *)                 echo "no method $1" >&2; return 1 ;;
  esac
}

train() {
  local method=$1 seed=$2 name=$1-$2 folder=$CLAPKIT_RUNS/train/$1-$2
  if [ -e "$folder/run.json" ] && [ ! -e "$folder/result.json" ]; then
    clapkit train --resume --run-dir "$folder" --quiet > /dev/null
    return
  fi
  # Drift is measured on the first seed; measuring changes nothing but the time.
  local drift=()
  if [ "$seed" = 0 ]; then drift=(--diagnostics 125); fi
  # shellcheck disable=SC2046
  clapkit train --data mix --name "$name" --seed "$seed" $(flags_of "$method") "${drift[@]}" \
    --audio-encoder light --text-encoder light --batch-size 48 --epochs "$epochs" --eval-every 2 --workers 1 \
    --skip-existing --quiet > /dev/null
}
export -f train flags_of

if [ $# -gt 0 ]; then
  clapkit prepare esc10 "$1" --name singles --skip-existing
else
  clapkit prepare synth --name singles --skip-existing
fi
clapkit prepare mix "$CLAPKIT_RUNS/prepare/singles" --name mix -O num_clips="$clips" -O galleries=4 --skip-existing

for seed in $seeds; do
  for method in $methods; do
    echo "$method $seed"
  done
done | xargs -P "$jobs" -L 1 bash -c 'set -euo pipefail; train "$@"' _

# shellcheck disable=SC2206
order=($methods)
runs=()
for method in "${order[@]}"; do
  for seed in $seeds; do
    runs+=("$method-$seed")
  done
done
for split in test test-2 test-3 test-4; do
  clapkit eval "${runs[@]}" --split "$split" --tasks retrieval --bootstrap 0 --name "$split" --skip-existing --quiet > /dev/null
done
clapkit eval "${order[@]/%/-${seeds%% *}}" --split test --tasks retrieval --report --name report --skip-existing --quiet > /dev/null
python "$(dirname "$0")/compositional.py" "$CLAPKIT_RUNS"
