"""What folders of buckets hold.

Each folder is asked for by itself, and again where the server fails: fsspec's own glob and find
leave out the folders that they could not list.
"""

from __future__ import annotations

import collections
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Sequence
import concurrent.futures
import fnmatch
import os
import re
from typing import Any

from siglax.data import buckets

# More files of one folder than this are looked up by listing it.
LISTED_FROM = 64
LIST_TIMEOUT = 900.0


def look_up(paths: list[str]):
  """Looks at many URLs at a time, so that `buckets.find` of each answers at once."""
  folders = collections.defaultdict(list)
  for path in paths:
    folders[os.path.dirname(path)].append(path)
  single = [path for found in folders.values() if len(found) < LISTED_FROM for path in found]
  in_threads(_tried, [folder for folder, found in folders.items() if len(found) >= LISTED_FROM])
  in_threads(buckets.find, single)


def glob(pattern: str) -> list[str]:
  """URLs that match a pattern, sorted; `**` means any folders. As in Python's glob, a name that
  begins with a dot matches no wildcard.
  """
  protocol, _, rest = pattern.partition("://")
  found, parts = {f"{protocol}:/": True}, rest.split("/")
  for k, part in enumerate(parts):
    folders = [path for path, is_folder in found.items() if is_folder]
    if part == "**":
      found = dict.fromkeys(folders, True) | _below(folders)
    elif re.search(r"[*?\[]", part):
      matches = re.compile(fnmatch.translate(part)).match
      found = {
        path: is_folder
        for path, is_folder in _within(folders)
        if matches(_name(path)) and (part.startswith(".") or not _name(path).startswith("."))
      }
    else:
      found = {f"{folder}/{part}": True for folder in folders}
      if k == len(parts) - 1:
        look_up(list(found))
        found = {path: True for path in found if buckets.find(path) is not None}
  return sorted(found)


def files_in(folder: str, hidden: bool = False) -> list[str]:
  """URLs of all files in a folder and below it. hidden: also those whose names begin with a dot."""
  return [path for path, is_folder in _below([folder], hidden).items() if not is_folder]


def names_in(folder: str) -> dict[str, bool]:
  """{name: whether it is a folder} of what is in a folder."""
  return {_name(path): is_folder for path, is_folder in _entries(folder)}


def _below(folders: Iterable[str], hidden: bool = False) -> dict[str, bool]:
  """{URL: whether it is a folder} of all that is in folders and below them."""
  found, waiting = {}, list(folders)
  while waiting:
    level = {
      path: kind for path, kind in _within(waiting) if hidden or not _name(path).startswith(".")
    }
    waiting = [path for path, is_folder in level.items() if is_folder and path not in found]
    found |= level
  return found


def _within(folders: list[str]) -> list[tuple[str, bool]]:
  return [entry for entries in in_threads(_entries, folders) for entry in entries]


def _entries(folder: str) -> list[tuple[str, bool]]:
  """(URL, whether it is a folder) of what is in a folder; none of one that is not there."""
  ask = lambda filesystem, name: buckets.call(filesystem, "ls", name, detail=True)
  try:
    listed = buckets.request(folder, ask, LIST_TIMEOUT, listing=True)
  except buckets.Missing:
    return []
  found = []
  for facts in listed:
    path = f"{folder}/{_name(facts['name'].rstrip('/'))}"
    # A bucket may hold an object that stands for the folder itself.
    if _name(path) and facts["name"].strip("/") != folder.partition("://")[2].strip("/"):
      found.append((path, buckets.remember(path, facts).folder))
  return found


def _tried(folder: str):
  try:
    _entries(folder)
  except buckets.Unreachable:
    # Files may be readable where listing is not allowed: each is asked for.
    pass


def in_threads(
  function: Callable[[Any], Any], values: Sequence, threads: int = buckets.CONNECTIONS
) -> list:
  """function(value) of each, so many at a time. After an error no other one begins."""
  pool = concurrent.futures.ThreadPoolExecutor(threads)
  try:
    calls = [pool.submit(function, value) for value in values]
    # Not the result of the first before those of the others: an error of any ends them.
    ended, _ = concurrent.futures.wait(calls, return_when=concurrent.futures.FIRST_EXCEPTION)
    for call in ended:
      call.result()
    return [call.result() for call in calls]
  finally:
    pool.shutdown(cancel_futures=True)


def _name(path: str) -> str:
  return path.rpartition("/")[2]
