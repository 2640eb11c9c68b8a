"""Which files the path of a data spec means, and what is said of one that suits another source."""

from __future__ import annotations

import collections
from collections.abc import Callable
import os
import re
import shlex

from siglax.config import lookups
from siglax.config import values
from siglax.data import storage

# Of a folder that Hugging Face's save_to_disk wrote.
SAVED = ("state.json", "dataset_dict.json")
# Files that one pair of braces may stand for.
MAX_EXPANDED = 1_000_000
MAX_BRACES = 100
_GLOB = re.compile(r"[*?\[]")
# Files of a folder that are looked at to say what it holds.
LOOKED_AT = 100_000
PICTURE_ENDINGS = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "avif", "jp2", "ppm")


# How a compressed file begins, and what unpacks it.
COMPRESSED = {
  b"\x1f\x8b": "gzip -dc",
  b"BZh": "bzip2 -dc",
  b"\xfd7zXZ": "xz -dc",
  b"\x28\xb5\x2f\xfd": "zstd -dc",
}


def find(
  path,
  source: str,
  missing: bool = False,
  in_folder: Callable[[str], list[str]] | None = None,
) -> list[str]:
  """The files of a path, in its order.

  path: a file, a glob, braces as a shell expands them (`{00000..00041}`, `{a,b}`), several of these
  with commas between, or a list or tuple of them. The name of a file that exists means that file,
  whatever characters it has. The files of a glob are sorted.
  source: the source that asks. Raises ValueError for a path of another one, which it names.
  in_folder: gives the files that a folder stands for; without it a folder is refused.
  missing: names without a glob are returned where there is no file, instead of a ValueError.
  """
  if problem := path_problem(path):
    raise ValueError(f"path={path!r} {problem}")
  patterns = _split(path) if isinstance(path, str) else [os.fsdecode(p).strip() for p in path]
  files = []
  for pattern in patterns:
    if "\0" in pattern:
      raise ValueError(f"path={pattern!r} has a NUL byte, which no file's name has")
    names = [pattern] if _is_there(pattern) else _expand(pattern)
    storage.look_up([name for name in names if not _GLOB.search(name)])
    for name in names:
      found = [name] if _is_there(name) else storage.glob(name) if _GLOB.search(name) else []
      if not found and not (missing and not _GLOB.search(name)):
        said = "no such file" if name == pattern else f"no such file {name!r}"
        if not (storage.is_url(name) or os.path.isabs(name)):
          said += f" from {os.getcwd()!r} on"
        raise ValueError(f"path={pattern!r}: {said}")
      files += found or [name]
  found = []
  for file in files:
    if in_folder is not None and storage.is_folder(file):
      found += in_folder(file)
    else:
      _refuse_what_suits_another(file, source)
      found.append(file)
  return found


def _is_there(name: str) -> bool:
  """Whether it is a file's or a folder's name, whatever characters it has. A URL with those of a
  pattern is one: servers that list no files refuse to say what is not there.
  """
  if storage.is_url(name) and re.search(r"[*?\[{,]", name):
    return False
  return storage.exists(name)


def path_problem(path) -> str | None:
  """What is wrong with the type of a path, in words after "path=value "; None for a good one."""
  patterns = (path,) if isinstance(path, str) else path
  if (
    isinstance(patterns, (tuple, list))
    and patterns
    and all(isinstance(pattern, (str, os.PathLike)) for pattern in patterns)
  ):
    return None
  return "must be a file, a glob, or a tuple of them"


def refuse_compressed(file: str):
  """ValueError for a compressed file, whose examples cannot be read one by one."""
  head = storage.read(file, 0, min(6, storage.size(file)), alone=True)
  for begin, unpack in COMPRESSED.items():
    if head.startswith(begin):
      unpacked = re.sub(r"\.(gz|bz2|xz|zst)$", "", re.sub(r"\.tgz$", ".tar.gz", file))
      unpacked = f"{file}.unpacked" if unpacked == file else unpacked
      raise ValueError(
        f"path={file!r} is compressed, so it would be read from its start each time; unpack it: "
        f"{unpack} {shlex.quote(file)} > {shlex.quote(unpacked)}"
      )


def source_of(path: str) -> str:
  """The source that a path suits, or the first of several: by its ending, of a folder by whether it
  holds tars, ArrayRecord files or a saved dataset. Parquet where nothing else tells. A server is
  asked only of a URL without an ending.
  """
  path = _split(path)[0]
  of = ending(path.rstrip("}"))
  of_ending = "jsonl" if of == "json" else _source_of_ending(of)
  if of_ending and storage.is_url(path):
    return of_ending
  if not _is_there(path):
    path = _expand(path)[0]
    if _GLOB.search(path) and not of_ending:
      path = next(iter(storage.glob(path)), path)
  if storage.is_folder(path):
    if any(storage.exists(os.path.join(path, name)) for name in SAVED):
      return "hf"
    if storage.glob_in(path, "*.array_record"):
      return "array_record"
    tars = storage.glob_in(path, "*.tar") or storage.glob_in(path, "*/*.tar")
    return "webdataset" if tars else "folder"
  return of_ending or "parquet"


