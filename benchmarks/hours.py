"""Hours that `siglax plan --hours` tells of published trainings, beside those that they took.

    python benchmarks/hours.py

Each row runs the command for the chips, batch and examples of the publication. "MFU" is that of the
table in siglax/costs/budget.py: of open_clip, from its examples a second; of SigLIP, whose paper
has the days alone, from these, so that its row only checks the FLOPs. Sources: arXiv 2303.15343,
table 1 (32 TPU v4, 5 days, 9 billion examples, 224 pixels and 16 tokens); open_clip's
docs/PRETRAINED.md (128 A100 for about 36 hours, 4,600 GPU-hours; 176 A100, 10,700), LAION-400M of
407 million pairs, 32 epochs.
"""

from __future__ import annotations

import json
import subprocess
import sys

SIGLIP = (
  "--config configs/siglip_b16.py:examples=9000000000 --devices 32 --chips v4 "
  "--config.image.size=224 --config.text.length=16"
)
CLIP = "--chips A100-40 --examples 407000000"
# What it is, words of the command, chip-hours published.
RUNS = (
  ("SigLIP B/16, 32 TPU v4", SIGLIP, 32 * 5 * 24),
  ("open_clip B/32, 128 A100", f"--config configs/clip_b32.py --devices 128 {CLIP}", 4600),
  (
    "open_clip B/16, 176 A100",
    f"--config configs/clip_b16.py --devices 176 --batch 33792 {CLIP}",
    10700,
  ),
)


def main():
  print("| run | MFU | chip-hours planned | published | planned / published |")
  print("|---|---|---|---|---|")
  for what, words, published in RUNS:
    command = [sys.executable, "-m", "siglax.commands.cli", "plan", *words.split()]
    done = subprocess.run([*command, "--hours", "--json"], check=True, capture_output=True)
    (of,) = json.loads(done.stdout)["hours"].values()
    planned = of["chip_hours"]
    print(
      f"| {what} | {of['mfu']:.1%} | {planned:,.0f} | {published:,} | {planned / published:.2f} |",
      flush=True,
    )


if __name__ == "__main__":
  main()
