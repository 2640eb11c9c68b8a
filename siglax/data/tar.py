"""Members of uncompressed tars: ustar, GNU's long names and sizes, and PAX, as Python's tarfile
reads them, but from any offset and at a tenth of the time.

POSIX.1-2017, pax; the GNU tar manual, "Basic Tar Format".
"""

from __future__ import annotations

import array
from collections.abc import Callable
from collections.abc import Iterator
import re
from typing import NamedTuple

import numpy as np

from siglax.config import values
from siglax.data import storage
from siglax.data.index import Index

BLOCK = 512
# Bytes read at a time while headers are looked for.
CHUNK = 2**18
# Bytes of a long name, or of PAX records.
MAX_EXTENSION = 2**20
# Zeros at the end of a tar; more are of a file whose end was never written.
MAX_ZEROS = 2**24
FILES, LINKS, SPARSE = b"0\0007", b"12", b"S"
# Of these a header is all there is, whatever size it states.
WITHOUT_DATA = b"123456"


class Damaged(ValueError):
  """A tar that cannot be read from `offset` on; `why` follows the file's name in a message."""

  def __init__(self, offset: int, why: str):
    super().__init__(why)
    self.offset, self.why = offset, f"is cut short or damaged at byte {offset}: {why}"


class Member(NamedTuple):
  """start: of its first header. kind: "file", "link", "sparse", or "" for what holds no data.
  offset, size: of its data, from the same origin as start. target: of a link.
  """

  start: int
  name: bytes
  kind: str
  offset: int
  size: int
  target: bytes


def members(read: Callable[[int, int], bytes], start: int, end: int) -> Iterator[Member]:
  """The members between two offsets, of which the first is that of a header.

  read: (offset, length) → so many bytes. Raises Damaged where no header stands.
  """
  offset, extended = start, {}
  while offset < end:
    if end - offset < BLOCK:
      raise Damaged(offset, f"{end - offset} bytes are left, a header has {BLOCK}")
    header = read(offset, BLOCK)
    if not header[0] and header.count(0) == BLOCK:
      offset = _after_zeros(read, offset, end)
      continue
    kind, size = _checked(header, offset)
    first = extended.pop("start", offset)
    data = offset + BLOCK
    if kind in b"xgLK":
      if size > min(MAX_EXTENSION, end - data):
        raise Damaged(offset, f"a name or PAX records of {size} bytes")
      if kind != b"g":
        extended["start"] = first
        extended |= _extension(kind, read(data, size), offset)
      offset = data + _padded(size)
      continue
    if kind == SPARSE:
      data = _after_sparse_map(read, header, data, end)
    size = 0 if kind in WITHOUT_DATA else extended.get("size", size)
    name = extended.get("name") or _name(header)
    if size > end - data:
      raise Damaged(first, f"{_text(name)!r} has {size} bytes, {max(end - data, 0)} are left")
    sparse = kind == SPARSE or "sparse" in extended
    what = "sparse" if sparse else "file" if kind in FILES else "link" if kind in LINKS else ""
    if name.endswith(b"/"):
      what = ""
    yield Member(first, name, what, data, size, header[157:257].partition(b"\0")[0])
    offset, extended = data + _padded(size), {}


