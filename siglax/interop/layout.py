"""Where a parameter of ours lies in another library's checkpoint: tables of rows, read in both
directions.

A row names our parameter, theirs, and how their array is a view of ours; import and export walk the
same rows. A table holds the rows of every option its format knows; those that the towers at hand do
not have are passed over.
"""

from __future__ import annotations

import dataclasses
import functools
import logging

import jax
import numpy as np

from siglax import models
from siglax.devices import mesh as mesh_lib
from siglax.devices import paths
from siglax.interop import positions
from siglax.models import transformer

LOGITS = {"log_scale", "bias"}
logger = logging.getLogger("siglax")


@dataclasses.dataclass(frozen=True)
class View:
  """Theirs is ours with its axes permuted, one axis cut into (heads, width / heads), and `lead`
  axes of 1 in front.
  """

  axes: tuple[int, ...] | None = None
  heads: int | None = None  # the axis that is cut
  lead: int = 0

  def _permuted(self, shape):
    return tuple(shape[i] for i in self.axes) if self.axes else tuple(shape)

  def shape(self, ours: tuple[int, ...], heads: int) -> tuple[int, ...]:
    """Their shape of our shape."""
    shape = self._permuted(ours)
    if self.heads is not None:
      shape = (*shape[: self.heads], heads, shape[self.heads] // heads, *shape[self.heads + 1 :])
    return (1,) * self.lead + shape

  def theirs(self, x: np.ndarray, heads: int) -> np.ndarray:
    return (x.transpose(self.axes) if self.axes else x).reshape(self.shape(x.shape, heads))

  def ours(self, x: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    x = x.reshape(self._permuted(shape))
    return x.transpose(np.argsort(self.axes)) if self.axes else x


SAME = View()
TRANSPOSED = View(axes=(1, 0))
CONV = View(axes=(3, 2, 0, 1))  # HWIO as OIHW
LEAD = View(lead=1)


@dataclasses.dataclass(frozen=True)
class Row:
  """One parameter. In a name {i} is the layer; of a fused array of theirs ours is `part` of `parts`
  along axis 0.
  """

  ours: str
  theirs: str
  view: View = SAME
  part: int = 0
  parts: int = 1

  @property
  def tower(self) -> str:
    """image, text, log_scale or bias."""
    return self.ours.partition("/")[0]

  @property
  def is_layer(self) -> bool:
    return "{i}" in self.ours

  @property
  def is_position(self) -> bool:
    """Whether the array is resized to the image size, or the text length, of the towers."""
    return self.ours in ("image/pos_embedding", "text/pos_embedding")


def linear(
  ours: str, theirs: str, names=("weight", "bias"), views=(TRANSPOSED, SAME), **parts
) -> tuple[Row, Row]:
  """The rows of a linear map; theirs ends before the name of the array."""
  return (
    Row(f"{ours}/kernel", theirs + names[0], views[0], **parts),
    Row(f"{ours}/bias", theirs + names[1], views[1], **parts),
  )


def norm(ours: str, theirs: str, scale="weight") -> tuple[Row, Row]:
  """The rows of a layer norm."""
  return Row(f"{ours}/scale", theirs + scale), Row(f"{ours}/bias", theirs + "bias")


@dataclasses.dataclass(frozen=True)
class Table:
  """The rows of a format, and by tower what the names of its arrays start with."""

  rows: tuple[Row, ...]
  prefixes: dict[str, tuple[str, ...]]

  @property
  def logits(self) -> tuple[Row, ...]:
    """The rows of scale and bias."""
    return tuple(row for row in self.rows if row.tower not in models.TOWERS)


class Layout:
  """The rows of a format that some towers have. stacked: towers whose layers are one array there,
  an axis in front.
  """

  def __init__(
    self, table: Table, model, towers: tuple[str, ...], stacked: frozenset[str] = frozenset()
  ):
    shapes = model.shapes
    both = LOGITS if set(towers) == set(models.TOWERS) else ()
    self.tree = {k: v for k, v in shapes.items() if k in (*towers, *both)}
    self.leaves = paths.flatten(self.tree)
    self._model = model
    self._stacked = stacked
    # Of transformers; no format has another tower's layers or heads in axes of its arrays.
    shapes = {name: model.declared[name].shape(model.config[name]) for name in towers}
    self._sizes = {k: shape for k, shape in shapes.items() if isinstance(shape, transformer.Shape)}
    self.rows = [row for row in table.rows if self.path(row, 0) in self.leaves]
    self.unmapped = set(self.leaves) - {
      self.path(row, i) for row in self.rows for i in self.layers(row)
    }

  def is_stacked(self, row: Row) -> bool:
    """Whether the layers of ours are one leaf, as in an encoder with scan."""
    return row.is_layer and _stack(row.ours) in self.leaves

  def layers(self, row: Row):
    return range(self._sizes[row.tower].depth) if row.is_layer else (None,)

  def path(self, row: Row, i: int | None) -> str:
    """Our leaf of layer i of a row."""
    return _stack(row.ours) if self.is_stacked(row) else row.ours.format(i=i)

  def name(self, row: Row, i: int | None) -> str:
    """Their array of layer i of a row."""
    return _stack(row.theirs) if self._in_one_array(row) else row.theirs.format(i=i)

  def _in_one_array(self, row: Row) -> bool:
    return row.is_layer and row.tower in self._stacked

  def shape(self, row: Row) -> tuple[int, ...]:
    """Our shape of one layer."""
    shape = self.leaves[self.path(row, 0)].shape
    return shape[1:] if self.is_stacked(row) else shape

  def their_shape(self, row: Row) -> tuple[int, ...]:
    """The shape of their whole array: all its parts, and all layers where they are stacked."""
    shape = row.view.shape(self.shape(row), self.heads(row))
    if row.parts > 1:
      shape = (shape[0] * row.parts, *shape[1:])
    return (len(self.layers(row)), *shape) if self._in_one_array(row) else shape

  def heads(self, row: Row) -> int:
    return self._sizes[row.tower].heads if row.tower in self._sizes else 1

  def read_layers(self, source, row: Row):
    """Yields our array of each layer of a row, float32."""
    shape = self.shape(row)
    part = slice(None)
    if row.parts > 1:
      size = self.their_shape(row)[0] // row.parts
      part = slice(row.part * size, (row.part + 1) * size)
    for i in self.layers(row):
      name = self.name(row, i)
      if self._in_one_array(row):
        if i == 0:
          whole = source.read(name)
        x = whole[i]
      else:
        x = source.read(name, part)
      if row.is_position:
        x = resize_positions(
          x.reshape(-1, shape[-1]), shape[0], self._model, row.tower, f"{source.name}: {name}"
        )
      yield row.view.ours(x, shape)


def resize_positions(x: np.ndarray, count: int, model, tower: str, name: str) -> np.ndarray:
  """The position embedding [rows, d] of a tower, for `count` places of the same tower of `model`.

  name: of the array, in errors.
  """
  if tower == "text":
    return positions.resize_texts(x, count, model.config.text.pool == "last")
  return positions.resize(x, count, model.extra_positions, name)


def read(source, table: Table, model, mesh, towers: tuple[str, ...], fresh: bool = False) -> dict:
  """The parameters of some towers of `model`, read leaf by leaf straight into their shards.

  Global view: every process reads the arrays and keeps its shards; the host holds one leaf of ours
  at a time.
  source: a files.Arrays. fresh: for a model of another config: resize positions to it, leave out a
  scale or bias that the source or the model does not have, and say so.
  Raises ValueError that names the file and each array that is missing, left over or of a wrong
  shape.
  """
  stacked = frozenset(
    row.tower for row in table.rows if row.is_layer and _stack(row.theirs) in source.shapes
  )
  layout = Layout(table, model, towers, stacked)
  rows = _check_names(source, table, layout, towers, fresh)
  for row in rows:
    _check_shapes(source, layout, row, fresh)
  shardings = paths.flatten(mesh_lib.state_shardings(mesh, layout.tree))
  leaves = {}
  for row in rows:
    layers = layout.read_layers(source, row)
    if layout.is_stacked(row):
      path = layout.path(row, 0)
      leaf = np.empty(layout.leaves[path].shape, np.float32)
      for i, x in enumerate(layers):
        leaf[i] = x
      leaves[path] = _place(leaf, shardings[path])
    else:
      for i, x in zip(layout.layers(row), layers):
        path = layout.path(row, i)
        leaves[path] = _place(np.asarray(x, order="C"), shardings[path])
  return paths.unflatten(leaves)


def arrays(table: Table, model, params: dict, towers: tuple[str, ...]):
  """Yields (name, function that makes it) of each of their arrays: what `read` reads, so one is on
  the host at a time.

  Raises ValueError when the format has no place for a parameter.
  """
  layout, leaves = Layout(table, model, towers), paths.flatten(params)
  if layout.unmapped:
    raise ValueError(f"this format has no place for {some(layout.unmapped)}")
  fused = {}
  for row in layout.rows:
    for i in layout.layers(row):
      fused.setdefault(layout.name(row, i), []).append((row, i))

  def one(row, i):
    leaf = leaves[layout.path(row, i)]
    return row.view.theirs(
      np.asarray(jax.device_get(leaf[i] if layout.is_stacked(row) else leaf)), layout.heads(row)
    )

  def make(parts):
    made = [one(*part) for part in sorted(parts, key=lambda part: part[0].part)]
    return np.asarray(made[0] if len(made) == 1 else np.concatenate(made), order="C")

  for name, parts in fused.items():
    yield name, functools.partial(make, parts)


def some(names, limit: int = 8) -> str:
  """The names in one line, the first few of many."""
  names = sorted(names)
  return ", ".join(names[:limit]) + (
    f" and {len(names) - limit} more" if len(names) > limit else ""
  )


def _stack(name: str) -> str:
  """The name of all layers in one array: "blocks/{i}/" → "blocks/", "encoderblock_{i}/" →
  "encoderblock/".
  """
  return name.replace("/{i}", "").replace("_{i}", "")


def _check_names(source, table, layout, towers, fresh) -> list[Row]:
  """The rows to read: every array of the file that belongs to these towers is in one, and the other
  way round.
  """
  rows, names = list(layout.rows), set(source.shapes)
  if others := [name for name in models.TOWERS if name not in towers]:
    passed = tuple(prefix for name in others for prefix in table.prefixes[name])
    names = {n for n in names if not n.startswith(passed)} - {row.theirs for row in table.logits}
  unmapped = set(layout.unmapped)
  if fresh and not others:
    rows = [row for row in rows if row.tower in towers or row.theirs in names]
    for name in (LOGITS & layout.leaves.keys()) - {row.ours for row in rows}:
      logger.warning("%s has no %s, which starts afresh", source.name, name)
    for row in table.logits:
      if row not in rows and row.theirs in names:
        logger.warning("%s: %s is left out, this loss has no %s", source.name, row.theirs, row.ours)
        names.remove(row.theirs)
    unmapped -= LOGITS
  expected = {layout.name(row, i) for row in rows for i in layout.layers(row)}
  problems = [
    ("it has no place for", unmapped),
    ("it lacks", expected - names),
    ("unused are", names - expected),
  ]
  if problems := [f"{what} {some(found)}" for what, found in problems if found]:
    raise ValueError(f"{source.name} does not fit these towers: {'; '.join(problems)}")
  return rows


def _check_shapes(source, layout, row, fresh):
  need = layout.their_shape(row)
  for i in layout.layers(row):
    name = layout.name(row, i)
    shape = source.shapes[name]
    if fresh and row.is_position and len(shape) == len(need):
      need = (*need[:-2], shape[-2], need[-1])  # any number of positions can be resized
    if shape != need and not (need in ((), (1,)) and shape in ((), (1,))):
      raise ValueError(
        f"{source.name}: {name} has the shape {list(shape)}; these towers need {list(need)}"
      )


def _place(x: np.ndarray, sharding) -> jax.Array:
  return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])
