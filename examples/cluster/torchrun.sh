#!/usr/bin/env bash
# One run on several nodes without a scheduler; the same command on every node, RENDEZVOUS naming one of them:
#   RENDEZVOUS=node1:29400 NODES=2 GPUS=4 examples/cluster/torchrun.sh dearkd train --scale imagenet --out runs/dearkd
# On one node, NODES and RENDEZVOUS may be left out. The run folder must lie on a disk that all nodes see.
set -eu
exec torchrun --nnodes="${NODES:-1}" --nproc-per-node="${GPUS:-gpu}" \
    --rdzv-backend=c10d --rdzv-endpoint="${RENDEZVOUS:-localhost:0}" --rdzv-id="${RUN_ID:-vitutor}" \
    --signals-to-handle=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1 --shutdown-timeout=300 \
    --no-python "$@"
