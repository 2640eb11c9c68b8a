"""Built-in pictures as CLIP_benchmark reads them: a folder of tars for zero-shot classification and
one for retrieval (docs/towers.md, "CLIP_benchmark").

python benchmarks/clip_benchmark_data.py OUT [PICTURES]
"""

import io
import pathlib
import sys
import tarfile

import cv2

from siglax.data import shapes

SIZE = 256
TEMPLATES = ("a {c}.", "a picture of a {c}.")


def write(folder: pathlib.Path, pictures, ending: str, content):
  """test/0.tar of examples, each a PNG and a file of content(example)."""
  (folder / "test").mkdir(parents=True)
  (folder / "test" / "nshards.txt").write_text("1\n")
  with tarfile.open(folder / "test" / "0.tar", "w") as tar:
    for i, example in enumerate(pictures):
      png = cv2.imencode(".png", example["image"][..., ::-1])[1].tobytes()
      for name, data in (("png", png), (ending, content(example).encode())):
        member = tarfile.TarInfo(f"{i:05}.{name}")
        member.size = len(data)
        tar.addfile(member, io.BytesIO(data))


def main(out: str, count: str = "96"):
  out = pathlib.Path(out)
  source = lambda **more: shapes.Shapes("test", examples=int(count), image_size=SIZE, **more)
  every = lambda data: (data[i] for i in range(len(data)))
  classes, captions = out / "classes", out / "captions"
  write(classes, every(source(objects=(1,))), "cls", lambda example: str(example["label"]))
  (classes / "classnames.txt").write_text("\n".join(shapes.CLASSNAMES) + "\n")
  (classes / "zeroshot_classification_templates.txt").write_text("\n".join(TEMPLATES) + "\n")
  write(captions, every(source()), "txt", lambda example: "\n".join(example["captions"]))
  (captions / "dataset_type.txt").write_text("retrieval\n")


if __name__ == "__main__":
  main(*sys.argv[1:])
