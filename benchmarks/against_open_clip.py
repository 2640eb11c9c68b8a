"""Seconds of a training step on this machine's CPU cores: siglax, and open_clip.

    python benchmarks/against_open_clip.py

The towers are those of benchmarks/step.py without a config, batch 128, float32. Those of open_clip
are built as its SigLIP models are: the image tower by timm with its MAP head, the text tower and
SigLipLoss of open_clip, and AdamW of PyTorch, fused. The two take turns, each in a process of its
own with all cores. Prints the median step of each turn, and the ratio of the medians over turns.
Needs open_clip_torch. It uses no GPU; benchmarks/gpu.py compares losses there.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time

STEP = pathlib.Path(__file__).with_name("step.py")


def main():
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--turns", type=int, default=3)
  parser.add_argument("--repeat", type=int, default=10, help="steps of a turn")
  parser.add_argument("--open-clip", action="store_true", help=argparse.SUPPRESS)
  options = parser.parse_args()
  if options.open_clip:
    print(json.dumps(open_clip_step(options.repeat)))
    return
  repeat = ("--repeat", str(options.repeat))
  programs = {"siglax": (STEP, *repeat), "open_clip": (__file__, "--open-clip", *repeat)}
  told = {name: [] for name in programs}
  for _ in range(options.turns):
    for name, words in programs.items():
      told[name].append(_run(words))
  times = {name: [of["seconds_per_step"] for of in found] for name, found in told.items()}
  for name, found in times.items():
    turns = ", ".join(f"{seconds:.3f}" for seconds in found)
    print(f"{name}: {told[name][0]['parameters']:,} parameters, seconds a step {turns}")
  siglax, other = (statistics.median(found) for found in times.values())
  print(f"open_clip / siglax: {other / siglax:.2f}")


def _run(words) -> dict:
  made = subprocess.run(
    [sys.executable, *words],
    env={**os.environ, "JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""},
    stdout=subprocess.PIPE,
    text=True,
    check=True,
  )
  return json.loads(made.stdout.splitlines()[-1])


def open_clip_step(repeat: int) -> dict:
  """As benchmarks/step.py tells of its own: parameters and median seconds a step."""
  from open_clip.loss import SigLipLoss
  from open_clip.transformer import TextTransformer
  from timm.models.vision_transformer import VisionTransformer
  import torch
  from torch.nn import functional

  torch.manual_seed(0)
  image = VisionTransformer(
    img_size=32,
    patch_size=4,
    embed_dim=192,
    depth=6,
    num_heads=3,
    class_token=False,
    global_pool="map",
    num_classes=0,
  )
  text = TextTransformer(
    context_length=16,
    vocab_size=4096,
    width=192,
    heads=3,
    layers=4,
    output_dim=192,
    no_causal_mask=True,
    pool_type="last",
    proj_bias=True,
  )
  scale = torch.nn.Parameter(torch.tensor(10.0).log())
  bias = torch.nn.Parameter(torch.tensor(-10.0))
  parameters = [*image.parameters(), *text.parameters(), scale, bias]
  optimizer = torch.optim.AdamW(parameters, lr=1e-3, betas=(0.9, 0.95), fused=True)
  loss = SigLipLoss()
  pictures = torch.randint(0, 256, (128, 3, 32, 32), dtype=torch.uint8)
  tokens = torch.randint(0, 4096, (128, 16))
  times = []
  for _ in range(repeat + 1):
    start = time.perf_counter()
    optimizer.zero_grad()
    zimg = functional.normalize(image(pictures.float() / 127.5 - 1), dim=-1)
    ztxt = functional.normalize(text(tokens), dim=-1)
    loss(zimg, ztxt, scale.exp(), bias).backward()
    optimizer.step()
    times.append(time.perf_counter() - start)
  return {
    "parameters": sum(x.numel() for x in parameters),
    "seconds_per_step": statistics.median(times[1:]),
  }


if __name__ == "__main__":
  main()
