#!/usr/bin/env bash
# Wrong captions, cleaning, order, forgetting, languages and long recordings: the studies of docs/studies/family.md.
#
#     bash docs/studies/family.sh "noise order" ESC-10-FOLDER     # some parts, from recordings
#     bash docs/studies/family.sh "noise cleaning order forgetting languages long"   # all, from sounds that are generated
#
# Start it again after an interruption: finished steps are skipped. Environment: CLAPKIT_RUNS (where runs go), JOBS (runs at
# a time, one thread each), SEEDS, EPOCHS, CLIPS (mixtures in train), DEVICE, TOWER, LONG (long files in train), SECONDS_LONG.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
export CLAPKIT_RUNS=${CLAPKIT_RUNS:-runs/family} OMP_NUM_THREADS=1
export device=${DEVICE:-auto} tower=${TOWER:-light} epochs=${EPOCHS:-8} clips=${CLIPS:-6000} long=${LONG:-600} seconds=${SECONDS_LONG:-300}
jobs=${JOBS:-2}
seeds=${SEEDS:-0 1 2}
parts=${1:?name the parts: noise cleaning order forgetting languages long}
esc10=${2:-}
galleries="test test-2 test-3 test-4"

# train NAME DATA SEED [FLAGS]: one run, unless it is finished.
train() {
  local name=$1 data=$2 seed=$3
  shift 3
  clapkit train --data "$data" --name "$name-$seed" --seed "$seed" --audio-encoder "$tower" --text-encoder "$tower" \
    --device "$device" --workers 1 --eval-every 4 --skip-existing --overwrite --quiet "$@" > /dev/null \
    || { echo "failed: $name-$seed" >&2; return 1; }
}
export -f train

# Runs the lines on standard input, several at a time.
at_once() { xargs -P "$jobs" -d '\n' -I LINE bash -c 'set -euo pipefail; LINE'; }

# evaluate NAME SPLIT TASKS RUN... [FLAGS]
evaluate() {
  local name=$1 split=$2 tasks=$3
  shift 3
  echo "clapkit eval $* --split $split --tasks $tasks --name $name --bootstrap 0 --device $device --workers 2 --skip-existing" \
    "--overwrite --quiet > /dev/null"
}

runs_of() { for method in $1; do for seed in $seeds; do printf '%s ' "$method-$seed"; done; done; }

prepare_mix() {
  if [ -n "$esc10" ]; then
    clapkit prepare esc10 "$esc10" --name singles --skip-existing --quiet > /dev/null
  else
    clapkit prepare synth --name singles --skip-existing --quiet > /dev/null
  fi
  clapkit prepare mix "$CLAPKIT_RUNS/prepare/singles" --name mix -O num_clips="$clips" -O galleries=4 --skip-existing --quiet \
    > /dev/null
}

flags_of() {
  case $1 in
    infonce)     echo --loss infonce ;;
    svr)         echo --loss svr --radius adaptive ;;
    ot)          echo --loss infonce -O targets=ot ;;
    dbpm)        echo --loss dbpm -O warmup=0.4 ;;
    dbpm-svr)    echo --loss dbpm --base svr -O warmup=0.4 ;;
    compa)       echo --loss compa --false-variants 3 ;;
    compa-order) echo --loss compa --false-variants 1 --variants order ;;
    compa-parts) echo --loss compa --false-variants 2 --true-variants 1 ;;
    compa-svr)   echo --loss compa --base svr --false-variants 3 ;;
    *)           echo "no method $1" >&2; return 1 ;;
  esac
}

noise() {
  prepare_mix
  declare -A methods=([10]="infonce svr dbpm" [20]="infonce svr ot dbpm dbpm-svr" [40]="infonce svr dbpm")
  local rate method seed
  for rate in 10 20 40; do
    python "$here/family.py" plant "$CLAPKIT_RUNS/prepare/mix" "$CLAPKIT_RUNS/noisy-$rate.jsonl" --percent "$rate"
  done
  for rate in 20 10 40; do
    for seed in $seeds; do
      for method in ${methods[$rate]}; do
        echo "train noise-$rate-$method $CLAPKIT_RUNS/noisy-$rate.jsonl $seed $(flags_of "$method") --batch-size 96 --epochs $epochs"
      done
    done
  done | at_once
  for rate in 10 20 40; do
    for split in $galleries; do
      # shellcheck disable=SC2046
      evaluate "noise-$rate-$split" "$split" retrieval $(runs_of "${methods[$rate]}" | sed "s/[^ ]* /noise-$rate-&/g") --data mix
    done
  done | at_once
}

# Trains again without the clips at the head of suspects.csv, as many as were planted; after noise, as many steps.
cleaning() {
  local rate=20 seed split methods="infonce dbpm cleaned"
  for seed in $seeds; do
    clapkit prepare manifest "$CLAPKIT_RUNS/noisy-$rate.jsonl" --name "cleaned-$rate-$seed" --skip-existing --quiet \
      --exclude "$CLAPKIT_RUNS/train/noise-$rate-dbpm-$seed/suspects.csv:$((clips * rate / 100))" > /dev/null
  done
  for seed in $seeds; do
    echo "train noise-$rate-cleaned cleaned-$rate-$seed $seed --loss infonce --batch-size 96 --max-steps $((epochs * (clips / 96)))"
  done | at_once
  for split in $galleries; do
    # shellcheck disable=SC2046
    evaluate "cleaning-$split" "$split" retrieval $(runs_of "$methods" | sed "s/[^ ]* /noise-$rate-&/g") --data mix
  done | at_once
}

