"""How fast the sources read records, without decoding them, and what an index costs.

python benchmarks/sources.py [--records 10000] [--bytes 60000] [--sources webdataset folder …]

Writes the same records of random bytes for every source into a temporary folder, opens them (which
makes the index), and reads them in a random order in one thread. Files are in the page cache: what
is measured is siglax, not the disk. Bytes of index are those that the examples hold in memory.
"""

import argparse
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

from siglax.data.sources import open_source


def write(root: pathlib.Path, records: int, size: int) -> dict[str, str]:
  """{source: path}."""
  rng = np.random.default_rng(0)
  pictures = [rng.bytes(int(n)) for n in rng.integers(size // 2, 3 * size // 2, records)]
  names = [f"{i:08}" for i in range(records)]
  captions = [f"a caption of picture {name}" for name in names]
  (root / "folder").mkdir()
  with tarfile.open(root / "a.tar", "w") as out:
    for name, picture, caption in zip(names, pictures, captions):
      (root / f"folder/{name}.jpg").write_bytes(picture)
      (root / f"folder/{name}.txt").write_text(caption)
      for ending, content in (("jpg", picture), ("txt", caption.encode())):
        info = tarfile.TarInfo(f"{name}.{ending}")
        info.size = len(content)
        out.addfile(info, io.BytesIO(content))
  rows = [(f"folder/{name}.jpg", caption) for name, caption in zip(names, captions)]
  with open(root / "a.csv", "w", newline="") as file:
    csv.writer(file).writerows([("image", "caption"), *rows])
  (root / "a.jsonl").write_text(
    "".join(json.dumps({"image": name, "caption": caption}) + "\n" for name, caption in rows)
  )
  pq.write_table(pa.table({"image": pictures, "caption": captions}), root / "a.parquet")
  paths = {"webdataset": "a.tar", "csv": "a.csv", "jsonl": "a.jsonl", "parquet": "a.parquet"}
  return {source: str(root / name) for source, name in ({"folder": "folder"} | paths).items()}


def measure(source: str, path: str, records: int) -> str:
  spec = {"source": source, "path": path}
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
  held = "–" if source == "parquet" else f"{len(pickle.dumps(examples)) / records:.1f}"
  return f"| {source} | {opened:.2f} | {np.median(rates):,.0f} | {held} |"


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--records", type=int, default=10_000)
  parser.add_argument("--bytes", type=int, default=60_000, help="of a picture, on average")
  parser.add_argument("--sources", nargs="*", help="all by default")
  arguments = parser.parse_args()
  with tempfile.TemporaryDirectory() as folder:
    paths = write(pathlib.Path(folder), arguments.records, arguments.bytes)
    print("| source | s to open | records/s | bytes of index an example |\n|---|---|---|---|")
    for source in arguments.sources or paths:
      print(measure(source, paths[source], arguments.records), flush=True)


if __name__ == "__main__":
  main()
