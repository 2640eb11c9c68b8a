"""What an exception tells: whether a disk failed or a file is bad, and its one line for
the user.
"""

from __future__ import annotations

import errno
import logging
import os
import time
from typing import Any

from siglax.config.values import one_line

logger = logging.getLogger("siglax")
# Seconds between the attempts of a read, and of the last save of a run.
RETRY_SECONDS = (0.5, 1, 2, 4)
# Errors of a path that is not there: damage. All other errors of the operating system are failures
# to read.
MISSING = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR)
# Errors of a machine or of a server of files, and never of one file.
PASSING = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ESTALE, errno.ETIMEDOUT)
# What tells of a failure in the text of an error: libraries in C++ pass on the operating system's
# errors, and their own, so.
FAILURES = (
  "RESOURCE_EXHAUSTED",
  "UNAVAILABLE",
  "DEADLINE_EXCEEDED",
  "ABORTED",
  "CANCELLED",
  "PERMISSION_DENIED",
  "Gloo",
  *(
    os.strerror(number)
    for number in (
      errno.EIO,
      errno.ESTALE,
      errno.ETIMEDOUT,
      errno.EMFILE,
      errno.ENFILE,
      errno.ENOMEM,
      errno.EACCES,
      errno.EPERM,
      errno.EAGAIN,
      errno.EINTR,
      errno.ECONNRESET,
      errno.ECONNREFUSED,
      errno.EPIPE,
      errno.EHOSTUNREACH,
      errno.EREMOTEIO,
    )
  ),
)


def is_lost_process(error: BaseException) -> bool:
  """Whether a collective failed because another process of the group does not answer. XLA tells it
  in the text of a RuntimeError alone.
  """
  return any(text in str(error) for text in ("Gloo", "coordination service", "NCCL"))


class Unreachable(ConnectionError):
  """A server that does not answer after several attempts, or refuses, or a machine that cannot open
  more files: nothing is wrong with the data that was asked for, so that it must not be replaced by
  other data.
  """


def is_passing(error: BaseException) -> bool:
  """Whether an error is of PASSING: by its number, or by what a library in C++ says."""
  number = getattr(error, "errno", None)
  return number in PASSING or any(os.strerror(number) in str(error) for number in PASSING)


def is_failure(error: BaseException) -> bool:
  """Whether an error tells of a disk, a memory or a network that failed, and so nothing about what
  is stored.
  """
  if (
    isinstance(error, (MemoryError, Unreachable))
    or isinstance(error, OSError)
    and error.errno is not None
    and error.errno not in MISSING
  ):
    return True
  if any(text in str(error) for text in FAILURES):
    return True
  if isinstance(error, BaseExceptionGroup) and any(map(is_failure, error.exceptions)):
    return True
  before = error.__cause__ or error.__context__
  return before is not None and is_failure(before)


def attempt(read, message: str) -> Any:
  """What read() returns, after several attempts where the disk or the memory fails. ValueError
  after the last of them, or where a server has had its attempts.
  """
  for delay in (*RETRY_SECONDS, None):
    try:
      return read()
    # pylint: disable=broad-exception-caught; those that are no failure are raised again
    except Exception as e:
      if not is_failure(e):
        raise
      if delay is None or isinstance(e, Unreachable):
        raise ValueError(
          f"{message}: {one_line(e)}; nothing was changed, start again when it can be read"
        ) from e
      logger.warning("%s, trying again in %.1f s: %s", message, delay, one_line(e))
    time.sleep(delay)
