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


def test_the_gpu_flags_are_known_to_this_jax():
  """An unknown flag in XLA_FLAGS ends the process; the CPU's jaxlib knows those of GPUs too."""
  program = "import jax; jax.numpy.zeros(1).block_until_ready()"
  command = f"source launch/env.sh && {sys.executable} -c '{program}'"
  environment = {**os.environ, "SIGLAX_PLATFORM": "gpu", "JAX_PLATFORMS": "cpu"}
  subprocess.run(["bash", "-euc", command], cwd=ROOT, env=environment, check=True)


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
