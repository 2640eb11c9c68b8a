"""Files in buckets and on servers: requests by fsspec, which are repeated where they fail.

A URL is gs://, s3://, hf:// or whatever else fsspec opens. Its credentials are those of its
library's environment variables (docs/data.md).
"""

from __future__ import annotations

import collections
from collections.abc import Callable
import dataclasses
import logging
import random
import re
import threading
import time
from typing import Any

import fsspec
import fsspec.asyn

from siglax.config import values
from siglax.devices.errors import Unreachable

# A request is made so many times, with pauses that double, and each may take so many seconds.
TRIES = 6
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 20.0
TIMEOUT = 60.0
# Requests to a server at a time.
CONNECTIONS = 64
# What was found of a file is believed for so long when it is opened again.
BELIEVED_SECONDS = 600.0
REMEMBERED = 2**18
# What a library that opens URLs is installed by.
PACKAGES = {"s3": "siglax[s3]", "s3a": "siglax[s3]", "gs": "siglax[gcs]", "gcs": "siglax[gcs]"}
PACKAGES |= {"hf": "huggingface_hub", "http": "aiohttp", "https": "aiohttp", "az": "adlfs"}
_URL = re.compile(r"([A-Za-z][\w+.-]*)://")
# What tells one content of a file from another, in the words of each library, the best first.
_VERSIONS = (
  *("ETag", "etag", "md5Hash", "generation", "blob_id", "mtime", "LastModified"),
  *("Last-Modified", "last_modified", "updated", "created"),
)
logger = logging.getLogger("siglax")


class Missing(ValueError):
  """There is no such file."""


class Exists(ValueError):
  """There is such a file already."""


@dataclasses.dataclass(frozen=True)
class Found:
  """What stands at a URL. size: in bytes. version: changes when the content does."""

  size: int
  version: str
  folder: bool = False


_lock = threading.Lock()
_remembered: collections.OrderedDict[str, tuple[float, Found]] = collections.OrderedDict()
_failures = 0


def is_url(path) -> bool:
  return isinstance(path, str) and _URL.match(path) is not None


def failures() -> int:
  """Requests of this process that failed and were made again."""
  return _failures


def find(path: str) -> Found | None:
  """What stands at a URL, as it was in the last BELIEVED_SECONDS."""
  with _lock:
    at, found = _remembered.get(path, (0.0, None))
  if found is None or time.monotonic() - at > BELIEVED_SECONDS:
    found = look(path)
  return found


def known(path: str) -> Found:
  """What stood at a URL when it was looked at last, however long ago; ValueError for no file."""
  _, found = _remembered.get(path, (0.0, None))
  found = found or look(path)
  if found is None:
    raise Missing(f"{path!r}: No such file")
  if found.folder:
    raise ValueError(f"{path!r} is no file")
  return found


def fetch(path: str, offset: int, length: int) -> bytes:
  """`length` bytes from `offset` on, in one request."""

  def ask(filesystem, name):
    data = call(filesystem, "cat_file", name, start=offset, end=offset + length)
    if len(data) != length:
      raise ConnectionError(f"the server sent {len(data)} bytes of {length} from byte {offset} on")
    return data

  return request(path, ask) if length else b""


def read(path: str, within: float | None = None) -> bytes:
  """All of a small file, as it is now. within: as of `request`."""
  return request(path, lambda f, name: call(f, "cat_file", name), within=within)


def request(
  path: str,
  ask: Callable[[Any, str], Any],
  timeout: float = TIMEOUT,
  listing: bool = False,
  within: float | None = None,
):
  """ask(filesystem, name in it), and again while the server fails.

  listing: it asks for a folder, or writes a large file, which may be many requests, each made again
  by the library itself. within: seconds after which it is not made again.

  Raises Missing for what is not there, Unreachable where the server refuses or fails each time.
  """
  filesystem, name = _filesystem(path, listing)
  began, last = time.monotonic(), None
  tries = 0
  while tries < TRIES:
    if tries:
      # Half of a pause is random, so that many processes do not ask again at the same time.
      pause = min(FIRST_PAUSE * 2 ** (tries - 1), LONGEST_PAUSE) * random.uniform(0.5, 1)
      if within is not None and time.monotonic() + pause > began + within:
        break
      time.sleep(pause)
    tries += 1
    try:
      _limits.seconds = timeout
      return ask(filesystem, name)
    except FileExistsError:
      raise Exists(f"{path!r} exists") from None
    except Exception as e:  # each library has its own
      last = _meant(path, e)
      if isinstance(last, FileNotFoundError):
        raise Missing(f"{path!r}: No such file") from None
      if _is_final(last):
        raise Unreachable(f"{path!r}: the server refuses: {values.one_line(last)}") from None
    _count(path, last)
  raise Unreachable(
    f"{path!r}: tried {tries} times in {time.monotonic() - began:.0f} s, and the last time: "
    f"{type(last).__name__}: {values.one_line(last)}"
  )


