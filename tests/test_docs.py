"""Every fenced block of README, docs and launch/README: run, in the order of its file, or parsed
where it needs more than a CPU.

`pytest -m slow` runs them. A block or a command that stands in none of the tables below fails the
first test. Libraries that siglax does not need (transformers, open_clip, …) are used where the
Python in $DOCS_PYTHON, or else this one, has them; blocks of absent ones are only compiled.
"""

import ast
import contextlib
import importlib.util
import json
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
from typing import NamedTuple

import cv2
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from siglax import config as config_lib
from siglax.commands import cli
from siglax.data import text as text_lib
from siglax.data.shapes import Shapes
from siglax.training import checks

import servers
import studies_by_hand

ROOT = pathlib.Path(__file__).parent.parent
FILES = (
  "README.md",
  "docs/ablations.md",
  "docs/api.md",
  "docs/architecture.md",
  "docs/config.md",
  "docs/data.md",
  "docs/evaluation.md",
  "docs/index.md",
  "docs/losses.md",
  "docs/metrics.md",
  "docs/plan.md",
  "docs/reliability.md",
  "docs/runtimes.md",
  "docs/serving.md",
  "docs/towers.md",
  "launch/README.md",
)

# Commands that are run, and what is appended so that each takes seconds: a later flag replaces the
# one before.
SMALL = (
  "--config.batch_size=16 --config.eval.batch_size=16 --config.total_steps=2 "
  "--config.optim.warmup_steps=0 --config.model.image.depth=1"
)
RUN = {
  "siglax train --config configs/quickstart.py --workdir runs/quickstart": f"{SMALL} "
  + " ".join(f"--config.eval.tasks.{i}.examples=16" for i in range(5)),
  "siglax tokenizer --from pictures --out pictures.model --vocab-size 8000": "--vocab-size 80",
  "siglax train --config configs/cifar10_captions.py:train=pictures,test=held_out "
  "--workdir runs/pictures --config.text.tokenizer=pictures.model --config.image.size=64 "
  "--config.image.flip=False": SMALL,
  "siglax search --from runs/pictures --images held_out 'a dog in the snow' --out snow.html": "",
  "tar --sort=name -cf pictures.tar -C pictures .": "&& test -s pictures.tar",
  "siglax inspect pictures --out sheet.png": "--pictures 4",
  "siglax inspect pictures --config configs/quickstart.py --out views.png": "",
  "siglax convert pictures shards --short-side 256 --shuffle 0": "--short-side 16",
  "siglax convert pictures tars --format tar --examples-per-shard 1000": "--examples-per-shard 5",
  "siglax tokenizer --from mine.parquet --out mine.model --vocab-size 8000": "--vocab-size 80",
  "siglax train --config configs/cifar10_captions.py:train=mine.parquet,test=held_out.parquet "
  "--workdir runs/mine "
  "--config.text.tokenizer=mine.model --config.loss.positives=pair --config.image.flip=False "
  "--config.model.image.stem=patch --config.model.image.pool=map --config.model.text.pool=last "
  "--config.model.embed_dim=192": SMALL,
  "siglax export --from runs/mine --format hf --out exported/mine": "",
  "siglax classify --from runs/quickstart a.png b.png --labels 'red circle,blue square' "
  "--template 'a {}.'": "",
  "siglax search --from runs/quickstart --images pictures 'a large blue square' "
  "--out found.html": "",
  "siglax export --from runs/quickstart --format stablehlo --out exported/quickstart": "",
  "siglax embed --from runs/mine --data pictures.parquet --out embedded.parquet": "",
  "siglax embed --from runs/quickstart --data pictures --out pictures.npz": "",
  "siglax search --from runs/quickstart --index pictures.npz 'a large blue square' --top 5": "",
  "siglax search --from runs/quickstart --index pictures.npz 'a red circle' --query-image a.png "
  "--out nearest.html --data pictures": "",
  "siglax plan --config configs/quickstart.py --devices 8": "--batch 16",
  "siglax config --config configs/quickstart.py 'optim.*'": "",
  "siglax ablate --config configs/ablate/loss_batch.py --workdir studies/loss_batch --dry-run": "",
  "siglax report studies/losses --baseline loss.name=sigmoid": "",
  "siglax plan --config configs/siglip_so400m.py --devices 256 --batch 65536 --chips v5e,H100 "
  "--json --config.mesh.fsdp=32": "--config configs/siglip_so400m.py:smoke=True --devices 8 "
  "--batch 16 --config.mesh.fsdp=2",
  "siglax plan --config configs/siglip_b16.py --devices 32 --chips v4 --hours --price 3": (
    "--config configs/siglip_b16.py:smoke=True --devices 8"
  ),
  "siglax plan --config configs/siglip_b16.py --devices 64 --chips h100 --compare fsdp=1,4 "
  "microbatch=None,128": "--config configs/siglip_b16.py:smoke=True --devices 8",
  "siglax plan --chips list": "",
  "siglax train --config configs/x.py --workdir runs/x "
  "--config.model.init_from=webli_en_b16_224.npz:img": "",
  "siglax train --config configs/finetune.py:init=runs/x,train=train.parquet,"
  "test=held_out.parquet --workdir runs/tuned": f"{SMALL} --config.optim.hold_steps=1",
  "siglax average runs/x runs/tuned --weight 0.5 --out runs/both": "",
  "siglax evaluate --from runs/both": "",
  "siglax export --from runs/x --format hf --out exported/x --dtype bfloat16": "",
  "siglax export --from runs/x --format onnx --out exported/onnx": "",
  "siglax export --from runs/x --format hf-vision --out exported/vision": "",
  "siglax classify --from runs/x a.jpg b.jpg --labels cat,dog --template 'a photo of a {}.' "
  "--template 'a {}.' --json": "",
  "siglax search --from runs/x --images photos 'a red car' snow --top 20 --out found.html": "",
  "siglax embed --from runs/x --data train.parquet --out both.parquet --texts": "",
  "siglax embed --from runs/x:txt --data train.parquet --out texts.npz --texts-only": "",
  "siglax embed --from runs/x:img --data train.parquet --out embedded.array_record": "",
  "siglax train --config configs/lit_b16.py:init=runs/x:img,embedded=embedded.array_record,"
  "tokenizer=FILE.model --workdir runs/lit":
  # The towers of configs/x.py in place of B's.
  f"{SMALL} --config.optim.warmup_examples=16 --config.train.dtype=float32 --config.image.size=16 "
  "--config.model.image.patch=8 "
  "--config.model.text.vocab_size=None --config.text.length=12 "
  + " ".join(
    f"--config.model.{t}.{k}={v}"
    for t in ("image", "text")
    for k, v in {"width": 16, "depth": 1, "heads": 2, "mlp_dim": 32}.items()
  ),
  "launch/local.sh 2 --config configs/siglip_b16.py:smoke=True --workdir runs/smoke": "",
  "DEVICES=4 launch/local.sh 2 --config configs/siglip_b16.py:smoke=True --workdir runs/smoke": "",
}
EVALUATED = (
  "siglax evaluate --from runs/x",
  "siglax evaluate --from runs/x --html page.html",
  "siglax evaluate --from exported/x --tasks "
  "zero_shot:data=pets.parquet,name=pets,templates=imagenet80 retrieval:data=held_out.parquet "
  "--out results.json",
  "siglax evaluate --from runs/x:img --tasks "
  "linear_probe:data=pets.parquet,train=pets_train.parquet,shots=16 "
  "knn:data=pets.parquet,train=pets_train.parquet,k=20 --out probes.json",
  "siglax evaluate --from exported/x --tasks zero_shot:data=pets.parquet --classnames names.json",
  "siglax evaluate --from exported/x --out swap_att.results.json --tasks "
  "compositionality:data=swap_att.jsonl:image=filename,data.root=val2017,"
  "data.caption=caption,negative_caption",
  "siglax evaluate --from runs/x --tasks composed:data=pets.parquet,queries=queries.csv",
)
RUN |= dict.fromkeys(EVALUATED, "")
S3 = (
  "siglax train --config configs/x.py --workdir s3://bucket/runs/x",
  "siglax evaluate --from s3://bucket/runs/x",
  "siglax export --from s3://bucket/runs/x --format big_vision --out s3://bucket/exports/x.npz",
)
RUN |= dict.fromkeys(S3, "")
# Commands that need a cluster: what follows is parsed as siglax train's, and the config is checked
# for so many devices.
CLUSTER = {
  "sbatch --nodes=2 --ntasks-per-node=8 --gpus-per-node=8 --cpus-per-task=8 --time=24:00:00 "
  "launch/slurm.sbatch "
  "--config configs/siglip_b16.py:train=PATH,tokenizer=FILE.model --workdir DIR": 16,
  "launch/tpu_vm.sh start --config configs/siglip_b16.py:train=PATH,tokenizer=FILE.model "
  "--workdir DIR": 32,
  "launch/xpk.sh start --config configs/siglip_b16.py:train=PATH,tokenizer=FILE.model "
  "--workdir DIR": 16,
  "python launch/ray_train.py 2 --gpus 8 --config "
  "configs/siglip_b16.py:train=PATH,tokenizer=FILE.model --workdir gs://BUCKET/runs/x": 16,
  "siglax train --workdir runs/b16 --config.data.0.order=shards --config "
  "'configs/siglip_b16.py:train=s3://bucket/shards/{00000..00331}.tar,"
  "tokenizer=s3://bucket/32k.model'": 16,
  "siglax train --workdir runs/b16 --config configs/siglip_b16.py:train=train.parquet,"
  "tokenizer=32k.model --config.data.0.caption=caption,synthetic "
  "--config.data.0.caption_weights=1,3": 16,
}
# What other programs do. .ci/run installs siglax and runs the tests.
OTHERS = (
  "jq -c '.[]' swap_att.json '>' swap_att.jsonl",
  "pip install -e .",
  "pip install -e '.[test]'",
  "pytest",
  # Attacks of minutes; tests/faults has a short one.
  "python benchmarks/soak.py --minutes 30 --every 20 --seed 0",
  "python benchmarks/soak.py --tiny --seed 2 --counts kill=60,full=20,double=10",
  "python benchmarks/soak.py --here --seed 0 --counts damage=200,transient=40,nonfinite=200",
  # tests/test_convert.py runs what it starts.
  "sbatch --array=0-99 --cpus-per-task=16 --wrap 'siglax convert train.csv shards --short-side 256 "
  "--shard $SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT'",
  "python benchmarks/clip_benchmark_data.py wds",
  "pip install clip-benchmark requests protobuf 'numpy<2.4'",
  *(
    f"clip_benchmark eval --model local-dir:exported/o --pretrained none --dataset wds/{name} "
    f"--dataset_root wds/{name} {more}--no_amp"
    for name, more in (
      ("classes", ""),
      ("captions", "--task zeroshot_retrieval --recall_k 1 5 10 "),
    )
  ),
  # tests/test_ablate.py runs what it starts.
  "sbatch --array=0-7 --gpus=1 --wrap 'siglax ablate --config configs/ablate/noise.py --workdir "
  "studies/noise --only $SLURM_ARRAY_TASK_ID/8'",
  # Studies of an hour, and their reports; tests/test_shipped_studies.py plans them all.
  *(
    command
    for name in ("loss_batch", "bias_start", "negatives", "beta2", "noise")
    for command in (
      f"siglax ablate --config configs/ablate/{name}.py --workdir studies/{name} --devices '0;1'",
      f"siglax report studies/{name}",
    )
  ),
  "siglax ablate --config configs/ablate/bias_start.py:init=runs/tower:img --workdir "
  "studies/bias_lit --devices '0;1'",
  "siglax report studies/bias_lit",
  "siglax ablate --config configs/ablate/patches.py:steps=250 --workdir studies/patches "
  "--devices '0;1'",
  "siglax report studies/patches",
  shlex.join(
    shlex.split(
      "siglax ablate --config configs/ablate/loss_dtype.py --workdir studies/loss_dtype "
      "--config.grid.loss.name=\"('sigmoid',)\" --devices '0;1'"
    )
  ),
  "siglax report studies/loss_dtype",
  *(
    command
    for name, size, data in (
      ("loss_cifar", 128, "train=cifar10_train.parquet,test=cifar10_test.parquet,epochs=1"),
      ("loss_flickr", 32, "train=flickr_train.parquet,test=flickr_val.parquet,epochs=20"),
    )
    for command in (
      f"siglax ablate --config configs/ablate/loss_batch.py:data=pictures,{data} "
      f"'--config.grid.batch_size=({size},)' "
      f"--workdir studies/{name} --devices '0;1'",
      f"siglax report studies/{name}",
    )
  ),
  "python benchmarks/spikes.py studies/beta2 optim.lr optim.b2",
  "pip install -e '.[onnx]'",
  "python convert_hf_to_gguf.py exported/vision --mmproj",  # of llama.cpp
  "export TPU=name ZONE=us-central2-b",
  "gcloud compute tpus tpu-vm create $TPU --zone $ZONE --accelerator-type v4-64 --version "
  "tpu-ubuntu2204-base",
  "launch/tpu_vm.sh install",
  "export CLUSTER=name PROJECT=id ZONE=us-central2-b TPU=v5litepod-16 "
  "IMAGE=REGION-docker.pkg.dev/PROJECT/REPOSITORY/siglax",
  # Its words are those of the file's own envs, which tests/test_launch.py runs.
  "sky jobs launch -n siglax launch/skypilot.yaml --env WORKDIR=gs://BUCKET/runs/x",
)
# First lines of blocks that are no commands: what siglax plan prints (tests/test_plan.py), a
# Dockerfile, the folders, what a soak printed.
TEXTS = (
  "siglax plan configs/siglip_so400m.py",
  "FROM python:3.12-slim",
  "siglax/",
  "fault                   tried  survived       lost steps       recovery s",
)

