"""Where the right answer comes in a ranking by similarity: what every evaluation here counts."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

# Similarities held at a time: 64 MiB in float32, whatever the number of examples.
MAX_SIMILARITIES = 2**24
# Examples that a task's check looks at.
LOOKED_AT = 32


def ranks(
  queries: np.ndarray, items: np.ndarray, query_owner: np.ndarray, item_owner: np.ndarray
) -> np.ndarray:
  """The place, from 0, of each query's best own item when all items are sorted by similarity to the
  query.

  queries [Q, d], items [N, d]: float32; query_owner [Q], item_owner [N]: ints; an item is a query's
  own where they are equal, and each query needs at least one. Returns int32 [Q]. Equal similarities
  are ordered by lowest index, as by a stable sort, so a model whose embeddings are all equal scores
  chance. NaN counts as −∞. Computed on one device of this process, a few queries at a time; the
  last ones are padded to compile once.
  """
  chunk = max(1, min(len(queries), MAX_SIMILARITIES // len(items)))
  items, item_owner = jax.device_put((items, item_owner))
  found = []
  for start in range(0, len(queries), chunk):
    part = [x[start : start + chunk] for x in (queries, query_owner)]
    part = [np.pad(x, [(0, chunk - len(x))] + [(0, 0)] * (x.ndim - 1), mode="edge") for x in part]
    found.append(jax.device_get(_ranks(*jax.device_put(part), items, item_owner)))
  return np.concatenate(found)[: len(queries)]


@jax.jit
def _ranks(queries_qd, owner_q, items_nd, owner_n):
  similarity_qn = jnp.matmul(queries_qd, items_nd.T, precision=jax.lax.Precision.HIGHEST)
  # A comparison with NaN is false, which would put every answer of a diverged model first.
  similarity_qn = jnp.where(jnp.isnan(similarity_qn), -jnp.inf, similarity_qn)
  own_qn = owner_q[:, None] == owner_n[None, :]
  best_q1 = jnp.max(similarity_qn, axis=1, keepdims=True, where=own_qn, initial=-jnp.inf)
  first_q1 = jnp.argmax(own_qn & (similarity_qn == best_q1), axis=1, keepdims=True)
  earlier_qn = jnp.arange(owner_n.size)[None, :] < first_q1
  return jnp.sum(
    (similarity_qn > best_q1) | ((similarity_qn == best_q1) & earlier_qn), axis=1, dtype=jnp.int32
  )


def embed_images(examples, indices, embedder) -> tuple[np.ndarray, list[dict]]:
  """Embeddings [n, d] of the images at these indices, and the rest of each example (captions,
  label).

  The images that this process decodes bring the rest along; for those of other processes it is read
  here.
  """
  rest = {}

  def image(k):
    rest[k] = dict(examples[indices[k]])
    return rest[k].pop("image")

  zimg = embedder.images(image, len(indices))
  for k in set(range(len(indices))) - rest.keys():
    image(k)
  return zimg, [rest[k] for k in range(len(indices))]


def embed_captioned_images(examples, indices, embedder) -> tuple[np.ndarray, list[dict]]:
  """`embed_images` without the images that have no caption."""
  zimg, rest = embed_images(examples, indices, embedder)
  keep = [k for k, example in enumerate(rest) if example["captions"]]
  if not keep:
    raise _no_captions(len(rest))
  return zimg[keep], [rest[k] for k in keep]


def check_captions(data, examples: int | None):
  """ValueError when no example has a caption: looks for the first that has."""
  indices = first(data, examples)
  if not any(data[i]["captions"] for i in indices):
    raise _no_captions(len(indices))


def _no_captions(count: int) -> ValueError:
  return ValueError(f"none of the {count} examples has a caption; check the fields of data")


def first(data, examples: int | None) -> range:
  """Indices of the first `examples` examples, of all when None."""
  return range(len(data) if examples is None else min(examples, len(data)))
