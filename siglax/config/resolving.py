"""The defaults that depend on other fields."""

from __future__ import annotations

from ml_collections import ConfigDict

from siglax.config import lookups


def resolve(config: ConfigDict, text, same_label=lambda: 0.0) -> ConfigDict:
  """The config with the defaults that depend on others filled in: what is run, and written to the
  run folder.

  text: a TextProcessor, which gives vocab_size, eos_id and what it does to texts. The loss declares
  whether there is a bias, where it starts, the cap of the scale and whether it needs float32
  (siglax/losses/loss.py).
  same_label: () → the share of pairs of training examples with equal labels, on which the bias
  depends where these match.
  """
  config = config.copy_and_resolve_references()
  fill_text(config, text)
  config.model.text.eos_id = text.eos_id
  if config.model.text.vocab_size is None:
    config.model.text.vocab_size = text.vocab_size
  check_vocabulary(config, text)
  loss = lookups.registry("loss").find(config.loss.name, "config.loss.name")
  config.loss.dtype = loss.dtype(config.loss.dtype, config.train.dtype, loss.options(config.loss))
  if loss.bias_init is None:
    if config.loss.bias_init is not None:
      raise ValueError(
        f"config.loss.bias_init={config.loss.bias_init} has no place in "
        f'config.loss.name="{loss.name}"; leave it None'
      )
    if config.loss.relative_bias:
      raise ValueError(
        f'config.loss.relative_bias=True has no place in config.loss.name="{loss.name}", which has '
        "no bias; set it to False"
      )
  elif config.loss.bias_init is None:
    share = same_label() if config.loss.positives == "label" else 0.0
    config.loss.bias_init = loss.bias_init(config.batch_size, share)
  if config.loss.scale_max is None and loss.scale_max is not None:
    config.loss.scale_max = loss.scale_max
  config.model.bias_init = config.loss.bias_init
  return config


def fill_text(config: ConfigDict, text):
  """Writes what is done to a text where config.text leaves it to the tokenizer; SigLIP's rules
  where there is none.
  """
  for field in ("lowercase", "strip_punctuation"):
    if config.text[field] is None:
      config.text[field] = True if text is None else getattr(text, field)


def check_vocabulary(config: ConfigDict, text):
  """ValueError when the tokenizer, if there is one, has more tokens than the text tower."""
  if text is not None and config.model.text.vocab_size < text.vocab_size:
    raise ValueError(
      f"config.model.text.vocab_size={config.model.text.vocab_size} is below the {text.vocab_size} "
      f"tokens of {text.tokenizer}"
    )