# Python blocks by their first line, and what they take for granted.
PICTURE = "from PIL import Image\npicture = Image.open('a.jpg')\n"
PYTHON = {
  "import siglax": "",
  "from siglax import studies": "",
  "from siglax import losses": """
import jax
from siglax.devices import mesh as mesh_lib
mesh = mesh_lib.make()
zimg, ztxt = (jax.random.normal(jax.random.key(i), (16, 8)) for i in range(2))
zimg, ztxt = (z / jax.numpy.linalg.norm(z, axis=1, keepdims=True) for z in (zimg, ztxt))
scale, bias, weights, labels = 10.0, -2.0, jax.numpy.ones(16), jax.numpy.arange(16)
""",
  "import jax.numpy as jnp": "",
  'tower = siglax.load("google/siglip-base-patch16-224")   # a local folder: config.json and '
  "safetensors, sharded or not": "import siglax, numpy as np\n"
  "images = np.zeros((2, 16, 16, 3), np.uint8)\n",
  'tower = siglax.load("google/siglip2-base-patch16-naflex")': "import siglax\n",
  "from transformers import AutoImageProcessor, AutoModel, AutoTokenizer": PICTURE,
  "from transformers import AutoImageProcessor, AutoModel": PICTURE,
  "import transformers": PICTURE
  + "import torch\ntokens = torch.ones((2, 12), dtype=torch.int64)\n",
  "import open_clip": PICTURE,
  "import big_vision.utils as u": "",
  "import json": """
import os
os.chdir("exported/quickstart")
import numpy
c = __import__("json").load(open("config.json"))
pixels = numpy.zeros((2, c["image"]["size"], c["image"]["size"], 3), numpy.uint8)
tokens = numpy.zeros((3, c["text"]["length"]), numpy.int32)
""",
  "import onnx.utils": "",
  "import json, numpy as np, onnxruntime": "",
  "import openvino": "",
  "import coremltools as ct": "",
  "import json, re, string": "",
  'f = np.load("pictures.npz")': "",
  "import faiss, numpy as np": "",
  "from usearch.index import Index": "",
  "from flax import nnx": "",
  "from PIL import Image": "",
  'c.data = ({"source": "embeddings", "path": "embedded.array_record"},)': (
    "from siglax import config\nc = config.default()\n"
  ),
  'f = np.load("embedded.npz")                                      # rows of all; '
  "label -1, weight 1 where there is none": "import json, numpy as np\n",
  'table = pq.read_table("embedded.parquet")                        # captions, label, '
  "weight, key: null where there is none": ("import json, numpy as np, pyarrow.parquet as pq\n"),
  'records = ArrayRecordDataSource("embedded.array_record")         # array_record.'
  "python.array_record_data_source": (
    "import json, safetensors.numpy\n"
    "from array_record.python.array_record_data_source import ArrayRecordDataSource\n"
  ),
}
# What a file's blocks need that none of them makes, and what must then be there: siglax commands,
# one a line.
EVALUATION = """
train --config configs/x.py --workdir runs/x
export --from runs/x --format hf --out exported/x
"""
SERVING = "train --config configs/x.py --workdir runs/quickstart"
TOWERS = """
train --config configs/x.py --workdir runs/source
export --from runs/source --format big_vision --out webli_en_b16_224.npz
"""
MORE_TOWERS = """
export --from runs/x --format hf-vision --out exported/v
embed --from runs/x --data train.parquet --out embedded.npz --texts
embed --from runs/x --data train.parquet --out embedded.parquet --texts
export --from runs/x --format stablehlo --out exported/quickstart
train --config configs/clip_rn50.py:smoke=True --workdir runs/rn50 \
  --config.text.strip_punctuation=True --config.total_steps=2
export --from runs/rn50 --format open_clip --out exported/o
train --config configs/clip_b32.py:smoke=True --workdir runs/clip --config.total_steps=2
export --from runs/clip --format hf --out exported/clip
export --from runs/clip --format hf-vision --out exported/clip-vision
export --from runs/clip --format hf-text --out exported/clip-text
"""


