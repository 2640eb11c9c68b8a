"""Towers out: what `siglax export` writes, in the formats of siglax/interop."""

from __future__ import annotations

import logging
import pathlib

from siglax import interop
from siglax import models
from siglax import tower as tower_lib
from siglax.data import uploads
from siglax.interop import fields

logger = logging.getLogger("siglax")


def export(source, form: str, out, dtype: str = "float32") -> str:
  """Writes the towers at `source` (see siglax.load) in the format `form` to the folder or file
  `out`, each of them a path or a URL; returns `out`.

  form: a name in interop.FORMATS. dtype: of the parameters; float32 is bit for bit what was
  trained. Nothing is there until all is written. Raises ValueError in one line that names the field
  which the format cannot express, what it needs and the formats that carry the tower, or an `out`
  that exists.
  """
  if form not in (known := interop.written()):
    raise ValueError(f"--format {form} is unknown; known are {', '.join(known)}")
  kind, out = interop.FORMATS[form], str(out)
  kind.check_packages()
  if dtype not in kind.dtypes:
    raise ValueError(f"--dtype {dtype} has no place in --format {form}; it needs {kind.dtypes[0]}")
  if not out.endswith(kind.suffix):
    raise ValueError(f"--out {out} must end in {kind.suffix}, as {form}'s files do")
  uploads.check_new(out)
  folder = interop.local(source)
  tower = tower_lib.load(folder)
  _check(kind, tower)
  if tower.text and fields.carried(kind.carries(tower), "text.tokenizer") == fields.LEFT_OUT:
    logger.warning(
      "--format %s has no place for the tokenizer: keep %s, whose texts need it", form, source
    )
  with uploads.writing(out), uploads.replacing(out) as temporary:
    kind.write(tower, temporary, dtype, pathlib.Path(folder))
  return out


def _check(form: interop.Format, tower):
  """ValueError that names the first thing which the format has no place for, and the formats that
  have.
  """
  if lacking := [name for name in form.towers if name not in tower.params]:
    raise ValueError(f"--format {form.name} needs the {lacking[0]} tower, which is not there")
  if (problem := form.refuses(tower)) is None:
    return
  wanted = set(form.needed(tower))
  able = [
    other.name
    for other in map(interop.FORMATS.get, interop.written())
    if set(other.towers) <= tower.params.keys()
    and wanted <= set(other.towers or models.TOWERS)
    and not other.refuses(tower)
  ]
  raise ValueError(
    f"--format {form.name} cannot express {problem}; formats that carry it: {', '.join(able)}"
  )