order() {
  prepare_mix
  local methods="infonce svr compa compa-order compa-parts compa-svr" method seed split what
  for seed in $seeds; do
    for method in $methods; do
      echo "train order-$method mix $seed $(flags_of "$method") --batch-size 96 --epochs $epochs"
    done
  done | at_once
  {
    # shellcheck disable=SC2046
    evaluate order test temporal $(runs_of "$methods" | sed "s/[^ ]* /order-&/g") --data singles
    for split in $galleries; do
      # shellcheck disable=SC2046
      evaluate "order-$split" "$split" retrieval $(runs_of "$methods" | sed "s/[^ ]* /order-&/g") --data mix
    done
  } | at_once
  for what in choose nearest; do
    # shellcheck disable=SC2046
    python "$here/family.py" "$what" "$CLAPKIT_RUNS" $(runs_of "$methods" | sed "s/[^ ]* /order-&/g") --device "$device"
  done
}

forgetting() {
  prepare_mix
  local half
  for half in a b; do
    python "$here/family.py" half "$CLAPKIT_RUNS/prepare/singles" "$CLAPKIT_RUNS/half-$half.jsonl" --which "$half"
    clapkit prepare mix "$CLAPKIT_RUNS/half-$half.jsonl" --name "mix-$half" -O num_clips="$((clips / 2))" -O galleries=4 \
      --skip-existing --quiet > /dev/null
  done
  local seed
  for seed in $seeds; do
    echo "train start mix-a $seed --loss infonce --batch-size 96 --epochs $epochs"
  done | at_once
  local methods="infonce hycd hycd-svr hycd-rafa albef" short=$((epochs / 2))
  for seed in $seeds; do
    local tune="mix-b $seed --init start-$seed --lr 3e-4 --batch-size 96 --epochs $short"
    echo "train tuned-infonce $tune --loss infonce"
    echo "train tuned-hycd $tune --loss hycd"
    echo "train tuned-hycd-svr $tune --loss hycd --base svr"
    echo "train tuned-hycd-rafa $tune --loss hycd -O rafa=0.1"
    echo "train tuned-albef $tune --loss albef -O queue=1024"
  done | at_once
  for half in a b; do
    for split in $galleries; do
      # shellcheck disable=SC2046
      evaluate "forgetting-$half-$split" "$split" retrieval $(runs_of "$methods" | sed "s/[^ ]* /tuned-&/g") $(runs_of start) \
        --data "mix-$half"
    done
  done | at_once
}

languages() {
  clapkit prepare synth --name polyglot -O languages=en,de,fr,es --skip-existing --quiet > /dev/null
  local seed
  for seed in $seeds; do
    echo "train any polyglot $seed --batch-size 48 --epochs $epochs"
    echo "train sample polyglot $seed --batch-size 48 --epochs $epochs --language-strategy sample"
    echo "train all polyglot $seed --batch-size 192 --epochs $epochs --language-strategy all"
    echo "train anchor polyglot $seed --batch-size 96 --epochs $epochs --language-strategy anchor"
    echo "train sample-svr polyglot $seed --batch-size 48 --epochs $epochs --language-strategy sample --loss svr"
    echo "train all-svr polyglot $seed --batch-size 192 --epochs $epochs --language-strategy all --loss svr"
  done | at_once
  # shellcheck disable=SC2046
  evaluate languages test multilingual $(runs_of "any sample all anchor sample-svr all-svr") --data polyglot | at_once
}

long() {
  prepare_mix
  python "$here/family.py" long "$CLAPKIT_RUNS/prepare/mix" "$CLAPKIT_RUNS/long" --train "$long" --seconds "$seconds" \
    --jobs "$jobs"
  local seed
  for seed in $seeds; do
    echo "train short mix $seed --batch-size 96 --epochs $epochs"
  done | at_once
  for seed in $seeds; do
    local tune="$CLAPKIT_RUNS/long/manifest.jsonl $seed --init short-$seed --lr 3e-4 --batch-size 24 --epochs 4 --audio-cache none --workers 2"
    echo "train long-one $tune"
    echo "train long-mean $tune --windows $((seconds / 5))"
    echo "train long-attention $tune --windows $((seconds / 5)) --fusion attention"
    echo "train long-softmax $tune --windows $((seconds / 5)) --fusion softmax"
  done | at_once
  local method
  for method in short long-one long-mean long-attention long-softmax; do
    # shellcheck disable=SC2046
    evaluate "$method" test windows $(runs_of "$method") --data "$CLAPKIT_RUNS/long/manifest.jsonl"
  done | at_once
}

for part in $parts; do
  case $part in
    noise | cleaning | order | forgetting | languages | long) "$part" ;;
    *) echo "no part $part; expected noise, cleaning, order, forgetting, languages or long" >&2; exit 1 ;;
  esac
  python "$here/family.py" table "$CLAPKIT_RUNS" "$part"
done