class Block(NamedTuple):
  file: str
  language: str
  text: str

  @property
  def first(self) -> str:
    return self.text.partition("\n")[0]

  def commands(self) -> list[str]:
    """One word after the other as a shell reads them; what stands in [brackets] is given."""
    joined = self.text.replace("\\\n", " ")
    words = [re.sub(r"\[(--.*?)\]", r"\1", line) for line in joined.splitlines()]
    lines = [shlex.split(part, comments=True) for line in words for part in line.split("&&")]
    return [
      shlex.join(line) if not line[0].startswith(("gcloud", "export")) else " ".join(line)
      for line in lines
      if line
    ]


def blocks(file: str) -> list[Block]:
  found = re.findall(r"^```(\w*)\n(.*?)^```$", (ROOT / file).read_text(), re.S | re.M)
  return [Block(file, language, text) for language, text in found]


def test_every_block_is_known():
  assert sorted(FILES) == sorted(
    str(f.relative_to(ROOT))
    for f in (ROOT / "README.md", *ROOT.glob("docs/*.md"), *ROOT.glob("launch/*.md"))
  )
  unknown, seen = [], []
  for block in (block for file in FILES for block in blocks(file)):
    if block.language == "python":
      seen.append(block.first)
      unknown += [block.first] if block.first not in PYTHON else []
      compile(block.text, block.file, "exec")
    elif block.first in TEXTS:
      seen.append(block.first)
    else:
      assert block.language == "", f"{block.file}: a block in {block.language}"
      seen += block.commands()
      unknown += [
        c for c in block.commands() if c not in RUN and c not in CLUSTER and c not in OTHERS
      ]
  assert not unknown, f"add to a table of {__file__}: {unknown}"
  assert set(seen) == {*RUN, *CLUSTER, *OTHERS, *TEXTS, *PYTHON}, (
    "the docs no longer have all that the tables list"
  )