def index(path: str, size: int) -> Index:
  """Where the examples of a tar begin, in blocks: members in a row that have the same `split` name
  are one. Bytes of the file: `size`.
  """
  starts, key, end, last, damage = array.array("Q"), None, 0, 0, None
  try:
    for member in members(_Window(path, size), 0, size):
      name, _ = split(member.name)
      if name and name != key:
        starts.append(member.start // BLOCK)
        key = name
      last = member.offset + _padded(member.size)
      end = last if name else end
    if size < last + BLOCK:
      raise Damaged(min(last, size), "it ends without the zeros of a tar's end")
    starts.append(end // BLOCK)
  except Damaged as e:
    damage = e.offset, e.why
    # The members of the last example may go on behind the damage.
    starts = starts or array.array("Q", [0])
  if starts[-1] >= 2**32:
    raise ValueError(f"path={path!r} has {size:,} bytes; a tar may have {2**32 * BLOCK:,}")
  return Index(np.array(starts, np.uint32), size, damage)


def split(name: bytes) -> tuple[bytes, bytes]:
  """(what the members of an example share, ending) of a member's name: a/b.seg.png is a/b and
  seg.png. ("", "") for a name without one, a hidden file and WebDataset's own __notes__.
  """
  base = name.rfind(b"/") + 1
  dot = name.find(b".", base)
  if dot <= base or name.startswith(b"__") and re.match(rb"__[^/]*__($|/)", name):
    return b"", b""
  return name[:dot], name[dot + 1 :].lower()


class _Window:
  """read(offset, length) of a file, by large pieces."""

  def __init__(self, path: str, size: int):
    self._path, self._size = path, size
    self._first, self._piece = 0, b""

  def __call__(self, offset: int, length: int) -> bytes:
    at = offset - self._first
    if at < 0 or at + length > len(self._piece):
      wanted = max(length, min(CHUNK, self._size - offset))
      self._first, at, self._piece = offset, 0, storage.read(self._path, offset, wanted)
    return self._piece[at : at + length]


def _padded(size: int) -> int:
  return size + -size % BLOCK


def _checked(header: bytes, offset: int) -> tuple[bytes, int]:
  """(type, size) of a header whose checksum is right."""
  stated = _number(header[148:156], offset)
  if stated != sum(header) - sum(header[148:156]) + 256:
    signed = np.frombuffer(header, np.int8)
    if stated != int(signed.sum(dtype=int)) - int(signed[148:156].sum(dtype=int)) + 256:
      raise Damaged(offset, "no header of a tar stands there")
  size = _number(header[124:136], offset)
  if size < 0:
    raise Damaged(offset, f"a member of {size} bytes")
  return header[156:157], size


def _number(field: bytes, offset: int) -> int:
  """Octal digits, or GNU's binary form."""
  if field[0] & 0x80:
    return int.from_bytes(bytes([field[0] & 0x7F]) + field[1:], "big") if field[0] == 0x80 else -1
  try:
    return int(field.replace(b"\0", b" ").strip() or b"0", 8)
  except ValueError:
    raise Damaged(offset, "no header of a tar stands there") from None


def _name(header: bytes) -> bytes:
  name = header[:100].partition(b"\0")[0]
  if header[257:263] == b"ustar\0" and header[345]:
    return header[345:500].partition(b"\0")[0] + b"/" + name
  return name


def _text(name: bytes) -> str:
  return name[-200:].decode("utf-8", "replace")


def _extension(kind: bytes, data: bytes, offset: int) -> dict:
  """What a header before another one says of that: its name, its size, whether it is sparse."""
  if kind == b"L":
    return {"name": data.partition(b"\0")[0]}
  found = {}
  while kind == b"x" and data.strip(b"\0"):
    length = re.match(rb"(\d{1,7}) ([^=]+)=", data)
    record = data[: int(length[1])] if length else b""
    if not record.endswith(b"\n") or len(record) <= length.end():
      raise Damaged(offset, f"PAX records begin with {data[:20]!r}")
    value = record[length.end() : -1]
    if length[2] == b"path":
      found["name"] = value
    elif length[2] == b"size":
      if not re.fullmatch(rb"\d{1,18}", value):
        raise Damaged(offset, f"a PAX size of {values.shown(value)}")
      found["size"] = int(value)
    elif length[2].startswith(b"GNU.sparse."):
      found["sparse"] = True
    data = data[len(record) :]
  return found


def _after_sparse_map(read, header: bytes, data: int, end: int) -> int:
  """Where the data of a sparse member begin, behind the blocks of its map."""
  more = header[482]
  while more:
    if data + BLOCK > end:
      raise Damaged(data, "the map of a sparse member ends past the end")
    more = read(data, BLOCK)[504]
    data += BLOCK
  return data


def _after_zeros(read, offset: int, end: int) -> int:
  """The next block that is not all zeros, or the end. Tars that were put together by cat go on
  behind the zeros of the first.
  """
  start = offset
  while offset < end:
    piece = read(offset, min(CHUNK, end - offset))
    zeros = len(piece) - len(piece.lstrip(b"\0"))
    if zeros < len(piece):
      return offset + zeros // BLOCK * BLOCK
    offset += len(piece)
  if end - start > MAX_ZEROS:
    raise Damaged(start, f"the last {end - start:,} bytes are zeros, as of a download that stopped")
  return end
