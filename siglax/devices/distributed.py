"""Several processes as one run: who they are, that they want the same, and how they end together.

A process group is named on the command line (--coordinator, --processes, --process-id), by the
variables JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID, or found under SLURM's srun
and on TPU hosts. Without any of them there is one process, and nothing to set up. Call `start`
before anything asks jax for its devices.
"""

from __future__ import annotations

from collections.abc import Callable
import glob
import importlib.util
import json
import os
import signal
import socket
import time

import jax
from jax._src import distributed as jax_distributed
from jax.experimental import multihost_utils
import numpy as np

from siglax import config as config_lib
from siglax.config import imports
from siglax.config import values

# A process that has said nothing for so long is dead, and the others end: within a minute in all.
HEARTBEAT_SECONDS = 20
SHUTDOWN_SECONDS = 20
# Between two questions of a process that waits for others.
ASK_SECONDS = 0.2
VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
FLAGS = ("--coordinator", "--processes", "--process-id")


def start(
  coordinator: str | None = None,
  count: int | None = None,
  index: int | None = None,
  timeout: int = 300,
):
  """Joins the process group, if there is one.

  coordinator: "host:port" of process 0, which listens there. timeout: seconds to wait for the
  others. Raises ValueError in one line for a group that is half named, and for a coordinator that
  cannot be reached.
  """
  group = _named(coordinator, count, index)
  waits = dict(
    initialization_timeout=timeout,
    heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
    shutdown_timeout_seconds=SHUTDOWN_SECONDS,
  )
  if group is not None:
    coordinator, count, index = group
    if count == 1:
      return
    if index > 0:
      _wait_for(coordinator, index, timeout)
    # The devices of a process are all it sees; jax would ask SLURM or MPI for them.
    jax.distributed.initialize(
      coordinator, count, index, cluster_detection_method="deactivate", **waits
    )
  elif _under_srun():
    jax.distributed.initialize(cluster_detection_method="slurm", **waits)
  elif _on_tpu():
    jax.distributed.initialize(**waits)


def check_same_config(config):
  """Compares the config of all processes. Raises the same ValueError on all where one differs, with
  its fields.
  """
  if jax.process_count() == 1:
    return
  first, *others = map(config_lib.from_json, of_all(config_lib.to_json(config)))
  for i, other in enumerate(others, 1):
    different = config_lib.differences(first, other, "in process 0", f"in process {i}")
    if different:
      raise ValueError(
        f"the processes have different configs: {'; '.join(different)}; start all with the same "
        "command"
      )


def check_same(about: dict, flags: str):
  """Compares what JSON can hold over all processes. Raises the same ValueError on all where one
  differs, with the first name that does. flags: those that it comes from.
  """
  if jax.process_count() == 1:
    return
  first, *others = map(json.loads, of_all(json.dumps(about)))
  for i, other in enumerate(others, 1):
    for name, value in first.items():
      if other[name] != value:
        raise ValueError(
          f"the processes do not do the same: {name} is {values.shown(value)} in process 0 and "
          f"{values.shown(other[name])} in process {i}; start all with the same {flags}"
        )


def check_same_imports():
  """Compares what the processes have imported by --import. Raises the same ValueError on all where
  the files differ.
  """
  if jax.process_count() == 1:
    return
  here = {file.digest: file.name for file in imports.imported()}
  first, *others = map(json.loads, of_all(json.dumps(here)))
  for i, other in enumerate(others, 1):
    if first.keys() != other.keys():
      shown = lambda files: ", ".join(f"{name} ({d[:8]})" for d, name in files.items()) or "nothing"
      raise ValueError(
        f"the processes have imported different files: {shown(first)} in process 0, {shown(other)} "
        f"in process {i}; start all with the same --import, and the same content of the files"
      )


def of_all(text: str) -> list[str]:
  """The text of each process, on all of them."""
  data = np.frombuffer(text.encode(), np.uint8)
  longest = int(np.max(multihost_utils.process_allgather(np.int32(len(data)))))
  # Few sizes are compiled.
  longest = 1 << (longest - 1).bit_length()
  rows = multihost_utils.process_allgather(np.pad(data, (0, longest - len(data))))
  return [bytes(row).rstrip(b"\0").decode() for row in rows]


def on_first(function):
  """What function() returns, on process 0; None on the others. Where it raises, all raise,
  ValueError on the others.

  function: may be None on the others.
  """
  result = error = None
  if jax.process_index() == 0:
    try:
      result = function()
    except Exception as e:  # pylint: disable=broad-exception-caught; the others wait to be told
      error = e
  if (told := of_first(error if error is None else str(error))) is not None:
    raise error or ValueError(told)
  return result