@pytest.mark.parametrize("command", CLUSTER)
def test_what_needs_a_cluster_is_parsed_and_its_config_checked(command):
  words = shlex.split(command)
  words = (
    words[words.index("train") + 1 :] if "train" in words else words[words.index("--config") :]
  )
  known, rest = cli.parse(["train", *words])
  config = config_lib.load(f"{ROOT}/{known.config}", cli.overrides(rest))
  checks.validate(config, CLUSTER[command])
  path, tokenizer = config.data[0]["path"], config.text.tokenizer
  assert (path, tokenizer) in (
    ("PATH", "FILE.model"),
    ("s3://bucket/shards/{00000..00331}.tar", "s3://bucket/32k.model"),
    ("train.parquet", "32k.model"),
  )


def test_extras_that_the_docs_install_are_there():
  setup = (ROOT / "setup.py").read_text()
  for file in (*FILES, "launch/tpu_vm.sh"):
    for extra in re.findall(r"\.?(?:siglax)?\[(\w+)\]'", (ROOT / file).read_text()):
      assert f'"{extra}": [' in setup, (file, extra)


@pytest.fixture
def folder(tmp_path, monkeypatch):
  """A clone with the files that the docs name, all of them small."""
  for name in ("configs", "launch"):
    shutil.copytree(ROOT / name, tmp_path / name)
  shutil.copy(ROOT / "tests/tiny.py", tmp_path / "configs/x.py")
  shutil.copytree(ROOT / "tests/golden/hf_siglip", tmp_path / "google/siglip-base-patch16-224")
  shutil.copytree(ROOT / "tests/golden/hf_siglip2", tmp_path / "google/siglip2-base-patch16-naflex")
  shutil.copy(text_lib.SHIPPED["shapes"], tmp_path / "FILE.model")
  source = Shapes(examples=80, image_size=32)
  pictures = [cv2.imencode(".png", source[i]["image"])[1].tobytes() for i in range(len(source))]
  captions = [source[i]["captions"][0] for i in range(len(source))]
  for name, rows in (
    ("mine", slice(0, 64)),
    ("held_out", slice(64, 80)),
    ("pictures", slice(0, 16)),
    ("train", slice(0, 32)),
  ):
    pq.write_table(
      pa.table({"image": pictures[rows], "caption": captions[rows]}), tmp_path / f"{name}.parquet"
    )
    (tmp_path / name).mkdir()
    for i, (picture, caption) in enumerate(zip(pictures[rows], captions[rows])):
      (tmp_path / name / f"{i}.png").write_bytes(picture)
      (tmp_path / name / f"{i}.txt").write_text(caption)
  _write_evaluated(tmp_path, pictures)
  for name in ("a.jpg", "b.jpg", "a.png", "b.png", "pictures/c.png", "photos/d.jpg"):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    cv2.imwrite(str(tmp_path / name), source[len(name)]["image"])
  (tmp_path / "pictures/c.txt").write_text("a picture")
  monkeypatch.chdir(tmp_path)
  return tmp_path


