"""The launchers: scripts that bash reads, an environment jax accepts, processes told to stop, a
manifest of JobSet's fields.
"""

import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest
import yaml

ROOT = pathlib.Path(__file__).parent.parent
SCRIPTS = [
  *sorted(ROOT.glob("launch/*.sh")),
  ROOT / "launch/slurm.sbatch",
  ROOT / "tests/slurm/run.sh",
]
# Stands in for siglax: writes down what it was given, and ends with CODE when told to stop.
FAKE = """
import os, pathlib, signal, sys, time
stop = []
signal.signal(signal.SIGTERM, lambda *_: stop.append(1))
index = sys.argv[sys.argv.index("--process-id") + 1]
pathlib.Path(os.environ["OUT"], index).write_text(" ".join(sys.argv[1:]))
while not stop and "wait" in sys.argv:
  time.sleep(0.05)
time.sleep(0.3)
sys.exit(int(os.environ.get("CODE" + index, "0")))
"""


def start(tmp_path, command, **environment):
  fake = tmp_path / "fake.py"
  fake.write_text(FAKE)
  environment = {
    "SIGLAX": f"{sys.executable} {fake}",
    "OUT": str(tmp_path),
    "SIGLAX_PLATFORM": "cpu",
    **environment,
  }
  return subprocess.Popen(command, cwd=ROOT, env={**os.environ, **environment})


def wait_for(file):
  for _ in range(200):
    if file.exists() and file.read_text():
      return
    time.sleep(0.05)
  raise AssertionError(f"{file} was not written")


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_bash_reads_it(script):
  subprocess.run(["bash", "-n", script], check=True)


def test_the_gpu_flags_are_known_to_this_jax_and_no_defaults_of_it(tmp_path):
  """An unknown flag in XLA_FLAGS ends the process; the CPU's jaxlib knows those of GPUs too. With a
  program XLA dumps the options that are not as by default.
  """
  program = "import jax; jax.numpy.zeros(1).block_until_ready()"
  command = f"source launch/env.sh && echo $XLA_FLAGS && {sys.executable} -c '{program}'"
  environment = {
    **os.environ,
    "SIGLAX_PLATFORM": "gpu",
    "JAX_PLATFORMS": "cpu",
    "JAX_ENABLE_COMPILATION_CACHE": "false",
    "XLA_FLAGS": f"--xla_dump_to={tmp_path}",
  }
  run = subprocess.run(
    ["bash", "-euc", command],
    cwd=ROOT,
    env=environment,
    check=True,
    stdout=subprocess.PIPE,
    text=True,
  )
  flags = {word.removeprefix("--").split("=")[0] for word in run.stdout.splitlines()[0].split()}
  (options, *_) = tmp_path.glob("*debug_options")
  changed = {line.split(":")[0] for line in options.read_text().splitlines()}
  assert len(flags) > 3 and flags <= changed


def test_local_numbers_the_processes_and_returns_the_code_that_failed(tmp_path):
  assert (
    start(tmp_path, ["launch/local.sh", "2", "--config", "x.py"], PORT="1234", CODE0="3").wait(30)
    == 3
  )
  for i in (0, 1):
    assert (
      (tmp_path / str(i)).read_text()
      == f"train --coordinator localhost:1234 --processes 2 --process-id {i} --config x.py"
    )


@pytest.mark.parametrize("name, given", [("N", "0"), ("DEVICES", "two")])
def test_local_takes_numbers(name, given):
  number = given if name == "N" else "1"
  done = subprocess.run(
    ["launch/local.sh", number, "--config", "x.py"],
    cwd=ROOT,
    env={**os.environ, "SIGLAX": "true", "SIGLAX_PLATFORM": "cpu", "DEVICES": "1"} | {name: given},
    capture_output=True,
    text=True,
  )
  assert done.returncode == 1
  assert done.stderr.startswith(f"{name}={given} must be a number") and done.stderr.count("\n") == 1


@pytest.mark.parametrize("code", [0, 5])
def test_local_stops_all_and_waits(tmp_path, code):
  process = start(tmp_path, ["launch/local.sh", "2", "wait"], CODE1=str(code))
  for i in "01":
    wait_for(tmp_path / i)
  process.send_signal(signal.SIGTERM)
  assert process.wait(30) == code