_limits = threading.local()


def call(filesystem, method: str, *arguments, **options):
  """A method of a filesystem, within the seconds of the request."""
  if not filesystem.async_impl:
    return getattr(filesystem, method)(*arguments, **options)
  function = getattr(filesystem, f"_{method}")
  seconds = _limits.seconds
  return fsspec.asyn.sync(filesystem.loop, function, *arguments, timeout=seconds, **options)


def _filesystem(path: str, listing: bool):
  """(fsspec's filesystem, name in it) of a URL."""
  protocol = path.partition(":")[0]
  options: dict[str, Any] = {"use_listings_cache": False}
  if protocol in ("s3", "s3a"):
    # A failure is counted here, and the request made again, not by botocore.
    retries = {"total_max_attempts": TRIES if listing else 1}
    options["config_kwargs"] = {"max_pool_connections": CONNECTIONS, "retries": retries}
  try:
    filesystem, name = fsspec.core.url_to_fs(path, **options)
  except ImportError as e:
    package = PACKAGES.get(protocol)
    how = f"pip install '{package}'" if package else values.one_line(e)
    raise ValueError(f"{path!r} needs a library that is not installed: {how}") from None
  except Exception as e:  # an unknown protocol, a broken URL, a library that finds no server
    raise ValueError(f"{path!r} cannot be opened: {values.one_line(e)}") from None
  if protocol in ("s3", "s3a"):
    filesystem.retries = TRIES if listing else 1
  return filesystem, name


def _meant(path: str, error: Exception) -> Exception:
  """The error itself, or the one behind it: for http URLs fsspec raises FileNotFoundError whatever
  the failure was.
  """
  cause = error.__cause__
  if not (path.startswith("http") and isinstance(error, FileNotFoundError)):
    return error
  return cause if isinstance(cause, Exception) and _status(cause) != 404 else error


def _is_final(error: Exception) -> bool:
  """Whether asking again would give the same."""
  if isinstance(error, (PermissionError, IsADirectoryError, NotADirectoryError, TypeError)):
    return True
  if "Credential" in type(error).__name__:
    return True
  status = _status(error) or _status(error.__cause__)
  return 400 <= status < 500 and status not in (408, 425, 429)


def _status(error) -> int:
  """Of an HTTP answer, 0 where the error has none."""
  if type(error).__module__ == "aiohttp.http_exceptions":
    return 0  # its own 400 of an answer that was cut
  response = getattr(error, "response", None)
  if isinstance(response, dict):
    found = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
  else:
    found = getattr(error, "status", None) or getattr(error, "code", None)
    found = found or getattr(response, "status_code", None)
  return int(found) if str(found).isdigit() else 0


def _count(path: str, error: Exception):
  global _failures
  with _lock:
    _failures += 1
    count = _failures
  # The 1st, 10th, 100th and so on.
  if re.fullmatch("10*", str(count)):
    said = f"{type(error).__name__}: {values.one_line(error)}"
    logger.warning("%d requests failed and were made again, the last for %s: %s", count, path, said)


def look(path: str) -> Found | None:
  """What stands at a URL now."""
  try:
    facts = request(path, lambda f, name: call(f, "info", name))
  except Missing:
    forget(path)
    return None
  return remember(path, facts)


def forget(path: str):
  """Believes nothing more of a URL that was written."""
  with _lock:
    _remembered.pop(path, None)


def remember(path: str, facts: dict) -> Found:
  """Keeps what a server says of a URL for `find` and `known`."""
  version = next((facts[key] for key in _VERSIONS if facts.get(key)), "")
  folder = facts.get("type") == "directory"
  if facts.get("size") is None and not folder:
    raise ValueError(f"{path!r}: the server does not say how large it is")
  found = Found(0 if folder else int(facts["size"]), str(version), folder)
  with _lock:
    _remembered[path] = time.monotonic(), found
    _remembered.move_to_end(path)
    while len(_remembered) > REMEMBERED:
      _remembered.popitem(last=False)
  return found
