#!/usr/bin/env bash
# SLURM for real, on one machine: two tasks train, are told to stop, and resume when submitted again.
#
#   apt-get install --no-install-recommends munge slurm-wlm     # Debian or Ubuntu; as root
#   tests/slurm/run.sh [PYTHON]     # python3 when not given; it runs the siglax of this folder; a few minutes
#
# Starts munged, slurmctld and slurmd on ports of their own with all files in a temporary folder, and ends them again.
# No part of the tests that pytest runs: it needs root and SLURM's daemons. Prints "passed", or what failed and the logs.
set -euo pipefail
cd "$(dirname "$0")/../.."
python=${1:-python3}
dir=$(mktemp -d /tmp/siglax-slurm.XXXXXX)
chmod 755 "$dir"
host=$(hostname -s)
workdir=$dir/run
export SLURM_CONF=$dir/slurm.conf SIGLAX="$python -m siglax.commands.cli" SIGLAX_PLATFORM=cpu JAX_PLATFORMS=cpu JAX_NUM_CPU_DEVICES=1

failed() {
  echo "failed: $*" >&2
  tail -n 40 "$dir"/*.log "$dir"/*.out >&2 || true
  exit 1
}

stop_daemons() {
  scancel --quiet --user="$(id -un)" 2> /dev/null || true
  for pid in slurmd slurmctld munged; do
    if [[ -s $dir/$pid.pid ]]; then kill "$(cat "$dir/$pid.pid")" || true; fi
  done
}

start_daemons() {
  mkdir "$dir/slurmd" "$dir/slurmctld"
  (umask 077 && head -c 1024 /dev/urandom > "$dir/munge.key")
  munged --force --key-file="$dir/munge.key" --socket="$dir/munge.socket" --pid-file="$dir/munged.pid" \
    --log-file="$dir/munged.log" --seed-file="$dir/munge.seed"
  cat > "$SLURM_CONF" << CONF
ClusterName=siglax
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=16817
SlurmdPort=16818
SlurmUser=$(id -un)
SlurmdUser=$(id -un)
AuthType=auth/munge
AuthInfo=socket=$dir/munge.socket
StateSaveLocation=$dir/slurmctld
SlurmdSpoolDir=$dir/slurmd
SlurmctldPidFile=$dir/slurmctld.pid
SlurmdPidFile=$dir/slurmd.pid
SlurmctldLogFile=$dir/slurmctld.log
SlurmdLogFile=$dir/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
MpiDefault=none
SlurmdParameters=config_overrides
NodeName=$host NodeAddr=127.0.0.1 CPUs=2 RealMemory=1000
PartitionName=main Nodes=ALL Default=YES State=UP
CONF
  slurmctld
  slurmd
  until_true 30 "sinfo --noheader --format=%t | grep -q idle" "the node does not come up"
}

until_true() {  # until_true SECONDS CONDITION COMPLAINT
  for ((i = 0; i < $1 * 5; i++)); do
    if eval "$2"; then return; fi
    sleep 0.2
  done
  failed "$3 within $1 s"
}

submit() {  # prints the job's number
  sbatch --parsable --nodes=1 --ntasks-per-node=2 --cpus-per-task=1 --time=20 --output="$dir/%j.out" launch/slurm.sbatch \
    --config configs/quickstart.py:steps=300 --workdir "$workdir" \
    --config.checkpoint.every_steps=150 --config.log.every_steps=10
}

state() {  # state JOB: such as "COMPLETED 0:0"
  scontrol show job "$1" | sed -n 's/.*JobState=\([A-Z]*\).*/\1/p; s/.*ExitCode=\([0-9:]*\).*/\1/p' | xargs
}

ended() {
  [[ ! $(state "$1") =~ PENDING|CONFIGURING|RUNNING|COMPLETING ]]
}

logged() {  # the step of the newest line of metrics.jsonl, or 0
  tail -n 1 "$workdir/metrics.jsonl" 2> /dev/null | sed -n 's/.*"step": *\([0-9]*\).*/\1/p' | grep . || echo 0
}

trap stop_daemons EXIT
start_daemons
[[ $(srun --ntasks=2 hostname | sort -u) == "$host" ]] || failed "srun hostname"
srun --ntasks=2 --label "$python" tests/slurm/psum.py || failed "jax over two SLURM tasks"

first=$(submit)
until_true 300 "(( \$(logged) >= 20 )) || ended $first" "no step 20"
scancel --signal=TERM "$first"
until_true 120 "ended $first" "the job told to stop has not ended"
[[ $(state "$first") == "COMPLETED 0:0" ]] || failed "the job told to stop is $(state "$first")"
grep -q "stopped by" "$dir/$first.out" || failed "the job told to stop does not say so"
stopped=$(logged)
((stopped >= 20 && stopped < 300)) || failed "stopped at step $stopped"

second=$(submit)
until_true 600 "ended $second" "the resumed job has not ended"
[[ $(state "$second") == "COMPLETED 0:0" ]] || failed "the resumed job is $(state "$second")"
resumed=$(sed -n 's/.*resuming at step \([0-9]*\).*/\1/p' "$dir/$second.out" | head -n 1)
((resumed >= stopped)) || failed "resumed at step ${resumed:-0}, stopped after $stopped"
[[ $(logged) == 300 ]] || failed "the resumed job ended at step $(logged)"
sed 's/.*"step": *\([0-9]*\).*/\1/' "$workdir/metrics.jsonl" | sort -nC || failed "steps of metrics.jsonl go back"
echo "passed: stopped at step $resumed, resumed there, finished at 300; logs in $dir"
