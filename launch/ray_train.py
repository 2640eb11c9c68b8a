"""A run on a Ray cluster: one process on each of N hosts, which Ray Train places, and starts again
when one fails; at the root of the repository, with ray[train] on this machine:

    python launch/ray_train.py 2 --gpus 8 --config configs/x.py --workdir gs://BUCKET/runs/x

Each host needs siglax (SIGLAX: its command, as in env.sh, the same on all); the files of the
repository, such as configs, come with the job. --workdir and the data are in a bucket, or on a disk
that all hosts share, by an absolute path. A worker runs `siglax train` as a process of its own: its
signals, its jax and its exit code are siglax's, and Ray's Python needs no jax. Ctrl-C here ends all
at once, as Ray does; SIGTERM to a `siglax train` on any host has all save first.
"""

import argparse
import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent


def main():
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("hosts", type=int, help="processes, one a host")
  parser.add_argument("--gpus", type=int, default=0, help="of each host; 0 trains on CPUs")
  parser.add_argument("--restarts", type=int, default=10, help="after failures; each resumes")
  given, words = parser.parse_known_args()
  for name, least in (("hosts", 1), ("gpus", 0), ("restarts", 0)):
    if (number := getattr(given, name)) < least:
      parser.error(f"{name}={number} must be at least {least}")
  if problem := wrong_workdir(words):
    parser.error(problem)
  os.environ["RAY_CHDIR_TO_TRIAL_DIR"] = "0"  # workers stay where the files of the repository are
  try:
    import ray
    from ray import train
    from ray.train.v2.api import data_parallel_trainer
  except ImportError as e:
    parser.error(f"{e}; pip install 'ray[train]'")

  sent = {"working_dir": str(ROOT), "excludes": [".git", "docs", "runs", "studies"]}
  ray.init(runtime_env=sent | {"env_vars": {"SIGLAX": os.environ.get("SIGLAX", "siglax")}})
  resources = {"CPU": 1} | ({"GPU": given.gpus} if given.gpus else {})
  data_parallel_trainer.DataParallelTrainer(
    work,
    train_loop_config={"words": words},
    scaling_config=train.ScalingConfig(
      num_workers=given.hosts,
      use_gpu=given.gpus > 0,
      resources_per_worker=resources,
      placement_strategy="SPREAD",
    ),
    run_config=train.RunConfig(failure_config=train.FailureConfig(max_failures=given.restarts)),
  ).fit()


def wrong_workdir(words: list[str]) -> str | None:
  """What is wrong with the words of siglax train, one line; None where nothing is."""
  parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
  parser.add_argument("--workdir")
  workdir = parser.parse_known_args(words)[0].workdir
  if workdir is None or not ("://" in workdir or os.path.isabs(workdir)):
    return f"--workdir {workdir} must be a URL or an absolute path, as all hosts open it"
  return None


def work(config: dict):
  """What each worker does: siglax train until its end. RuntimeError where it fails, which has Ray
  start all workers again.
  """
  import socket

  import ray
  from ray import train
  from ray.train import collective

  context = train.get_context()
  with socket.socket() as s:  # of process 0 alone the others are told
    s.bind(("", 0))
    mine = f"{ray.util.get_node_ip_address()}:{s.getsockname()[1]}"
  coordinator = collective.broadcast_from_rank_zero(mine)
  rank, count = context.get_world_rank(), context.get_world_size()
  group = ["--coordinator", coordinator, "--processes", str(count), "--process-id", str(rank)]
  script = 'source launch/env.sh && exec "${siglax[@]}" train "$@"'
  # No child outlives its worker: where Ray kills one, the other gets SIGTERM.
  command = ["setpriv", "--pdeathsig", "TERM", "bash", "-c", script, "siglax"]
  process = subprocess.Popen([*command, *group, *config["words"]])
  try:
    code = process.wait()
  finally:
    process.terminate()
    process.wait()
  if code:
    raise RuntimeError(f"siglax train, process {rank} of {count}, ended with exit code {code}")


if __name__ == "__main__":
  sys.exit(main())
