"""Datasets of TensorFlow Datasets that are prepared as ArrayRecord, read without TensorFlow."""

from __future__ import annotations

import functools
from typing import Any

from siglax.config import values
from siglax.config.parts import Field
from siglax.data import captions as captions_lib
from siglax.data import names as names_lib
from siglax.data import tables
from siglax.data.source import Source


class TFDS:
  """Examples of a split, in its order: {"image": bytes, "captions": [str, …], "label", "weight",
  "key"}.

  Its arguments are the fields of SOURCE. classnames: of the ClassLabel in `label`. Pictures stay
  encoded until they are read. Raises ValueError, beginning with the argument, for a dataset or a
  split that is not prepared there as ArrayRecord, and for a feature that it lacks.
  """

  def __init__(self, name, split, data_dir, template, caption_weights, **names):
    self._arguments = {
      "name": name,
      "split": split,
      "data_dir": data_dir,
      "template": template,
      "caption_weights": caption_weights,
      **names,
    }
    import tensorflow_datasets as tfds  # late: it is slow, and only this source needs it

    try:
      builder: Any = tfds.builder(name, data_dir=data_dir)
      features = builder.info.features
    except Exception as e:  # it has errors of its own, some of them of TensorFlow
      raise ValueError(f"name={name!r}: {values.one_line(e)}") from None
    self._templates = captions_lib.read_templates(template)
    self._weights = None if caption_weights is None else names_lib.numbers(caption_weights)
    needed = template is None or not any(map(_classnames, features.values()))
    self._names = tables.chosen(names, features, "feature", name, needed)
    self._captions = self._names.pop("caption", ())
    self._names = {field: found for field, (found,) in self._names.items()}
    label = self._names.get("label")
    self.classnames = _classnames(features[label]) if label else None
    skip = {self._names["image"]: tfds.decode.SkipDecoding()}
    try:
      self._records = builder.as_data_source(split=split, decoders=skip)
    except Exception as e:
      raise ValueError(
        f"name={name!r}, split={split!r} is not prepared as ArrayRecord in "
        f"{builder.data_dir}: {values.one_line(e)}; prepare it by tfds.builder({name!r}, "
        'file_format="array_record").download_and_prepare()'
      ) from None

  def __len__(self) -> int:
    return len(self._records)

  def __getitem__(self, i: int) -> dict:
    record = self._records[i]
    row = {field: record.get(name) for field, name in self._names.items()}
    columns = []
    for name in self._captions:
      found = record.get(name, ())
      columns.append(list(map(tables.text, [found] if isinstance(found, (bytes, str)) else found)))
    label = None if row.get("label") is None else int(row["label"])
    captions = captions_lib.of_example(
      columns, self._weights, label, self.classnames, self._templates
    )
    return {"image": row["image"]} | captions | tables.rest(row)

  def __repr__(self):
    return f"TFDS({self._arguments['name']!r}, {self._arguments['split']!r})"

  def __reduce__(self):  # a worker process opens the files itself
    return functools.partial(TFDS, **self._arguments), ()


def _classnames(feature) -> tuple[str, ...] | None:
  names = getattr(feature, "names", None)
  return tuple(names) if names else None


SOURCE = Source(
  "tfds",
  "examples of a dataset of TensorFlow Datasets, prepared as ArrayRecord",
  TFDS,
  check=names_lib.check,
  fields={
    "name": Field(None, "name of the dataset, with its version or not: cifar10:3.0.2", kind=str),
    "split": Field("train", "the split, or a part of it: train[:90%]"),
    "data_dir": Field(
      None,
      "folder of the prepared datasets; None takes ~/tensorflow_datasets",
      kind=str,
      optional=True,
    ),
    "template": captions_lib.TEMPLATE,
    **tables.named("feature"),
  },
)
