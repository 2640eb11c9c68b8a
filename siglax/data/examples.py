"""Examples as an evaluation sees them."""

from __future__ import annotations

import contextlib
import types

from siglax.data import filters
from siglax.data import images
from siglax.data.broken import NOT_BROKEN
from siglax.data.broken import reason
from siglax.data.sources import classnames


class EvalExamples:
  """Examples of a source as evaluation sees them: {"image": uint8 [S, S, 3], "captions": [str, …],
  "label"}.

  The image is resized by `images.resize`; captions are all of them, maybe none; label is None where
  there is none. `captions`(i) are those alone, `labels`() those of all.
  Raises ValueError for a broken example: an evaluation that leaves some out is another evaluation.
  """

  def __init__(self, source, config):
    filters.refuse_at_reading(source, "an evaluation")
    self._source = source
    self._image_config = types.SimpleNamespace(**config.image.to_dict())
    self.classnames = classnames(source)
    self.templates = getattr(source, "templates", None)

  @property
  def source(self):
    """The examples as they are read."""
    return self._source

  @property
  def blank(self):
    """A picture that stands where there is none."""
    return images.blank(self._image_config)

  def __len__(self) -> int:
    return len(self._source)

  def __getitem__(self, i: int) -> dict:
    with self._naming(i, "; evaluation data must be without broken images"):
      example = self._source[i]
      image = images.prepare(example["image"], self._image_config)
    return {"image": image, "captions": example["captions"], "label": example.get("label")}

  def captions(self, i: int) -> list[str]:
    """Those of example i; its picture is not decoded, nor read where the source can do without."""
    with self._naming(i):
      if (captions := getattr(self._source, "captions", None)) is not None:
        return captions(i)
      return self._source[i]["captions"]

  def labels(self) -> list[int | None] | None:
    """Those of all examples, of which no picture is read; None where the source cannot do that."""
    if (texts := getattr(self._source, "texts", lambda: None)()) is None:
      return None
    return [example.get("label") if example else None for example in texts]

  @contextlib.contextmanager
  def _naming(self, i: int, advice: str = ""):
    try:
      yield
    except NOT_BROKEN:
      raise
    except Exception as e:  # whatever a source or a decoder raises
      raise ValueError(f"example {i} of {self._source}: {reason(e)}{advice}") from e
