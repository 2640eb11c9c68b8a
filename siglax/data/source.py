"""What a source of data declares of itself. siglax/data/sources/__init__.py lists the sources."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Mapping
import dataclasses
from typing import Any

from siglax.config import options
from siglax.config import versions
from siglax.config.parts import Field
from siglax.data import filters
from siglax.data import noise

MAX_BAD_FRACTION = 0.01
# Of every spec, whatever its source.
COMMON_FIELDS = {
  "source": Field("shapes", "the name of the source"),
  "weight": Field(
    None,
    "share of the mix; None takes the number of examples",
    kind=float,
    optional=True,
    above=0,
  ),
  "order": Field(
    "global",
    "global: an epoch is a permutation of all examples. shards: it goes through a few shards "
    "(files, tars, row groups) at a time, in a shuffled order, and permutes the examples of these",
    choices=("global", "shards"),
  ),
  "shuffle_shards": Field(
    64,
    "shards that are read at a time with order=shards; more of them mix better, and more of the "
    "data is read at random",
    least=1,
    most=2**20,
  ),
  "max_bad_fraction": Field(
    None,
    f"share of broken examples above which the run stops; None takes {MAX_BAD_FRACTION}",
    kind=float,
    optional=True,
    least=0,
    most=1,
  ),
  **filters.FIELDS,
  **noise.FIELDS,
}

# Of sources whose files can be damaged in part.
SKIP_DAMAGED = Field(
  False,
  "uses what can be read where a file is damaged, cut short or missing, and logs what is lost",
)


def nothing_more(**values):
  """The check of a source whose fields do not depend on each other."""
  del values


@dataclasses.dataclass(frozen=True)
class Source:
  """A source of data: how it is opened, and what a data spec and the docs need to know of it.

  name: in the `source` of a data spec. doc: one sentence.
  open: (**fields) → examples, with len() and [i]; a class or a function. Example i is {"image":
  encoded bytes or uint8 array, "captions": [str, …]}, and optionally "label": int, "weight": float,
  its weight in the loss, "key": str, its name, and "caption_weights": [float, …], of each caption
  how often training takes it, in proportion. The examples may have `classnames`, a tuple that
  the labels are indices into, and `templates`, texts with {} for the name of a class.
  Where they lie in shards (files, row groups), `shard_sizes`: int64 [S] says how many are in each,
  in the order of [i]; `open_shards`: how many shards are read from at a time without reading one
  twice, None for any number; `read_ahead`(shard) is called before a shard is read; and
  `prepare_random_access` is called before examples are read in an order that keeps to no shard.
  Where captions and labels are known without reading pictures, `texts`() gives {"captions",
  "label"} of each example in the order of [i], None for a broken one: filters are then applied when
  the source is opened. It may return None in place of all.
  Where captions can be read without the picture, `captions`(i) does: what needs texts alone, as a
  tokenizer that is trained, asks for them so.
  [i] is random access, safe from many threads, and the same on every call; raising from it marks
  the example as broken, and training replaces it. The examples are pickled for worker processes.
  ValueErrors of open begin with the field: "path='x': no such file".
  fields: those of its specs, beside COMMON_FIELDS; open gets the value of each.
  check: (**fields) → None, or a ValueError for values that do not fit each other; reads no data.
  endings: of the files that it reads. A path of another source is told this one by them.
  pictures: its examples have pictures. Where they have not, but "image_embedding": float32 [d], the
  examples have the `description` that siglax/data/embedding_files.py tells of.
  """

  name: str
  doc: str
  open: Callable[..., Any]
  fields: Mapping[str, Field] = dataclasses.field(default_factory=dict)
  check: Callable[..., None] = nothing_more
  endings: tuple[str, ...] = ()
  pictures: bool = True

  def __post_init__(self):
    options.refuse_taken(f"the source {self.name!r}", self.fields, COMMON_FIELDS, "data spec")

  def values(self, given: Mapping[str, Any], where: str = "") -> dict[str, Any]:
    """The value of each of its fields in a data spec. where: what stands before a field's name in a
    message. Raises ValueError in one line for what the declarations do not allow.
    """
    known = dict(self.fields) | COMMON_FIELDS
    filled = options.filled(given, known, f"source {self.name!r}", where, versions.SPEC)
    values = {name: filled[name] for name in self.fields}
    try:
      self.check(**values)
    except ValueError as e:
      raise ValueError(f"{where}{e}") from e
    return values
