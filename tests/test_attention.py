"""Fused attention: TPU's kernel against XLA's, in jax's interpreter; what is lowered for NVIDIA
GPUs and for TPUs, without one.
"""

import re
import types

import jax
from jax._src.cudnn import fused_attention_stablehlo
from jax.experimental.pallas import tpu as pltpu
import jax.numpy as jnp
import numpy as np
import pytest

from siglax import config as config_lib
from siglax.data.text import TextProcessor
from siglax.models import attention
from siglax.training import checks
from siglax.training import program as program_lib
from siglax.training import run as run_lib

import tiny

CPU = types.SimpleNamespace(platform="cpu", device_kind="cpu")
TPU = types.SimpleNamespace(platform="tpu", device_kind="TPU v5 lite")
H100 = types.SimpleNamespace(platform="gpu", device_kind="NVIDIA H100", compute_capability="9.0")
V100 = types.SimpleNamespace(platform="gpu", device_kind="Tesla V100", compute_capability="7.0")
MI300 = types.SimpleNamespace(platform="gpu", device_kind="MI300X", compute_capability="gfx942")


@pytest.mark.parametrize(
  "wanted, device, dtype, c, l, kernel",
  [
    ("auto", H100, "bfloat16", 64, 256, "cudnn"),
    ("auto", H100, "bfloat16", 72, 729, "cudnn"),
    ("auto", H100, "float32", 64, 256, "xla"),
    ("auto", H100, "bfloat16", 60, 256, "xla"),
    ("auto", H100, "bfloat16", 136, 256, "xla"),
    ("auto", H100, "bfloat16", 64, 64, "xla"),
    ("cudnn", H100, "bfloat16", 64, 64, "cudnn"),
    ("xla", H100, "bfloat16", 64, 256, "xla"),
    ("flash", H100, "bfloat16", 64, 256, "xla"),
    ("auto", V100, "bfloat16", 64, 256, "xla"),
    ("auto", MI300, "bfloat16", 64, 256, "xla"),
    ("auto", TPU, "bfloat16", 64, 256, "xla"),
    ("auto", TPU, "bfloat16", 72, 729, "flash"),
    ("auto", TPU, "bfloat16", 192, 1024, "xla"),
    ("auto", TPU, "bfloat16", 256, 1024, "flash"),
    ("flash", TPU, "bfloat16", 64, 16, "flash"),
    ("auto", CPU, "bfloat16", 64, 256, "xla"),
    ("cudnn", CPU, "bfloat16", 64, 256, "xla"),
  ],
)
def test_which_kernel(wanted, device, dtype, c, l, kernel):
  assert attention.choose(wanted, device, dtype, c, l) == kernel


def reference(q, k, v, causal, mask):
  """In float64 numpy."""
  q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
  x = np.einsum("nqhc,nlhc->nhql", q, k) / q.shape[-1] ** 0.5
  l = q.shape[1]
  allowed = np.tril(np.ones((l, l), bool)) if causal else np.ones((l, l), bool)
  allowed = allowed & (True if mask is None else mask[:, None, None])
  e = np.where(allowed, np.exp(x - x.max(axis=-1, keepdims=True)), 0)
  return np.einsum("nhql,nlhc->nqhc", e / e.sum(axis=-1, keepdims=True), v)


@pytest.mark.parametrize(
  "l, c, causal, masked",
  [(128, 64, False, False), (140, 24, False, True), (140, 24, True, False)],
)
def test_tpus_kernel_equals_xla_and_float64(monkeypatch, l, c, causal, masked):
  """With and without positions that fill up a tile."""
  monkeypatch.setattr(attention, "device", lambda: TPU)
  rng = np.random.default_rng(0)
  q, k, v, dy = (jnp.bfloat16(rng.normal(size=(2, l, 2, c))) for _ in range(4))
  mask = np.arange(l) < np.array([[l - 30], [l]]) if masked else None
  results = {}
  for kernel in ("flash", "xla"):
    f = lambda q, k, v, kernel=kernel: attention.attend(q, k, v, kernel, causal, mask)
    with pltpu.force_tpu_interpret_mode():
      y, pull_back = jax.vjp(f, q, k, v)
      results[kernel] = y, *pull_back(dy)
  np.testing.assert_allclose(
    np.float64(results["flash"][0]), reference(q, k, v, causal, mask), atol=2e-2
  )
  for got, want in zip(results["flash"], results["xla"]):
    got, want = np.float64(got), np.float64(want)
    assert got.shape == want.shape and np.abs(got - want).max() <= 1e-2 * np.abs(want).max()


def b16(**fields):
  """A step of B/16 at 256 px with two layers, without a device of its kind."""
  config = config_lib.load(f"{tiny.__file__}:steps=4")
  config.batch_size, config.image.size, config.text.length = 8, 256, 16
  config.train.dtype = "bfloat16"
  for tower in (config.model.image, config.model.text):
    tower.update(variant="B", width=None, heads=None, mlp_dim=None, depth=2)
  config.model.image.update(patch=16, pool="map", stem="patch", head="auto", position="learned")
  config.mesh.fsdp = 2
  for field, value in fields.items():
    config_lib.set_field(config, field.replace("__", "."), value)
  return config


