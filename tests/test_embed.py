"""`siglax embed` and LiT training from what it writes: exact values, no image tower in the step,
the same losses.
"""

import json
import pathlib
import pickle
import shutil

from array_record.python.array_record_data_source import ArrayRecordDataSource
import cv2
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.numpy

import siglax
from siglax import config as config_lib
from siglax import data
from siglax import losses
from siglax.commands import cli
from siglax.costs import plan
from siglax.data import elements
from siglax.data import embedding_files
from siglax.data import embeddings
from siglax.data import files
from siglax.data import labels
from siglax.data import loading
from siglax.data import sources
from siglax.data.text import TextProcessor
from siglax.devices import flops
from siglax.devices import mesh as mesh_lib
from siglax.runs import checkpoint
from siglax.runs import digest as digest_lib
from siglax.runs import folder as folder_lib
from siglax.runs import records
from siglax.training import loop
from siglax.training import program
from siglax.training import run as run_lib
from siglax.training import step

import tiny

FORMATS = (".npz", ".parquet", ".array_record")
SHAPES = {"source": "shapes", "examples": 64, "image_size": 16}
FREEZE = (("image/.*", None), (".*", 1.0))


def configured(**fields):
  """The tiny config, with an image tower none of whose parameters has the shape of one of the text
  tower.
  """
  c = tiny.get_config(steps=6)
  c.eval.tasks, c.log.tensorboard = (), False
  c.model.image.width, c.model.image.mlp_dim, c.model.embed_dim = 24, 40, 20
  for field, value in fields.items():
    config_lib.override(c, field.replace("__", "."), str(value))
  return c


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """A run with an image tower to freeze."""
  workdir = tmp_path_factory.mktemp("towers") / "run"
  run = run_lib.Run(configured(), workdir)  # as it is before the first step
  workdir.mkdir()
  folder_lib.write(run.workdir, run.config, run.text)
  checkpoints = checkpoint.Checkpoints(workdir, run.config.checkpoint)
  checkpoints.save(0, run.initial_state(), {})
  checkpoints.wait()
  checkpoints.close()
  return workdir


@pytest.fixture(scope="module")
def embedded(folder):
  """{ending: file} of its embeddings of the training data: one by the command, its rows in the
  other formats.
  """
  found = {ending: folder.parent / f"embedded{ending}" for ending in FORMATS}
  words = [
    "embed",
    "--from",
    str(folder),
    "--data",
    "shapes:examples=64,image_size=16",
    "--out",
    str(found[".npz"]),
  ]
  assert cli.main([*words, "--texts", "--tokens", "--batch-size", "24"]) == 0
  description, rows = strangers(found[".npz"])
  for ending in (".parquet", ".array_record"):
    write(
      found[ending],
      [row | {"text_embeddings": np.stack(row["text_embeddings"])} for row in rows],
      **description,
    )
  return found


def lit(folder, file=None, **fields):
  """LiT on the tower of a run: from a file of embeddings, or with the tower in the step."""
  c = configured(train__ema=0.5, **fields)
  c.data = (SHAPES,) if file is None else ({"source": "embeddings", "path": str(file)},)
  c.model.init_from, c.optim.lr_multipliers = f"{folder}:img", FREEZE
  return c


def rows_of(n, rng):
  """Rows with every kind of value, the floats of any bits that are finite."""

  def floats(*shape):
    bits = rng.integers(0, 2**32, shape, np.uint32)
    return np.where(np.isfinite(bits.view(np.float32)), bits, 1).astype(np.uint32).view(np.float32)

  for i in range(n):
    captions = [f"caption {i} “{j}”, κ" for j in range(i % 3)]
    row = {
      "image_embedding": floats(5),
      "image_tokens": floats(3, 4),
      "text_embeddings": floats(len(captions), 5),
    }
    rest = {"label": i, "weight": 0.1 + i, "key": f"file{i}.jpg"} if i % 2 else {}
    yield row | {"captions": captions} | rest


DESCRIPTION = {"digest": "x", "width": 5, "image": {}, "classnames": ["cat", "dog, hot"]}


