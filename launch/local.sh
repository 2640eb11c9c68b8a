#!/usr/bin/env bash
# N processes on this machine:  launch/local.sh N --config configs/x.py --workdir DIR [--config.a.b=value ...]
#
# DEVICES=2: devices of each process: virtual ones on a CPU, GPUs on a GPU machine (process i takes the i-th pair). 1 when unset.
# PORT=8476: where process 0 listens.
# Ctrl-C or SIGTERM has all of them save and exit; the same command resumes. Exits with the code of a process that failed.
set -meuo pipefail  # -m: a process group each, so that the terminal's Ctrl-C reaches them once, through the trap below
processes=${1:?usage: launch/local.sh N --config FILE --workdir DIR}
if ! [[ $processes =~ ^[1-9][0-9]*$ ]]; then
  echo "N=$processes must be a number of processes; usage: launch/local.sh N --config FILE --workdir DIR" >&2
  exit 1
fi
shift
# shellcheck source=launch/env.sh
source "$(dirname "$0")/env.sh"
devices=${DEVICES:-1}
if ! [[ $devices =~ ^[1-9][0-9]*$ ]]; then
  echo "DEVICES=$devices must be a number of devices of each process" >&2
  exit 1
fi

pids=()
for ((i = 0; i < processes; i++)); do
  export JAX_NUM_CPU_DEVICES=$devices
  if [[ $SIGLAX_PLATFORM == gpu ]]; then
    JAX_LOCAL_DEVICE_IDS=$(seq -s, $((i * devices)) $(((i + 1) * devices - 1)))
    export JAX_LOCAL_DEVICE_IDS
  fi
  "${siglax[@]}" train --coordinator "localhost:${PORT:-8476}" --processes "$processes" --process-id "$i" "$@" &
  pids+=($!)
done
trap 'kill -TERM "${pids[@]}" 2> /dev/null || true' INT TERM

status=0
for pid in "${pids[@]}"; do
  code=0
  wait "$pid" || code=$?
  while kill -0 "$pid" 2> /dev/null; do  # the trap above ended the wait, not the process
    code=0
    wait "$pid" || code=$?
  done
  if ((code)); then status=$code; fi
done
exit "$status"
