#!/usr/bin/env bash
# A TPU slice of a GKE cluster that xpk made (github.com/AI-Hypercomputer/xpk), from your own machine with xpk and gcloud:
#
#   export CLUSTER=name PROJECT=id ZONE=us-central2-b TPU=v5litepod-16 IMAGE=REGION-docker.pkg.dev/PROJECT/REPOSITORY/siglax
#   launch/xpk.sh start --config configs/x.py --workdir gs://BUCKET/runs/x
#   launch/xpk.sh watch | stop
#
# IMAGE is that of README.md beside this file, with the repository in /siglax. NAME: of the workload, siglax when unset.
# XPK: the command, "xpk" when unset; XPK_FLAGS: more words for it, such as --dry-run, which prints and starts nothing.
set -euo pipefail
read -ra xpk <<< "${XPK:-xpk}"
read -ra more <<< "${XPK_FLAGS:-}"

of_cluster() {  # of_cluster SUBCOMMAND FLAGS
  "${xpk[@]}" workload "$1" --cluster "$CLUSTER" --project "$PROJECT" --zone "$ZONE" "${@:2}" \
    ${more[@]+"${more[@]}"}  # in bash 3.2, of macOS, an empty array is an unbound variable
}

case ${1:-} in
  start)
    # A pod that fails or is evicted ends its Job; all pods start again and the run resumes. exec: xpk passes SIGTERM on
    # to what it started, which is then the worker below.
    of_cluster create --workload "${NAME:-siglax}" --tpu-type "$TPU" --docker-image "$IMAGE" --env SIGLAX_PLATFORM=tpu \
      --max-restarts 100 --termination-grace-period-seconds 300 \
      --command "exec bash /siglax/launch/xpk.sh worker$(printf ' %q' "${@:2}")"
    ;;
  worker)  # in each pod; jax finds the others by what GKE tells the pods of a slice
    cd "$(dirname "$0")/.."
    # shellcheck source=launch/env.sh
    source launch/env.sh
    # An evicted pod saves and siglax exits 0, which would count as finished: 143 has the JobSet resume.
    "${siglax[@]}" train "${@:2}" &
    pid=$!
    trap 'evicted=yes; kill -TERM "$pid"' TERM
    code=0
    wait "$pid" || code=$?
    if [[ ${evicted:-} ]]; then
      wait "$pid" || true
      exit 143
    fi
    exit "$code"
    ;;
  watch) of_cluster list --filter-by-job "${NAME:-siglax}" ;;
  stop) of_cluster delete --workload "${NAME:-siglax}" --force ;;
  *)
    sed -n '2,9s/^# \{0,1\}//p' "$0" >&2
    exit 1
    ;;
esac
