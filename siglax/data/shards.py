"""Files of examples, written one example after the other: the same examples are the same bytes.

An example is {"image": encoded bytes, "captions": [str, …]}, and perhaps "label", "weight" and
"key", as a source gives it.
"""

from __future__ import annotations

import io
import json
import pathlib
import tarfile
from typing import Any

from array_record.python import array_record_module
from tensorflow_datasets.proto import tf_example_pb2

from siglax.config import values
from siglax.data import captions as captions_lib
from siglax.data import images

# Ending of a picture's member, of Pillow's name for its format.
ENDINGS = {
  "JPEG": "jpg",
  "PNG": "png",
  "WEBP": "webp",
  "GIF": "gif",
  "BMP": "bmp",
  "TIFF": "tif",
  "AVIF": "avif",
  "JPEG2000": "jp2",
  "PPM": "ppm",
}


class TarWriter:
  """A tar in WebDataset's layout: the picture, the captions as .txt, a line each, the label as
  .cls, and as .json what these cannot hold.

  The members have the example's number as their name, and no time and no owner.
  """

  def __init__(self, file: pathlib.Path):
    self._tar = tarfile.open(file, "w", format=tarfile.USTAR_FORMAT)

  def write(self, number: int, example: dict):
    name = f"{number:010}"
    picture = example["image"]
    self._add(f"{name}.{ENDINGS[images.read_header(picture).format]}", picture)
    captions = example["captions"]
    text = "\n".join(captions).encode()
    more: dict[str, Any] = {k: example[k] for k in ("key", "weight") if k in example}
    if captions_lib.lines(text, "") == captions:
      self._add(f"{name}.txt", text)
    else:
      more["caption"] = captions
    if "label" in example:
      self._add(f"{name}.cls", str(example["label"]).encode())
    if more:
      self._add(f"{name}.json", json.dumps(more, sort_keys=True).encode())

  def close(self):
    self._tar.close()

  def _add(self, name: str, content: bytes):
    member = tarfile.TarInfo(name)
    member.size, member.mode = len(content), 0o644
    self._tar.addfile(member, io.BytesIO(content))


class ArrayRecordWriter:
  """An ArrayRecord file of tf.train.Example records, which are read one by one; the features are
  image, captions, label, weight and key.
  """

  def __init__(self, file: pathlib.Path):
    self._writer = array_record_module.ArrayRecordWriter(str(file), "group_size:1,uncompressed")

  def write(self, number: int, example: dict):
    del number
    record = tf_example_pb2.Example()
    features = record.features.feature
    features["image"].bytes_list.value.append(example["image"])
    features["captions"].bytes_list.value.extend(text.encode() for text in example["captions"])
    features["captions"].bytes_list.SetInParent()
    if "label" in example:
      features["label"].int64_list.value.append(example["label"])
    if "weight" in example:
      features["weight"].float_list.value.append(example["weight"])
    if "key" in example:
      features["key"].bytes_list.value.append(example["key"].encode())
    self._call(self._writer.write, record.SerializeToString(deterministic=True))

  def close(self):
    self._call(self._writer.close)

  def _call(self, function, *arguments):
    try:
      function(*arguments)
    except RuntimeError as e:
      raise OSError(values.one_line(e)) from e


# By their --format.
WRITERS = {"array_record": ArrayRecordWriter, "tar": TarWriter}