def write(file, rows, at_a_time=4, **changed):
  writer = embedding_files.WRITERS[file.suffix](file)
  for start in range(0, len(rows), at_a_time):
    writer.write(rows[start : start + at_a_time])
  writer.close({**DESCRIPTION, **changed})
  return str(file)


def strangers(file):
  """(description, rows) as docs/towers.md tells to read them, without siglax."""
  if file.suffix == ".npz":
    f = np.load(file)
    texts = iter(f["text_embeddings"])
    plain = {k: json.loads(f[k].tobytes()) for k in ("siglax", "captions", "key")}
    names = ("image_embedding", "image_tokens", "label", "weight", "captions", "key")
    columns = [
      *(f[k] for k in names[:2]),
      *(f[k].tolist() for k in names[2:4]),
      plain["captions"],
      plain["key"],
    ]
    rows = [dict(zip(names, values)) for values in zip(*columns)]
    return plain["siglax"], [
      row | {"text_embeddings": [next(texts) for _ in row["captions"]]} for row in rows
    ]
  if file.suffix == ".parquet":
    table = pq.read_table(file)
    return json.loads(pq.read_metadata(file).metadata[b"siglax"]), table.to_pylist()
  records = ArrayRecordDataSource(str(file))
  headers = [
    json.loads(r[8 : 8 + int.from_bytes(r[:8], "little")])["__metadata__"] for r in records
  ]
  rows = [safetensors.numpy.load(r) | json.loads(h["row"]) for r, h in zip(records, headers[:-1])]
  return json.loads(headers[-1]["siglax"]), rows


@pytest.mark.parametrize("ending", FORMATS)
def test_a_stranger_reads_the_values_to_the_bit(ending, tmp_path, monkeypatch):
  rows, file = list(rows_of(11, np.random.default_rng(0))), tmp_path / f"a{ending}"
  monkeypatch.setattr(embedding_files, "ROW_GROUP_BYTES", 600)
  description, read = strangers(pathlib.Path(write(file, rows)))
  assert description == DESCRIPTION and len(read) == len(rows)
  # What an array has where a row has none
  none = {"label": -1, "weight": 1.0} if ending == ".npz" else {}
  for got, want in zip(read, rows):
    for name in ("image_embedding", "image_tokens", "text_embeddings"):
      x = np.asarray(got[name], np.float32).reshape(want[name].shape)
      np.testing.assert_array_equal(x.view(np.uint32), want[name].view(np.uint32), err_msg=name)
    assert got["captions"] == want["captions"] and got.get("key") == want.get("key")
    assert [got.get(k) for k in ("label", "weight")] == [
      want.get(k, none.get(k)) for k in ("label", "weight")
    ]


@pytest.mark.parametrize("ending", FORMATS)
def test_the_source_reads_several_files_at_random_and_can_be_pickled(ending, tmp_path, monkeypatch):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  rows = list(rows_of(13, np.random.default_rng(1)))
  write(tmp_path / f"a{ending}", rows[:5])
  write(tmp_path / f"b{ending}", rows[5:])
  for limit in (files.MEMORY_BYTES, 0):  # parquet: in memory, then mapped
    monkeypatch.setattr(files, "MEMORY_BYTES", limit)
    source = sources.open_source({"source": "embeddings", "path": f"{tmp_path}/*{ending}"})
    assert len(list(tmp_path.glob("cache/siglax/*.arrow"))) == (
      2 if ending == ".parquet" and not limit else 0
    )
    copy = pickle.loads(pickle.dumps(source))
    if ending != ".array_record":
      in_memory = limit or ending == ".npz"
      assert (source.held_bytes >= 13 * 5 * 4) if in_memory else source.held_bytes == 0
    assert len(source) == 13 and source.classnames == ("cat", "dog, hot")
    for i in np.random.default_rng(2).permutation(13).tolist():
      got, want = copy[i], rows[i]
      assert got["image_embedding"].dtype == np.float32
      np.testing.assert_array_equal(
        got["image_embedding"].view(np.uint32), want["image_embedding"].view(np.uint32)
      )
      assert got["captions"] == want["captions"]
      assert [got.get(k) for k in ("label", "key")] == [want.get(k) for k in ("label", "key")]
      assert got.get("weight", 1.0) == want.get("weight", 1.0)
    with pytest.raises(IndexError):
      source[13]