def ending(path: str) -> str:
  """In lower case and without its dot; "tar.gz" of what is compressed."""
  name = os.path.basename(path).lower()
  found = re.search(r"\.((?:\w+\.)?(?:gz|bz2|xz|zst)|\w+)$", name)
  return {"tgz": "tar.gz"}.get(found[1], found[1]) if found else ""


def refuse_folder(folder: str, source: str):
  """ValueError for a folder that this source does not read, with what it holds and which does."""
  counts = _endings_in(folder)
  held = " and ".join(f"{count:,} .{e}" for e, count in counts.most_common(3)) or "no files"
  if counts.total() >= LOOKED_AT:
    held = f"at least {held}"
  told, own = f"path={folder!r} is a folder", _registry()[source].endings
  for most in [e for e, _ in counts.most_common()]:
    if most in own:
      raise ValueError(f"{told}; use {_files(folder, most)!r}")
  for most in [e for e, _ in counts.most_common()]:
    if suits := _source_of_ending(most):
      of_folders = suits in ("folder", "webdataset", "array_record", "hf")
      where = "" if of_folders else f" with path={_files(folder, most)!r}"
      raise ValueError(f"{told} that holds {held}: use source {suits}{where}")
  known = ", ".join(f".{e}" for e in own)
  raise ValueError(f"{told} that holds {held}; source {source} reads {known}")


def _files(folder: str, of: str) -> str:
  """The glob of a folder's files with an ending."""
  here = storage.glob_in(folder, f"*.{of}")
  return os.path.join(folder, f"*.{of}" if here else f"**/*.{of}")


def _refuse_what_suits_another(file: str, source: str):
  if storage.is_folder(file):
    refuse_folder(file, source)
  of, own = ending(file), _registry()[source].endings
  suits = _source_of_ending(of)
  if suits is None or of in own:
    return
  where = f" with path={os.path.dirname(file) or '.'!r}" if suits == "folder" else ""
  raise ValueError(f"path={file!r} is a {of}: use source {suits}{where}")


def _registry():
  return lookups.registry("source")


def _source_of_ending(of: str) -> str | None:
  return next((s.name for s in _registry().values() if of in s.endings), None)


def _endings_in(folder: str) -> collections.Counter:
  counts = collections.Counter()
  for _, files in storage.walk(folder):
    counts.update(filter(None, map(ending, files)))
    if counts.total() >= LOOKED_AT:
      break
  return counts


def _split(text: str) -> list[str]:
  """The parts between commas that stand outside of braces; the whole where it is a file."""
  text = text.strip()
  if "," not in text or "\0" not in text and _is_there(text):
    return [text]
  parts, depth = [""], 0
  for c in text:
    depth = max(0, depth + (c == "{") - (c == "}"))
    if c == "," and not depth:
      parts.append("")
    else:
      parts[-1] += c
  return list(map(str.strip, parts))


def _expand(pattern: str) -> list[str]:
  """What braces stand for, as in a shell: {a,b}, {3..12}, {003..012}; others are themselves."""
  if pattern.count("{") > MAX_BRACES:
    raise ValueError(f"path has more than {MAX_BRACES} braces: {values.shown(pattern)}")
  groups = ((m.start(), _group(pattern, m.start())) for m in re.finditer("{", pattern))
  start, group = next(((start, group) for start, group in groups if group), (0, None))
  if group is None:
    return [pattern]
  end, choices = group
  heads = [pattern[:start] + choice for choice in choices]
  tails = _expand(pattern[end:])
  if len(heads) * len(tails) > MAX_EXPANDED:
    raise ValueError(f"path={pattern!r} stands for more than {MAX_EXPANDED:,} files")
  return [head + tail for head in heads for tail in tails]


def _group(pattern: str, start: int) -> tuple[int, list[str]] | None:
  """(the end, the choices) of the braces that open at `start`; None for what is no group."""
  depth, parts = 0, [""]
  for i, c in enumerate(pattern[start:], start):
    depth += (c == "{") - (c == "}")
    if not depth:
      break
    if c == "," and depth == 1:
      parts.append("")
    elif i > start:
      parts[-1] += c
  else:
    return None
  if len(parts) > 1:
    return i + 1, [choice for part in parts for choice in _expand(part)]
  if span := re.fullmatch(r"(\d{1,18})\.\.(\d{1,18})", parts[0]):
    first, last = map(int, span.groups())
    if abs(last - first) >= MAX_EXPANDED:
      raise ValueError(f"path={pattern!r} stands for more than {MAX_EXPANDED:,} files")
    padded = any(len(x) > 1 and x[0] == "0" for x in span.groups())
    width = max(map(len, span.groups())) if padded else 0
    step = 1 if last >= first else -1
    return i + 1, [f"{n:0{width}}" for n in range(first, last + step, step)]
  return None
