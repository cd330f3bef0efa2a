#!/usr/bin/env bash
# tools/dist_train.sh CONFIG GPUS [flags of tools/train.py]
# GPUS is the number of processes on this node; without a GPU they run on the CPU.
# SIGTERM and SIGUSR1 are handed on to the processes, which save and end: exit code 0. MAX_RESTARTS
# (0) is how often all start again after one has failed; give --resume with it.
# TRAIN_MODULE is a module of python that trains in place of tools/train.py, with its flags.
# Several nodes: NNODES, NODE_RANK, MASTER_ADDR and PORT from the environment, docs/scaling.md.
set -e
if [ $# -lt 2 ]; then
    echo "usage: $0 CONFIG GPUS [flags of tools/train.py]" >&2
    exit 2
fi
CONFIG=$1
GPUS=$2
TOOLS=$(dirname "$0")
TRAIN=("$TOOLS/train.py")
[ -z "$TRAIN_MODULE" ] || TRAIN=(-m "$TRAIN_MODULE")

MASTER_ADDR=${MASTER_ADDR:-127.0.0.1}
PORT=${PORT:-29500}
MEETING=(--node_rank="${NODE_RANK:-0}" --master_addr="$MASTER_ADDR" --master_port="$PORT")
if [ "${MAX_RESTARTS:-0}" -gt 0 ]; then
    # What met at a fixed address, or in torchrun's own store, would meet the dead there.
    export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
    MEETING=(--rdzv_backend=c10d --rdzv_endpoint="$MASTER_ADDR:$PORT" --rdzv_id="mmdense_$PORT"
        --max_restarts="$MAX_RESTARTS")
fi

(
    trap '' USR1 # a scheduler may send it to torchrun too; the processes listen for themselves
    export PYTHONPATH="$TOOLS/..${PYTHONPATH:+:$PYTHONPATH}"
    exec "${PYTHON:-python}" -m torch.distributed.run \
        --nnodes="${NNODES:-1}" \
        "${MEETING[@]}" \
        --nproc_per_node="$GPUS" \
        "${TRAIN[@]}" "$CONFIG" --launcher pytorch "${@:3}"
) &
TORCHRUN=$!

# torchrun itself ends with 1 on SIGTERM, and dies of SIGUSR1.
forward() {
    local processes
    processes=$(cat "/proc/$TORCHRUN/task/"*/children 2>/dev/null || pgrep -P "$TORCHRUN") || true
    # before there are any (it waits for other nodes) torchrun itself is to end
    # shellcheck disable=SC2086
    if [ -n "$processes" ]; then
        kill -s "$1" $processes 2>/dev/null || true
    else
        kill -s TERM "$TORCHRUN" 2>/dev/null || true
    fi
}
trap 'forward TERM' TERM
trap 'forward USR1' USR1
trap 'kill -s TERM "$TORCHRUN"' INT # Ctrl-C: INT it may ignore

STATUS=0
while :; do # a signal ends wait
    wait "$TORCHRUN" && STATUS=0 || STATUS=$?
    kill -0 "$TORCHRUN" 2>/dev/null || break
done
# that of torchrun, where a signal came as it ended
wait "$TORCHRUN" && STATUS=0 || STATUS=$?
exit "$STATUS"