def test_files_that_are_none_of_ours_are_refused_in_one_line(tmp_path):
  rows = list(rows_of(3, np.random.default_rng(0)))
  np.savez(tmp_path / "other.npz", a=np.ones(3))
  pq.write_table(pa.table({"image": [b"x"]}), tmp_path / "other.parquet")
  (tmp_path / "other.array_record").write_bytes(b"x" * 100)
  for ending in FORMATS:
    whole = pathlib.Path(write(tmp_path / f"whole{ending}", rows)).read_bytes()
    (tmp_path / f"cut{ending}").write_bytes(whole[: len(whole) * 2 // 3])
  found = [
    (tmp_path / f"{name}{ending}", "is no ") for name in ("other", "cut") for ending in FORMATS
  ]
  for path, message in [
    *found,
    (tmp_path / "a.txt", "no such file"),
    (__file__, "must end in .npz"),
  ]:
    with pytest.raises(ValueError) as e:
      sources.open_source({"source": "embeddings", "path": str(path)}, "config.data.0")
    assert (
      str(e.value).startswith("config.data.0.path=")
      and message in str(e.value)
      and "\n" not in str(e.value)
    )
  write(tmp_path / "second.npz", rows, digest="y")
  with pytest.raises(
    ValueError,
    match="whole.npz and .*second.npz differ in their digest; give them as separate specs",
  ):
    sources.open_source(
      {"source": "embeddings", "path": f"{tmp_path}/whole.npz,{tmp_path}/second.npz"}
    )


def test_embed_writes_what_the_tower_says(folder, embedded):
  tower, shapes = siglax.load(folder), sources.open_source(SHAPES)
  pictures = [shapes[i]["image"] for i in range(64)]
  zimg = tower.embed_images(pictures)
  want = {
    "image_embedding": zimg,
    "image_tokens": np.asarray(jax.jit(tower.model.image_tokens)(tower.params, np.stack(pictures))),
    "text_embeddings": tower.embed_texts(
      [c for i in range(64) for c in shapes[i]["captions"]]
    ).reshape(64, 2, 20),
  }
  description, rows = strangers(embedded[".npz"])
  image = {"size": 16, "mean": [0.5] * 3, "std": [0.5] * 3, "resize": "bilinear", "fit": "squash"}
  assert (
    description["image"] == image
    and description["tower"] == str(folder)
    and description["width"] == 20
  )
  assert (description["examples"], description["skipped"], description["tokens"]) == (
    64,
    0,
    [4, 24],
  )
  assert [row["captions"] for row in rows] == [shapes[i]["captions"] for i in range(64)]
  for name, values in want.items():
    np.testing.assert_allclose(
      np.array([row[name] for row in rows]), values, atol=2e-6, err_msg=name
    )
  assert not [p.name for p in folder.parent.iterdir() if p.name.startswith(".")]


def fails(capsys, *words):
  """The last line of a command that fails, and all of its output."""
  assert cli.main(list(map(str, words))) == 1
  printed = capsys.readouterr().err
  return printed.strip().splitlines()[-1], printed


def test_broken_pictures_are_named_skipped_and_judged(folder, tmp_path, capsys, caplog):
  png = lambda i: cv2.imencode(".png", np.full((20, 16, 3), i, np.uint8))[1].tobytes()
  images = [b"no picture" if i in (3, 17) else png(i) for i in range(20)]
  captions, labels = [f"c{i}" for i in range(20)], list(range(20))
  table = pa.table({"image": images, "caption": captions, "label": labels, "weight": [0.5] * 20})
  pq.write_table(table.replace_schema_metadata({"classes": "a,b"}), tmp_path / "a.parquet")
  words = (
    "embed",
    "--from",
    f"{folder}:img",
    "--out",
    tmp_path / "z.array_record",
    "--dtype",
    "bfloat16",
    "--data",
  )
  line, printed = fails(capsys, *words, tmp_path / "a.parquet")
  assert (
    "1 of the first 4 examples are broken, the last, example 3: " in line
    and "max_bad_fraction=0.01 (of 20)" in line
  )
  assert not list(tmp_path.glob("*z*"))
  caplog.clear()
  assert cli.main(list(map(str, (*words, f"{tmp_path}/a.parquet:max_bad_fraction=0.1")))) == 0
  assert "18 embeddings of width 20, 2 skipped" in capsys.readouterr().out
  source = sources.open_source({"source": "embeddings", "path": str(tmp_path / "z.array_record")})
  kept = [i for i in range(20) if i not in (3, 17)]
  rows = [source[i] for i in range(18)]
  assert [(row["captions"], row["label"], row["weight"]) for row in rows] == [
    ([f"c{i}"], i, 0.5) for i in kept
  ]
  assert source.classnames == ("a", "b")
  assert (source.description["skipped"], source.description["dtype"]) == (2, "bfloat16")
  z = siglax.load(folder).embed_images([images[i] for i in kept])
  got = np.stack([row["image_embedding"] for row in rows])
  np.testing.assert_allclose(got, z, atol=2**-8)
  np.testing.assert_array_equal(got, got.astype(ml_dtypes.bfloat16).astype(np.float32))


def test_embed_refuses_in_one_line(folder, tmp_path, capsys):
  (tmp_path / "there.npz").touch()
  for words, message in (
    (("--out", tmp_path / "there.npz"), "there.npz exists; give a path that does not"),
    (("--out", tmp_path / "a.txt"), "a.txt must end in .npz, .parquet, .array_record"),
    (
      ("--out", tmp_path / "a.parquet", "--dtype", "bfloat16"),
      "--dtype bfloat16 has no place in .parquet",
    ),
    (("--out", tmp_path / "a.npz", "--from", f"{folder}:txt"), "has no image tower"),
    (("--out", tmp_path / "a.npz", "--from", f"{folder}:img", "--texts"), "has no text tower"),
    (
      ("--out", tmp_path / "a.npz", "--data", "none.parquet"),
      "--data DATA:path='none.parquet': no such file",
    ),
    (("--out", tmp_path / "there.npz" / "a.npz"), "cannot be written"),
    (("--out", tmp_path / "a.npz", "--batch-size", "0"), "--batch-size 0 must be at least 1"),
  ):
    line, printed = fails(
      capsys, "embed", "--from", folder, "--data", "shapes:examples=8,image_size=16", *words
    )
    assert message in line and "Traceback" not in printed
  assert [p.name for p in tmp_path.iterdir()] == ["there.npz"] and not (
    tmp_path / "there.npz"
  ).read_bytes()


def history(workdir):
  return [(r["step"], r["loss"]) for r in records.read(workdir) if "loss" in r]


@pytest.mark.slow
def test_the_losses_are_those_of_the_tower_in_the_step_and_resuming_repeats_them(
  folder, embedded, tmp_path
):
  ran, workdir, file = tmp_path / "ran", tmp_path / "embedded", embedded[".array_record"]
  fields = {"checkpoint__every_steps": 3}
  loop.train(lit(folder, **fields), ran)
  loop.train(lit(folder, file, **fields), workdir)
  whole, last = history(workdir), siglax.load(workdir).params
  assert [step for step, _ in whole] == [1, 2, 3, 4, 5, 6]
  np.testing.assert_allclose(whole, history(ran), rtol=1e-5)
  shutil.rmtree(workdir / "checkpoints" / "6")
  loop.train(lit(folder, file, **fields), workdir)
  assert history(workdir) == whole
  jax.tree.map(np.testing.assert_array_equal, siglax.load(workdir).params, last)
  # The average that is evaluated and exported holds the frozen tower itself.
  jax.tree.map(np.testing.assert_array_equal, last["image"], siglax.load(folder).params["image"])


@pytest.mark.parametrize("ending", FORMATS)
def test_batches_are_those_of_pictures_with_their_embeddings(ending, folder, embedded):
  text = TextProcessor(length=12)
  configs = lit(folder), lit(folder, embedded[ending], loader__threads=2)
  batches = [data.train_batches(c, text, start_step=3) for c in configs]
  pictures, precomputed = ([next(b) for _ in range(3)] for b in batches)
  for b in batches:
    b.close()
  shapes, (_, rows) = sources.open_source(SHAPES), strangers(embedded[ending])
  embedding_of = {
    shapes[i]["image"].tobytes(): row["image_embedding"] for i, row in enumerate(rows)
  }
  for want, got in zip(pictures, precomputed):
    for name in ("tokens", "label", "weight"):
      np.testing.assert_array_equal(got[name], want[name])
    np.testing.assert_array_equal(
      got["image_embedding"], [embedding_of[image.tobytes()] for image in want["image"]]
    )


def made(config):
  return program.Program(config_lib.resolve(config, TextProcessor()), epoch_examples=64)


def test_a_step_from_embeddings_computes_the_text_tower_and_the_loss_alone(folder, embedded):
  p = made(lit(folder, embedded[".npz"]))
  B, d, params, batch = 16, 20, p.abstract_state.params, p.abstract_batch()
  tokens, z = batch["tokens"], batch["image_embedding"]
  loss = losses.make(p.config.loss, p.mesh, mesh_lib.BATCH_AXES)
  value = lambda zimg, ztxt, scale, bias, weights: loss(zimg, ztxt, scale, bias, weights=weights)
  with jax.set_mesh(p.mesh):
    total = flops.count(p.update(), p.abstract_state, batch)
    text = flops.count(
      lambda params, t, dz: jax.vjp(lambda x: p.model.embed_text(x, t), params)[1](dz),
      params,
      tokens,
      z,
    )
    alone = flops.count(jax.value_and_grad(value, (0, 1, 2, 3)), z, z, 1.0, 1.0, batch["weight"])
  assert 6 * B * B * d <= alone <= 6 * B * B * d + 6 * B * B  # the floor, and the weights
  means = 2 * (2 * B * d)  # Σ w·z of both sides
  accuracy = 2 * B * (B // 8) * d  # of each image among the texts of its device
  assert total == text + alone + means + accuracy
  assert p.model_flops() == text == 3 * flops.count(p.model.embed_text, params, tokens)
  ran = made(lit(folder))
  assert ran.model_flops() == text + flops.count(
    p.model.embed_image, params, ran.abstract_batch()["image"]
  )


def equations(jaxpr):
  for eqn in jaxpr.eqns:
    yield eqn
    for value in eqn.params.values():
      for body in value if isinstance(value, (tuple, list)) else (value,):
        if hasattr(inner := getattr(body, "jaxpr", body), "eqns"):
          yield from equations(inner)


@pytest.mark.parametrize("precomputed", [True, False])
@pytest.mark.parametrize("microbatch", [None, 2])  # of 1, activations have shapes of parameters
def test_frozen_parameters_have_no_gradients_moments_or_average(
  folder, embedded, precomputed, microbatch
):
  fields = {"batch_size": 32, "train__microbatch": microbatch}
  p = made(lit(folder, embedded[".npz"] if precomputed else None, **fields))
  state, of = p.abstract_state, lambda tree: {x.shape for x in jax.tree.leaves(tree) if x.ndim}
  frozen = of(state.params["image"]) - of({k: v for k, v in state.params.items() if k != "image"})
  assert (1, 24, 40) in frozen and len(frozen) > 10
  assert not of((state.opt_state, state.ema)) & frozen
  gradients = step.make_value_and_grad(p.config, p.model, p.mesh, p.frozen)
  with jax.set_mesh(p.mesh):
    jaxpr, (_, grads) = jax.make_jaxpr(gradients, return_shape=True)(
      state.params, p.abstract_batch(), state.step
    )
  assert not jax.tree.leaves(grads["image"])
  # What a scan over layers would add up
  of_layers = {shape[1:] for shape in frozen if len(shape) > 2}
  for eqn in equations(jaxpr.jaxpr):
    if eqn.primitive.name in ("transpose", "add_any", "mul", "dot_general", "add", "while", "scan"):
      assert not {getattr(v.aval, "shape", ()) for v in eqn.outvars} & (frozen | of_layers)


def test_the_compiled_step_only_hands_frozen_parameters_on(folder, embedded):
  p = made(lit(folder, embedded[".npz"]))
  with jax.set_mesh(p.mesh):
    compiled = p.update().lower(p.abstract_state, p.abstract_batch()).compile()
  lines = [
    line.strip()
    for line in compiled.as_text().splitlines()
    if "f32[1,24,40]" in line.partition(" metadata=")[0]
  ]
  made_there = [line for line in lines if " = f32[1,24,40]" in line]
  assert made_there and all("} parameter(" in line or "} copy(" in line for line in made_there), (
    made_there
  )


def test_plan_compiles_such_a_step_without_the_data(folder):
  report = plan.plan(lit(folder, "not/there.npz"), 8)
  p = made(lit(folder, "not/there.npz"))
  assert report["flops"]["per_step"] == p.model_flops()
  # Labels, which this loss does not read, left out
  assert report["bytes_per_device"]["batch"] == 2 * (20 * 4 + 12 * 4 + 4)
  assert report["bytes_per_device"]["frozen"] == sum(
    4 * x.size for x in jax.tree.leaves(p.abstract_state.params["image"])
  )


@pytest.mark.parametrize(
  "fields, message",
  [
    ({"model__image__dropout": 0.1}, "config.model.image.dropout=0.1 changes"),
    ({"model__image__lora_rank": 2}, "config.model.image.lora_rank=2 changes"),
    ({"train__patch_drop": 0.5}, "config.train.patch_drop=0.5 changes"),
    ({"model__init_from": None}, "config.model.init_from=None, but config.data has source"),
    (
      {"optim__lr_multipliers": ((".*", 1.0),)},
      "config.optim.lr_multipliers trains the image tower",
    ),
    (
      {"optim__lr_multipliers": (("image/norm/.*", 1.0), *FREEZE)},
      "config.optim.lr_multipliers trains the image tower",
    ),
    (
      {"model__embed_dim": 24},
      "config.data.0.path: its embeddings are 20 wide, but config.model.embed_dim is 24",
    ),
    (
      {"image__size": 24},
      "config.data.0.path: its pictures were embedded with image.size=16, config.image.size is 24",
    ),
    ({"image__mean": (0, 0, 0)}, "image.mean=[0.5, 0.5, 0.5], config.image.mean is [0, 0, 0]"),
    (
      {
        "eval__tasks": (
          {"kind": "loss", "name": "x", "data": {"source": "embeddings", "path": "a"}},
        )
      },
      "has no pictures",
    ),
  ],
)
def test_what_does_not_go_with_embeddings_is_one_line(fields, message, folder, embedded, tmp_path):
  c = lit(folder, embedded[".npz"])
  for field, value in fields.items():
    config_lib.override(c, field.replace("__", "."), str(value))
  with pytest.raises(ValueError) as e:
    run_lib.Run(c, tmp_path)
  assert message in str(e.value) and "\n" not in str(e.value)


def test_augmentation_of_a_recipe_has_no_effect_and_the_log_says_so(folder, embedded, caplog):
  text = TextProcessor(length=12)
  recipe = {"image__crop_min_area": 0.5, "image__flip": True}
  found = []
  for fields in ({}, recipe):
    c = lit(folder, embedded[".npz"], **fields)
    embeddings.validate(c)
    sources_of = data.open_data(c)
    embeddings.check(c, sources_of, embed_dim=20)
    batches = data.train_batches(c, text, sources=sources_of)
    found.append(next(batches))
    batches.close()
  for name in found[0]:
    np.testing.assert_array_equal(found[0][name], found[1][name])
  said = [r.getMessage() for r in caplog.records if "without effect" in r.getMessage()]
  assert said == [
    "without effect, since config.data holds embeddings: config.image.crop_min_area=0.5, "
    "config.image.flip=True"
  ]


@pytest.mark.parametrize("ending", FORMATS)
def test_rows_read_at_once_are_those_read_one_by_one(ending, tmp_path):
  """Of two sources mixed, with one to three captions, weights, and labels of different classes."""
  rows = [
    row | {"captions": [f"red {k}", " ", f"circle {k}", "blue"][: 1 + k % 4]}
    for k, row in enumerate(rows_of(40, np.random.default_rng(0)))
  ]
  files = (
    write(tmp_path / f"a{ending}", rows[:25]),
    write(tmp_path / f"b{ending}", rows[25:], classnames=None),
  )
  c = configured(batch_size=8)
  c.data = tuple({"source": "embeddings", "path": str(file), "weight": 1} for file in files)
  sources_of = data.open_data(c)
  text, firsts = TextProcessor(length=12), labels.first_labels(sources_of)
  loaders = [
    loading.ExampleLoader(k, source, first, False, c.image, text)
    for k, (source, first) in enumerate(zip(sources_of, firsts))
  ]
  made = elements.Elements(c, loaders)
  together = made.rows(7, 90)
  for row in range(90):
    one = made[7 + row]
    assert one.keys() == together.keys()
    for name, value in one.items():
      np.testing.assert_array_equal(together[name][row], value, err_msg=name)
      assert together[name].dtype == np.asarray(value).dtype
  assert {0, 1} == set(together["source"]) and len(set(together["label"])) > 10


def test_embeddings_are_filtered_when_they_are_read(tmp_path):
  rows = [
    {"image_embedding": np.full(5, i, np.float32), "captions": [str(i)], "label": i % 4}
    for i in range(20)
  ]
  c = configured(batch_size=8)
  spec = {"source": "embeddings", "path": write(tmp_path / "a.npz", rows), "label_in": (1, 2)}
  c.data = (spec,)
  sources_of = data.open_data(c)
  assert sources_of[0].description["width"] == 5
  batches = data.train_batches(c, TextProcessor(length=12), sources=sources_of)
  labels_of = np.concatenate([next(batches)["label"] for _ in range(5)])
  batches.close()
  assert set(labels_of) == {1, 2} and batches.filtered[0] > 5
  with pytest.raises(ValueError, match="max_pixels=9: source 'embeddings' has no pictures"):
    sources.open_source({**spec, "max_pixels": 9})


def test_pictures_and_embeddings_do_not_mix_and_another_tower_is_refused(
  folder, embedded, tmp_path
):
  c = lit(folder, embedded[".npz"])
  c.data += (SHAPES,)
  with pytest.raises(
    ValueError, match="config.data.1.source='shapes' has pictures, another spec .* has embeddings"
  ):
    embeddings.validate(c)
  description, rows = strangers(embedded[".npz"])
  plain = [{"image_embedding": row["image_embedding"], "captions": row["captions"]} for row in rows]
  other = write(tmp_path / "other.npz", plain, **{**description, "digest": "0" * 16})
  with pytest.raises(
    ValueError,
    match=r"embeddings are of another image tower \(.*run, 0{16}\) than this run's \(\w{16}\)",
  ):
    loop.train(lit(folder, other), tmp_path / "lit")


def test_the_digest_sees_every_bit_and_not_how_layers_are_stored(folder):
  tower = siglax.load(f"{folder}:img")
  layers = jax.tree.map(lambda x: x[0], tower.params["image"]["encoder"]["blocks"])
  apart = {"image": {**tower.params["image"], "encoder": {"blocks": {"0": layers}}}}
  digest = lambda params: digest_lib.image_tower(tower.model, params, tower.mesh)
  assert digest(apart) == digest(tower.params)
  last_bit = lambda x: np.eye(1, x.size, x.size - 1, dtype=np.uint32).reshape(x.shape)
  flip = lambda x: jnp.asarray(np.asarray(x).view(np.uint32) ^ last_bit(x))
  for path, _ in jax.tree_util.tree_leaves_with_path(tower.params["image"])[::12]:
    changed = lambda q, y: flip(y).view(jnp.float32) if q == path else y
    assert digest(
      {"image": jax.tree_util.tree_map_with_path(changed, tower.params["image"])}
    ) != digest(tower.params)


def test_a_row_that_is_not_finite_is_replaced(tmp_path):
  rows = [
    {"image_embedding": np.full(5, np.nan if i == 2 else i, np.float32), "captions": [str(i)]}
    for i in range(8)
  ]
  c = configured(batch_size=8)
  c.data = (
    {"source": "embeddings", "path": write(tmp_path / "a.npz", rows), "max_bad_fraction": 1},
  )
  batches = data.train_batches(c, TextProcessor(length=12))
  batch = next(batches)
  batches.close()
  assert batch.keys() == {"image_embedding", "tokens", "label", "weight"} and batch[
    "image_embedding"
  ].shape == (8, 5)
  assert np.isfinite(batch["image_embedding"]).all() and batches.bad == [1]
