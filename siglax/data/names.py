"""Which columns or features of the data the fields of a spec name, and its columns of captions."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence

from siglax.config.parts import Field

# Of a message.
LISTED = 50


def chosen(
  given: Mapping, known: Mapping[str, tuple[str, ...]], there, part: str, where: str, needed=()
) -> dict[str, tuple[str, ...]]:
  """{field: the names that it stands for}, without the fields of which nothing is there. Only
  "caption" has several.

  given: {field: its value in the data spec}. known: {field: names of which None takes the first
  that is there}. there: the names of the columns. part: what a message calls one, such as "column".
  where: what has them, such as a file. needed: fields that must be found.
  Raises ValueError, beginning with the field, for a name that is not there, or is there twice.
  """
  found, listed = {}, ", ".join(list(there)[:LISTED])
  for field, value in given.items():
    if value is None:
      names = tuple(name for name in known.get(field, ()) if name in there)[:1]
    elif field == "caption" and not (isinstance(value, str) and value in there):
      names = split(value)
    else:
      names = (value,)
    for name in names:
      if name not in there:
        raise ValueError(f"{field}={name!r}: no such {part} in {where} but {listed}; name one")
      if isinstance(there, Sequence) and there.count(name) > 1:
        raise ValueError(f"{field}={name!r}: {where} has several {part}s called so; rename them")
    if names:
      found[field] = names
    elif field in needed:
      wanted = " or ".join(map(repr, known[field]))
      raise ValueError(f"{field}=None: no {part} {wanted} in {where} but {listed}; name one")
  return found


def split(value: str | Sequence[str]) -> tuple[str, ...]:
  """The names of a field: a text with commas between them, or a tuple."""
  return (
    tuple(name.strip() for name in value.split(",")) if isinstance(value, str) else tuple(value)
  )


def caption(doc: str) -> dict[str, Field]:
  """The fields of a data spec that name its captions. doc: what one of them holds."""
  return {
    "caption": Field(
      None,
      f"{doc}. Several are drawn from by caption_weights: a tuple, or with commas between",
      kind=str | tuple,
      optional=True,
      check=_names_problem,
    ),
    "caption_weights": Field(
      None,
      "of each of several captions, how often training takes it, in proportion: 1,3. None takes "
      "each as often. Where one is missing or empty, the others have its share",
      kind=str | tuple,
      optional=True,
      check=_weights_problem,
    ),
  }


def check(caption, caption_weights, **others):
  """ValueError for weights that are not one for each of the captions: the check of a source."""
  del others
  count = 0 if caption is None else len(split(caption))
  if caption_weights is not None and len(weights := numbers(caption_weights)) != count:
    raise ValueError(
      f"caption_weights={caption_weights!r} has {len(weights)} numbers, caption={caption!r} has "
      f"{count} names; give one for each"
    )


def numbers(value: str | Sequence) -> tuple[float, ...]:
  """Those of `caption_weights`."""
  return tuple(map(float, split(value) if isinstance(value, str) else value))


def of_columns(columns: list[list[str]], weights: tuple[float, ...] | None) -> dict:
  """{"captions"} of an example, of the captions in each of its columns. Of several columns also
  "caption_weights": of each caption, its share in what training draws.
  """
  if len(columns) == 1:
    return {"captions": columns[0]}
  columns = [[caption for caption in column if caption.strip()] for column in columns]
  weights = (1.0,) * len(columns) if weights is None else weights
  return {
    "captions": [caption for column in columns for caption in column],
    "caption_weights": [
      weight / len(column) for column, weight in zip(columns, weights) for _ in column
    ],
  }


def _names_problem(value) -> str | None:
  found = split(value)
  if not found or not all(isinstance(name, str) and name for name in found):
    return "must be names, such as 'caption,synthetic'"
  return "names one twice" if len(set(found)) < len(found) else None


def _weights_problem(value) -> str | None:
  try:
    sound = all(0 < number < 1e30 for number in numbers(value))
  except (ValueError, TypeError):
    sound = False
  return None if sound else "must be positive numbers, such as '1,3'"
