#!/usr/bin/env bash
# The seeds of one row on the GPUs of one machine, a seed on each:
#   examples/cluster/seeds.sh 4 dearkd reproduce dearkd --scale imagenet
# Data and teachers should be there already: see docs/cluster.md. The same command again goes on with what is missing.
set -u
gpus=$1
shift
pids=()
stop() { kill -TERM "${pids[@]}" 2> /dev/null; }
trap stop TERM INT USR1
for ((seed = 0; seed < gpus; seed++)); do
    CUDA_VISIBLE_DEVICES=$seed "$@" --seeds "$seed" &
    pids+=($!)
done
code=0
for pid in "${pids[@]}"; do
    wait "$pid"
    status=$?
    # A signal ends `wait` before the run has saved.
    while kill -0 "$pid" 2> /dev/null; do
        wait "$pid"
        status=$?
    done
    [ "$status" -eq 0 ] || code=$status
done
exit "$code"