def lowered(monkeypatch, device, config) -> str:
  monkeypatch.setattr(attention, "device", lambda: device)
  platform = {"gpu": "cuda"}.get(device.platform, device.platform)
  config = config_lib.resolve(config, TextProcessor())
  program = program_lib.Program(config, 64)
  with jax.set_mesh(program.mesh):
    traced = program.update().trace(program.abstract_state, program.abstract_batch())
    return traced.lower(lowering_platforms=(platform,)).as_text()


def logits(text: str) -> list[str]:
  """Float tensors [n, heads, 256, 256], and [n, heads, 1, 256, 256] as jax has them."""
  return re.findall(r"tensor<[\dx]*x12x(?:1x)?256x256x(?:bf16|f32)>", text)


@pytest.fixture
def cudnn(monkeypatch):
  """jax asks for the version of cuDNN while it traces, which a jaxlib without CUDA does not have.

  No public function lowers the call without.
  """
  monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", lambda: 91000)


def test_a_step_lowered_for_cuda_has_cudnns_kernel_and_no_logits(monkeypatch, cudnn):
  """With scanned layers, rematerialisation and micro-batches, on a mesh of eight devices."""
  config = b16(train__remat__image="dots", batch_size=16, train__microbatch=1)
  text = lowered(monkeypatch, H100, config)
  assert "@__cudnn$fmhaSoftmax(" in text and "@__cudnn$fmhaSoftmaxBackward(" in text
  assert not logits(text)


def test_a_kernel_whose_results_are_kept_does_not_run_again(monkeypatch, cudnn):
  calls = {}
  for remat in ("none", "attn_mlp", "full"):
    text = lowered(monkeypatch, H100, b16(train__remat__image=remat))
    calls[remat] = text.count("@__cudnn$fmhaSoftmax(")
  assert calls == {"none": 1, "attn_mlp": 1, "full": 2}


def test_a_step_lowered_for_tpu_has_pallas_kernels_and_no_logits(monkeypatch):
  text = lowered(monkeypatch, TPU, b16(train__attention="flash"))
  assert text.count("@tpu_custom_call") >= 3  # forward, and both of the backward pass
  assert not logits(text)


def test_xlas_kernel_has_the_logits(monkeypatch):
  """What the two tests before do not find is there without a fused kernel."""
  text = lowered(monkeypatch, H100, b16(train__attention="xla"))
  assert logits(text) and "__cudnn" not in text


@pytest.mark.parametrize(
  "l, causal, masked, kind",
  [
    (196, False, False, "NO_MASK"),
    (196, True, False, "CAUSAL"),
    (196, False, True, "PADDING"),
    (729, False, False, "PADDING"),
    (729, True, True, "PADDING_CAUSAL"),
  ],
)
def test_a_mask_and_an_odd_length_are_lengths_for_cudnn(
  monkeypatch, cudnn, l, causal, masked, kind
):
  """And no bias, which would be as large as the logits; value and gradients."""
  monkeypatch.setattr(attention, "device", lambda: H100)
  x = jax.ShapeDtypeStruct((2, l, 2, 72), jnp.bfloat16)
  mask = jax.ShapeDtypeStruct((2, l), jnp.bool) if masked else None
  f = lambda q, k, v, mask: attention.attend(q, k, v, "auto", causal, mask).astype("float32").sum()
  traced = jax.jit(jax.grad(f, (0, 1, 2))).trace(x, x, x, mask)
  text = traced.lower(lowering_platforms=("cuda",)).as_text()
  assert "@__cudnn$fmhaSoftmaxBackward(" in text and "ScaleBias" not in text
  assert set(re.findall(r"mask_type[^A-Z]*([A-Z_]+)", text)) == {kind}
  assert not re.search(rf"x({l}x{l}|{l + 1}x{l + 1})x", text)


@pytest.mark.parametrize(
  "fields, message",
  [
    ({"train.attention": "cudnn"}, 'needs config.train.dtype="bfloat16"; it is "float32"'),
    (
      {"train.attention": "cudnn", "train.dtype": "bfloat16", "model.image.heads": 4},
      r"a multiple of 8 and at most 128; it is 4 \(config.model.image\)",
    ),
    (
      {"train.attention": "flash", "train.dtype": "bfloat16", "model.text.width": 320},
      r"at most 128 or a multiple of it; it is 160 \(config.model.text\)",
    ),
  ],
)
def test_a_kernel_by_name_that_does_not_fit_is_one_line(fields, message):
  config = tiny.get_config()
  for name, value in fields.items():
    config_lib.set_field(config, name, value)
  with pytest.raises(ValueError, match=message):
    checks.validate(config, 8)


@pytest.mark.parametrize(
  "kernel, needed", [("cudnn", "an NVIDIA GPU of compute capability"), ("flash", "a TPU")]
)
def test_a_training_on_another_device_is_one_line(kernel, needed, tmp_path):
  config = tiny.get_config()
  config.train.update(attention=kernel, dtype="bfloat16")
  message = f'config.train.attention="{kernel}" needs {needed}.*; this device is "cpu"'
  with pytest.raises(ValueError, match=message):
    run_lib.Run(config, tmp_path)
