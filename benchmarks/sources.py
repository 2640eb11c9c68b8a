"""How fast the sources read records, without decoding them, and what an index costs.

python benchmarks/sources.py [--records 10000] [--bytes 60000] [--sources webdataset folder …]

Writes the same records of random bytes for every source into a temporary folder, opens them (which
makes the index), and reads them in a random order in one thread. Files are in the page cache: what
is measured is siglax, not the disk. Bytes of index are those that the examples hold in memory; "–"
stands where a library holds it.
"""

import argparse
import contextlib
import csv
import io
import json
import pathlib
import pickle
import tarfile
import tempfile
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from siglax.data import shards as shards_lib
from siglax.data.sources import open_source

# Of these a pickle holds no index, but what is opened again.
INDEX_ELSEWHERE = ("parquet", "array_record", "tfds", "hf")


def write(root: pathlib.Path, pictures: list[bytes], shards: int = 1) -> dict[str, dict]:
  """{source: a data spec}, of so many files each; the sources give the same examples."""
  names = [f"{i:08}" for i in range(len(pictures))]
  captions = [f"a caption of picture {name}" for name in names]
  (root / "folder").mkdir()
  for name, picture, caption in zip(names, pictures, captions):
    (root / f"folder/{name}.jpg").write_bytes(picture)
    (root / f"folder/{name}.txt").write_text(caption)
  for k, part in enumerate(np.array_split(np.arange(len(names)), shards)):
    rows = [(names[i], pictures[i], captions[i]) for i in part]
    _write_shard(root, f"{k:03}", rows)
  _save_to_disk(root / "hf", pictures, captions, shards)
  paths = {
    "folder": "folder",
    "webdataset": "*.tar",
    "csv": "*.csv",
    "jsonl": "*.jsonl",
    "parquet": "*.parquet",
    "array_record": "*.array_record",
    "hf": "hf",
  }
  specs = {name: {"source": name, "path": str(root / path)} for name, path in paths.items()}
  return specs | {"tfds": _prepare(root / "tfds", names, pictures, captions)}


def _write_shard(root, shard: str, rows):
  with tarfile.open(root / f"{shard}.tar", "w") as out:
    for name, picture, caption in rows:
      for ending, content in (("jpg", picture), ("txt", caption.encode())):
        info = tarfile.TarInfo(f"{name}.{ending}")
        info.size = len(content)
        out.addfile(info, io.BytesIO(content))
  named = [(f"folder/{name}.jpg", caption) for name, _, caption in rows]
  with open(root / f"{shard}.csv", "w", newline="") as file:
    csv.writer(file).writerows([("image", "caption"), *named])
  (root / f"{shard}.jsonl").write_text(
    "".join(json.dumps({"image": name, "caption": caption}) + "\n" for name, caption in named)
  )
  _, pictures, captions = zip(*rows)
  table = pa.table({"image": pictures, "caption": captions})
  pq.write_table(table, root / f"{shard}.parquet")
  writer = shards_lib.ArrayRecordWriter(root / f"{shard}.array_record")
  for i, (picture, caption) in enumerate(zip(pictures, captions)):
    writer.write(i, {"image": picture, "captions": [caption]})
  writer.close()


def _save_to_disk(folder, pictures, captions, shards: int):
  """As Hugging Face's Dataset.save_to_disk does."""
  folder.mkdir()
  files = []
  for k, part in enumerate(np.array_split(np.arange(len(pictures)), shards)):
    files.append({"filename": f"data-{k:05}-of-{shards:05}.arrow"})
    columns = {
      "image": [{"bytes": pictures[i], "path": None} for i in part],
      "caption": [captions[i] for i in part],
    }
    table = pa.table(columns)
    with pa.ipc.new_stream(str(folder / files[-1]["filename"]), table.schema) as writer:
      writer.write_table(table, max_chunksize=1000)
  (folder / "state.json").write_text(json.dumps({"_data_files": files}))


def _prepare(folder, names, pictures, captions) -> dict:
  import tensorflow_datasets as tfds

  class Measured(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
      features = {"image": tfds.features.Image(), "caption": tfds.features.Text()}
      return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, _):
      return {"train": self._generate_examples()}

    def _generate_examples(self):
      for name, picture, caption in zip(names, pictures, captions):
        yield name, {"image": io.BytesIO(picture), "caption": caption}

  tfds.disable_progress_bar()
  with contextlib.redirect_stdout(None):
    Measured(data_dir=folder, file_format="array_record").download_and_prepare()
  return {"source": "tfds", "name": "measured", "data_dir": str(folder)}


def measure(spec: dict, records: int) -> str:
  source = spec["source"]
  start = time.perf_counter()
  examples = open_source(spec)
  opened = time.perf_counter() - start
  order = np.random.default_rng(1).permutation(records).tolist()
  rates = []
  for _ in range(3):
    start = time.perf_counter()
    for i in order:
      examples[i]
    rates.append(records / (time.perf_counter() - start))
  held = f"{len(pickle.dumps(examples)) / records:.1f}" if source not in INDEX_ELSEWHERE else "–"
  return f"| {source} | {opened:.2f} | {np.median(rates):,.0f} | {held} |"


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--records", type=int, default=10_000)
  parser.add_argument("--bytes", type=int, default=60_000, help="of a picture, on average")
  parser.add_argument("--sources", nargs="*", help="all by default")
  arguments = parser.parse_args()
  rng, size = np.random.default_rng(0), arguments.bytes
  pictures = [rng.bytes(int(n)) for n in rng.integers(size // 2, 3 * size // 2, arguments.records)]
  with tempfile.TemporaryDirectory() as folder:
    specs = write(pathlib.Path(folder), pictures)
    print("| source | s to open | records/s | bytes of index an example |\n|---|---|---|---|")
    for source in arguments.sources or specs:
      print(measure(specs[source], arguments.records), flush=True)


if __name__ == "__main__":
  main()