def _write_evaluated(folder, pictures):
  """The data that docs/evaluation.md names: pets of two classes, and captions of pictures."""
  labels = pa.array([i % 2 for i in range(len(pictures))])
  table = pa.table({"image": pictures, "label": labels})
  for name in ("pets_train", "pets"):
    pq.write_table(
      table.replace_schema_metadata({"classes": "cat,dog"}), folder / f"{name}.parquet"
    )
  (folder / "names.json").write_text('{"cars": ["bus"], "zero_shot": ["cat", "dog"]}')
  (folder / "val2017").mkdir()
  for i, picture in enumerate(pictures[:4]):
    (folder / "val2017" / f"{i}.png").write_bytes(picture)
  rows = [
    {"filename": f"{i}.png", "caption": "a red dog", "negative_caption": "a red cat"}
    for i in range(4)
  ]
  (folder / "swap_att.jsonl").write_text("\n".join(map(json.dumps, rows)))
  queries = [f"val2017/{i}.png,{sign}red,{i % 2}" for i, sign in enumerate("-+")]
  (folder / "queries.csv").write_text("\n".join(["filepath,caption,label", *queries]))


def run_command(command: str):
  words = [*shlex.split(command), *shlex.split(RUN[command])]
  if words[0] == "siglax":
    assert cli.main(words[1:]) == 0, command
  else:
    environment = {
      **os.environ,
      "PYTHONPATH": str(ROOT),
      "SIGLAX": f"{sys.executable} -m siglax.commands.cli",
      "SIGLAX_PLATFORM": "cpu",
    }
    subprocess.run(
      ["bash", "-c", f"{command} {RUN[command]}"], env=environment, check=True, timeout=300
    )