def test_the_jobset_has_the_api_fields_and_one_size():
  manifest = yaml.safe_load((ROOT / "launch/gke_jobset.yaml").read_text())
  assert (manifest["apiVersion"], manifest["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
  spec = manifest["spec"]
  assert spec.keys() <= {
    "replicatedJobs",
    "network",
    "successPolicy",
    "failurePolicy",
    "suspend",
    "coordinator",
    "managedBy",
    "ttlSecondsAfterFinished",
  }
  assert spec["failurePolicy"].keys() <= {"maxRestarts", "restartStrategy", "rules"}
  (workers,) = spec["replicatedJobs"]
  assert workers.keys() <= {"name", "groupName", "template", "replicas", "dependsOn"}
  assert spec["coordinator"] == {"replicatedJob": workers["name"], "jobIndex": 0, "podIndex": 0}
  job, pod = workers["template"]["spec"], workers["template"]["spec"]["template"]["spec"]
  (container,) = pod["containers"]
  hosts = {e["name"]: e.get("value") for e in container["env"]}["PROCESSES"]
  assert (
    str(job["parallelism"]) == str(job["completions"]) == hosts
    and job["completionMode"] == "Indexed"
  )
  rows, columns = pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x")
  assert int(rows) * int(columns) == int(hosts) * int(
    container["resources"]["limits"]["google.com/tpu"]
  )
  assert pod["serviceAccountName"] and container["args"][0].count("gs://BUCKET/") == 3


@pytest.mark.parametrize("told, code, expected", [(False, 0, 0), (False, 7, 7), (True, 0, 143)])
def test_an_evicted_pod_does_not_count_as_finished(tmp_path, told, code, expected):
  manifest = yaml.safe_load((ROOT / "launch/gke_jobset.yaml").read_text())
  (container,) = manifest["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"][
    "containers"
  ]
  script = container["args"][0]
  if told:
    script = script.replace("--workdir", "wait --workdir")
  pod = {
    "COORDINATOR": "siglax-workers-0-0.siglax",
    "PROCESSES": "4",
    "JOB_COMPLETION_INDEX": "2",
    "CODE2": str(code),
  }
  process = start(tmp_path, [*container["command"], script], **pod)
  if told:
    wait_for(tmp_path / "2")
    process.send_signal(signal.SIGTERM)
  assert process.wait(30) == expected
  assert (
    (tmp_path / "2")
    .read_text()
    .startswith("train --coordinator siglax-workers-0-0.siglax:8482 --processes 4 --process-id 2")
  )


def skypilot():
  return yaml.safe_load((ROOT / "launch/skypilot.yaml").read_text())


def test_skypilot_reads_the_task():
  """By its own schema where it is installed, and else by the names of its fields."""
  task = skypilot()
  assert task.keys() <= {"name", "resources", "num_nodes", "workdir", "envs", "setup", "run"}
  assert task["resources"].keys() <= {"accelerators", "use_spot", "disk_size"}
  assert all(isinstance(value, str) for value in task["envs"].values())
  assert [value.count("gs://BUCKET/") for value in task["envs"].values()] == [2, 1, 0]
  try:
    import sky
  except ImportError:
    return
  read = sky.Task.from_yaml(str(ROOT / "launch/skypilot.yaml"))
  assert (read.num_nodes, read.envs) == (task["num_nodes"], task["envs"])


@pytest.mark.parametrize("code", [0, 7])
def test_a_host_of_skypilot_joins_the_group(tmp_path, code):
  task = skypilot()
  hosts = {
    "SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2",
    "SKYPILOT_NUM_NODES": "2",
    "SKYPILOT_NODE_RANK": "1",
  }
  process = start(tmp_path, ["bash", "-c", task["run"]], **task["envs"], **hosts, CODE1=str(code))
  assert process.wait(30) == code
  given = task["envs"]
  assert (tmp_path / "1").read_text() == (
    f"train --coordinator 10.0.0.1:8482 --processes 2 --process-id 1 --config {given['CONFIG']} "
    f"--workdir {given['WORKDIR']} {given['MORE']}"
  )


def test_xpk_is_given_a_command_that_bash_takes_apart_again(tmp_path):
  """Programs that print their arguments stand in for xpk and for siglax."""
  given = ["--config", "configs/x.py:train=gs://BUCKET/{0..3}.tar,steps=1", "--workdir", "a b"]
  show = tmp_path / "show"
  show.write_text('#!/bin/bash\nprintf "%s\\n" "$@"\n')
  show.chmod(0o755)
  named = {"CLUSTER": "c", "PROJECT": "p", "ZONE": "z", "TPU": "v5litepod-16", "IMAGE": "i"}
  run = lambda *words: subprocess.run(
    ["launch/xpk.sh", *words],
    cwd=ROOT,
    env={**os.environ, **named, "XPK": str(show), "XPK_FLAGS": "--dry-run"},
    capture_output=True,
    text=True,
  )
  words = run("start", *given).stdout.splitlines()
  assert words[:8] == "workload create --cluster c --project p --zone z".split()
  assert words[-1] == "--dry-run" and words[-3] == "--command"
  # As xpk has the pod run it.
  inner = words[-2].replace("/siglax/", f"{ROOT}/", 1)
  environment = {**os.environ, "SIGLAX": str(show), "SIGLAX_PLATFORM": "tpu"}
  done = subprocess.run(["bash", "-c", f"({inner})"], env=environment, capture_output=True)
  assert done.stdout.decode().splitlines() == ["train", *given], done.stderr
  assert run("stop").stdout.startswith("workload\ndelete\n")
  wrong = run("begin")
  assert wrong.returncode == 1 and "launch/xpk.sh start" in wrong.stderr


@pytest.mark.parametrize("told, code, expected", [(False, 0, 0), (False, 7, 7), (True, 0, 143)])
def test_an_evicted_pod_of_xpk_does_not_count_as_finished(tmp_path, told, code, expected):
  words = ["wait"] if told else []
  command = ["launch/xpk.sh", "worker", *words, "--process-id", "0"]
  process = start(tmp_path, command, CODE0=str(code))
  if told:
    wait_for(tmp_path / "0")
    process.send_signal(signal.SIGTERM)
  assert process.wait(30) == expected


@pytest.mark.parametrize(
  "words, message",
  [
    (["2"], "--workdir None must be a URL or an absolute path"),
    (["2", "--workdir", "runs/x"], "--workdir runs/x must be a URL or an absolute path"),
    (["0", "--workdir", "/runs/x"], "hosts=0 must be at least 1"),
    (["1", "--gpus", "-1", "--workdir", "/runs/x"], "gpus=-1 must be at least 0"),
    (["1", "--workdir", "/runs/x"], "No module named 'ray'; pip install 'ray[train]'"),
  ],
)
def test_ray_refuses_in_one_line(words, message):
  """-S: without site-packages, where Ray would be."""
  done = subprocess.run(
    [sys.executable, "-S", "launch/ray_train.py", *words, "--config", "x.py"],
    cwd=ROOT,
    env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
    capture_output=True,
    text=True,
  )
  assert done.returncode == 2
  assert message in done.stderr.splitlines()[-1]
