"""The defaults that depend on other fields."""

from __future__ import annotations

import math

from ml_collections import ConfigDict


def resolve(config: ConfigDict, text, same_label=lambda: 0.0) -> ConfigDict:
  """The config with the defaults that depend on others filled in: what is run, and written to the run folder.

  text: a TextProcessor, which gives vocab_size and eos_id. The sigmoid's bias starts at log(1 / batch_size), the
  log-odds of a pair (−10 near a batch of 22k, as in SigLIP), and so does the focal loss's; the softmax has none, and
  its scale is capped at 100; the hinge has none either, and its scale plays no part.
  same_label: () → the share of pairs of training examples with equal labels. Where these match, and it is above 0, the
  bias starts at log(p / (1 − p)) with p = 1 / batch_size + (1 − 1 / batch_size) · share.
  """
  config = config.copy_and_resolve_references()
  config.model.text.eos_id = text.eos_id
  if config.model.text.vocab_size is None:
    config.model.text.vocab_size = text.vocab_size
  check_vocabulary(config, text)
  if config.loss.name in ("sigmoid", "focal"):
    if config.loss.bias_init is None:
      B, share = config.batch_size, same_label() if config.loss.positives == "label" else 0.0
      match, other = 1 / B + (1 - 1 / B) * share, (1 - 1 / B) * (1 - share)
      # Where all match there are no odds: as if one of the B² pairs did not.
      config.loss.bias_init = math.log(match / max(other, 1 / B**2)) if share else -math.log(B)
  elif config.loss.bias_init is not None:
    raise ValueError(
        f'config.loss.bias_init={config.loss.bias_init} has no place in config.loss.name="{config.loss.name}"; leave it None'
    )
  if config.loss.name == "softmax" and config.loss.scale_max is None:
    config.loss.scale_max = 100.0
  config.model.bias_init = config.loss.bias_init
  return config


def check_vocabulary(config: ConfigDict, text):
  """ValueError when the tokenizer, if there is one, has more tokens than the text tower."""
  if text is not None and config.model.text.vocab_size < text.vocab_size:
    raise ValueError(
        f"config.model.text.vocab_size={config.model.text.vocab_size} is below the {text.vocab_size} tokens of {text.tokenizer}"
    )
