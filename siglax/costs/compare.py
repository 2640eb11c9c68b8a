"""Plans of several settings of one config, sorted: `siglax plan --compare`."""

from __future__ import annotations

from collections.abc import Callable
import itertools

from siglax.config import fields as fields_lib
from siglax.config import parts

# Short names of fields that are often compared.
FIELDS = {
  "fsdp": ("mesh.fsdp",),
  "microbatch": ("train.microbatch",),
  "remat": ("train.remat.image", "train.remat.text"),
  "dtype": ("train.dtype",),
  "impl": ("loss.impl",),
  "batch": ("batch_size",),
}


def settings(words: list[str]) -> list[dict]:
  """{"setting": in words, "fields": {field: value}} of each combination of words such as "fsdp=1,4"
  and "train.microbatch=None,8".
  ValueError for a word of another form, or a name that is no field.
  """
  choices = []
  for word in words:
    name, equals, values = word.partition("=")
    if not equals or not name or not all(values.split(",")):
      raise ValueError(f"--compare {word!r} must be NAME=VALUE,VALUE, such as fsdp=1,4,16")
    choices.append([(_fields(name), name, value) for value in values.split(",")])
  return [
    {
      "setting": " ".join(f"{name}={value}" for _, name, value in chosen),
      "fields": {field: value for fields, _, value in chosen for field in fields},
    }
    for chosen in itertools.product(*choices)
  ]


def _fields(name: str) -> tuple[str, ...]:
  """The fields that a name of --compare sets."""
  if name in FIELDS:
    return FIELDS[name]
  if fields_lib.at(name) is None:
    near = parts.did_you_mean(name, (*FIELDS, *fields_lib.all_fields()))
    raise ValueError(
      f"--compare: {name!r} is unknown; known are fields, such as mesh.fsdp, and "
      f"{', '.join(FIELDS)}{near}"
    )
  return (name,)


def compare(plan: Callable[[dict[str, str]], dict], chosen: list[dict], chip: str) -> list[dict]:
  """The plan of each setting on a chip: first those that fit, by the least time of a step, then
  those that do not, then those that the config refuses.

  plan: fields → report. A row has setting, chip and hours (as in a report), bytes_per_device, and
  error, None or what is wrong. ValueError where the config refuses all of them.
  """
  rows = []
  for one in chosen:
    row = dict.fromkeys(("error", "chip", "bytes_per_device", "hours"))
    row["setting"] = one["setting"]
    try:
      report = plan(one["fields"])
      row |= {
        "chip": report["chips"][chip],
        "bytes_per_device": report["bytes_per_device"],
        "hours": report.get("hours", {}).get(chip),
      }
    except ValueError as e:
      row["error"] = " ".join(str(e).split())
    rows.append(row)
  if all(row["error"] for row in rows):
    raise ValueError(f"--compare {rows[0]['setting']}: {rows[0]['error']}")
  return sorted(rows, key=_order)


def _order(row) -> tuple:
  if row["error"]:
    return 2, 0.0
  return int(not row["chip"]["fits_by_estimate"]), row["chip"]["step_seconds"]
