"""Pictures that a frozen image tower has already embedded, by `siglax embed`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from siglax.config.parts import Field
from siglax.data import embedding_files
from siglax.data import paths
from siglax.data import remote
from siglax.data.numbering import Numbering
from siglax.data.source import Source


class Embeddings:
  """Rows of files of `siglax embed`: {"image_embedding": float32 [d], "captions": [str, …],
  "label", "weight", "key"}.

  path: a .npz, .parquet or .array_record file, a glob, a tuple of them, or the same with commas;
  files of a bucket are copied first.
  description: of the first file. held_bytes: what each process that reads the rows holds in memory.
  An .npz is held in memory; so are the embeddings and captions of
  .parquet up to files.MEMORY_BYTES, above which they are mapped from disk; an .array_record is read
  row by row. Raises ValueError, beginning with the argument, for a missing or damaged file, another
  file, or parts of which some were embedded by another tower or in another way.
  """

  def __init__(self, path):
    self._path = path
    names = paths.find(path, "embeddings")
    self._files = [embedding_files.open_file(remote.copied(name)) for name in names]
    self._numbering = Numbering([len(file) for file in self._files])
    self.description = self._files[0].description
    self.classnames = tuple(self.description["classnames"] or ()) or None
    embedding_files.check_same(names, self._files)
    self.held_bytes = sum(file.held_bytes for file in self._files)
    if not len(self):
      raise ValueError(f"path={path!r} has no rows")

  def __len__(self) -> int:
    return len(self._numbering)

  def __getitem__(self, i: int) -> dict:
    file, place = self._numbering.find(i)
    row = self._files[file].row(place)
    embedding, width = np.asarray(row["image_embedding"], np.float32), self.description["width"]
    if embedding.shape != (width,):
      raise ValueError(
        f"the image embedding has the shape {list(embedding.shape)}; it must be [{width}]"
      )
    return row | {"image_embedding": embedding}

  def rows(self, numbers: Sequence[int]) -> dict:
    """Several rows at once, in a fraction of the time: {"image_embedding": float32 [n, d],
    "captions": [[str, …], …], "label": int64 [n], −1 for none, "weight": float64 [n]}.

    Raises whatever the libraries do where one of them is damaged; [i] tells which.
    """
    count = len(numbers)
    found = {
      "image_embedding": np.empty((count, self.description["width"]), np.float32),
      "captions": np.empty(count, object),
      "label": np.empty(count, np.int64),
      "weight": np.empty(count, np.float64),
    }
    for file, which, places in self._numbering.parts(np.array(numbers, np.int64)):
      for name, values in self._files[file].rows(places).items():
        if np.shape(values)[1:] != found[name].shape[1:]:
          raise ValueError(f"{name} has rows of the shape {list(np.shape(values)[1:])}")
        found[name][which] = values
    return found

  def __repr__(self):
    return f"Embeddings({self._path!r})"

  def __reduce__(self):  # a worker process opens the files itself
    return Embeddings, (self._path,)


SOURCE = Source(
  "embeddings",
  "rows of files of `siglax embed`, whose pictures are embedded already",
  Embeddings,
  endings=("npz", "parquet", "array_record"),
  fields={
    "path": Field(
      None,
      "a .npz, .parquet or .array_record file, a glob, a tuple of them, or the same with commas",
      kind=str | tuple,
      check=paths.path_problem,
    ),
  },
  pictures=False,
)
