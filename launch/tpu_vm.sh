#!/usr/bin/env bash
# All hosts of a Cloud TPU slice, from your own machine with gcloud, at the root of the repository:
#
#   export TPU=name ZONE=us-central2-b
#   launch/tpu_vm.sh install                                       # copies the committed files to every host, installs them
#   launch/tpu_vm.sh start --config configs/x.py --workdir DIR     # DIR in a bucket: gs://BUCKET/runs/x
#   launch/tpu_vm.sh watch | stop
set -euo pipefail

on() {  # on WORKERS COMMAND
  gcloud compute tpus tpu-vm ssh "$TPU" --zone "$ZONE" --worker="$1" --command="$2"
}

metadata() {  # of the host this runs on
  curl -sf -H "Metadata-Flavor: Google" "http://metadata.google.internal/computeMetadata/v1/instance/attributes/$1"
}

case ${1:-} in
  install)
    git archive --format=tar.gz --output=/tmp/siglax.tar.gz HEAD
    gcloud compute tpus tpu-vm scp /tmp/siglax.tar.gz "$TPU:" --zone "$ZONE" --worker=all
    # The images of TPU VMs come with Python 3.10; uv brings a newer one.
    on all "mkdir -p siglax && tar -xzf siglax.tar.gz -C siglax && cd siglax && python3 -m pip install -q --user uv && \
      python3 -m uv venv -q --clear --python 3.12 .venv && python3 -m uv pip install -q --python .venv -e '.[tpu,gcs]'"
    ;;
  start)
    on all "cd siglax || exit; setsid nohup launch/tpu_vm.sh worker $(printf '%q ' "${@:2}") > \$HOME/siglax.log 2>&1 < /dev/null & echo \$! > \$HOME/siglax.pid"
    ;;
  worker)  # on each host: which one it is, and of how many, from the machine's metadata
    # shellcheck source=launch/env.sh
    SIGLAX=${SIGLAX:-.venv/bin/siglax} source "$(dirname "$0")/env.sh"
    hosts=$(metadata worker-network-endpoints)  # of each host, with commas between: name:id:address, or its name alone
    IFS=, read -ra hosts <<< "$hosts"
    exec "${siglax[@]}" train --coordinator "${hosts[0]##*:}:8482" --processes "${#hosts[@]}" \
      --process-id "$(metadata agent-worker-number)" "${@:2}"
    ;;
  watch) on 0 "tail -n 100 -F siglax.training.log" ;;
  stop) on all "kill -TERM \$(cat siglax.pid)" ;;  # saves and exits; start again to resume
  *)
    sed -n '2,8s/^# \{0,1\}//p' "$0" >&2
    exit 1
    ;;
esac