def of_first(value):
  """Process 0's value on all processes; what JSON can hold."""
  if jax.process_count() == 1:
    return value
  text = np.frombuffer(json.dumps(value).encode(), np.uint8)
  size = int(multihost_utils.broadcast_one_to_all(np.int32(len(text))))
  mine = text if jax.process_index() == 0 else np.zeros(size, np.uint8)
  return json.loads(bytes(multihost_utils.broadcast_one_to_all(mine)).decode())


def in_shares(share: Callable[[Callable[[], None]], None], finish: Callable[[], dict]) -> dict:
  """share(go_on) in each process, then finish() in process 0 once all are through; returns what
  that does, which JSON can hold, in all.

  The processes talk by their coordinator and not by devices, so that one may wait for another as
  long as it takes. share calls go_on now and then; where a process fails, all raise ValueError.
  """
  if jax.process_count() == 1:
    share(lambda: None)
    return finish()
  me, client = jax.process_index(), jax_distributed.global_state.client
  told = lambda what: dict(client.key_value_dir_get(f"siglax/{what}/"))

  def go_on():
    if failed := told("failed"):
      raise _Elsewhere(min(failed.values()))

  def wait_for(what: str, count: int) -> dict:
    while len(found := told(what)) < count:
      go_on()
      time.sleep(ASK_SECONDS)
    return found

  try:
    share(go_on)
    client.key_value_set(f"siglax/through/{me}", "")
    if me == 0:
      wait_for("through", jax.process_count())
      client.key_value_set("siglax/finished/0", json.dumps(finish()))
    (result,) = wait_for("finished", 1).values()
    return json.loads(result)
  except _Elsewhere:
    raise
  except Exception as e:
    client.key_value_set(f"siglax/failed/{me}", values.one_line(e))
    raise


class _Elsewhere(ValueError):
  """The error of another process."""


def any_has(*flags: bool) -> list[bool]:
  """For each flag, whether it is set in any process."""
  if jax.process_count() == 1:
    return list(flags)
  return multihost_utils.process_allgather(np.array(flags)).any(axis=0).tolist()


def interrupt_all(number, frame):
  """A signal handler: has all processes save at the same step and end, as SIGTERM to any of them
  does.
  """
  del number, frame
  os.kill(os.getpid(), signal.SIGTERM)


def _named(coordinator, count, index):
  """(coordinator, count, index) of the flags or the variables; None when neither are given."""
  given = dict(zip(FLAGS, (coordinator, count, index)))
  if all(value is None for value in given.values()):
    given = {name: os.environ.get(name) for name in VARIABLES}
  missing = [name for name, value in given.items() if value is None]
  if len(missing) == len(given):
    return None
  if missing:
    raise ValueError(
      f"{', '.join(missing)} missing; a process group needs all of {', '.join(given)}"
    )
  coordinator, count, index = given.values()
  (_, count_name, index_name) = given
  try:
    count, index = int(count), int(index)
  except ValueError as e:
    raise ValueError(f"{count_name}={count} and {index_name}={index} must be whole numbers") from e
  if not 0 <= index < count:
    raise ValueError(f"{index_name}={index} must lie in 0 … {count - 1}, as {count_name}={count}")
  host, colon, port = coordinator.rpartition(":")
  if not (host and colon and port.isdecimal()):
    raise ValueError(f"{next(iter(given))}={coordinator} must be host:port")
  return coordinator, count, index


def _wait_for(coordinator: str, index: int, timeout: int):
  """Waits for the coordinator's port to open; jax itself would abort the process with a stack
  trace.
  """
  host, _, port = coordinator.rpartition(":")
  begin, error = time.monotonic(), None
  while time.monotonic() - begin < timeout:
    try:
      socket.create_connection((host.strip("[]"), int(port)), timeout=min(5, timeout)).close()
      return
    except OSError as e:
      error = e
      time.sleep(0.2)
  raise ValueError(
    f"process {index} could not reach process 0 at {coordinator} within {timeout} s ({error}); "
    "start it there, or give its address as --coordinator"
  )


def _under_srun() -> bool:
  """One of several tasks of a SLURM step; a batch script itself has no step of several tasks."""
  return (
    int(os.environ.get("SLURM_NTASKS", "1")) > 1
    and {"SLURM_PROCID", "SLURM_LOCALID", "SLURM_STEP_NODELIST"} <= os.environ.keys()
  )


def _on_tpu() -> bool:
  """A TPU host; its libtpu knows the others, and of a single one too."""
  return (
    bool(glob.glob("/dev/accel*") or glob.glob("/dev/vfio/[0-9]*"))
    and importlib.util.find_spec("libtpu") is not None
  )


def preempted(step: int) -> bool:
  """Whether the processes have agreed to end at this step, after a SIGTERM to one of them; ask at
  every step.
  """
  return multihost_utils.reached_preemption_sync_point(step)