def run_python(block: Block, there: dict, folder, monkeypatch):
  code = PYTHON[block.first] + block.text
  imports = [n for n in ast.walk(ast.parse(code)) if isinstance(n, (ast.Import, ast.ImportFrom))]
  names = {
    x.split(".")[0]
    for n in imports
    for x in ([n.module] if isinstance(n, ast.ImportFrom) else [a.name for a in n.names])
  }
  if any(importlib.util.find_spec(name) is None for name in names):
    other = os.environ.get("DOCS_PYTHON")
    has_all = (
      f"import importlib.util as u, sys; sys.exit(not all(map(u.find_spec, {sorted(names)})))"
    )
    if other and not subprocess.run([other, "-c", has_all]).returncode:
      subprocess.run(
        [other, "-c", code],
        check=True,
        env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
      )
    return
  exec(compile(code, block.file, "exec"), there)
  monkeypatch.chdir(folder)


@pytest.fixture
def server():
  """Takes the context of a server, which then ends with the test."""
  with contextlib.ExitStack() as stack:
    yield stack


@pytest.mark.slow
@pytest.mark.parametrize("file", FILES)
def test_the_blocks_run_as_printed(file, folder, server, monkeypatch):
  before, late = {
    "docs/towers.md": (TOWERS, MORE_TOWERS),
    "docs/evaluation.md": (EVALUATION, ""),
    "docs/runtimes.md": ("train --config configs/x.py --workdir runs/x", ""),
    "docs/serving.md": (SERVING, ""),
  }.get(file, ("", ""))
  for line in before.split("\n"):
    assert not line or cli.main(line.split()) == 0
  if file == "docs/ablations.md":
    studies_by_hand.write(folder / "studies/losses")
  there = {}
  for block in blocks(file):
    if block.language == "python":
      run_python(block, there, folder, monkeypatch)
    elif block.first not in TEXTS:
      for command in block.commands():
        if command in RUN:
          if command == S3[0]:
            server.enter_context(servers.s3())
          run_command(command)
        if command.startswith("siglax export --from runs/x "):
          for line in filter(None, late.split("\n")):
            assert cli.main(line.split()) == 0
  if file == "README.md":  # what it made of captions alone opens as docs/towers.md tells
    opens = next(block for block in blocks("docs/towers.md") if '"exported/x"' in block.text)
    run_python(
      opens._replace(text=opens.text.replace("exported/x", "exported/mine")),
      there,
      folder,
      monkeypatch,
    )
