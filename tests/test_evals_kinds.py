"""The kinds of siglax.evals that learn, count neighbours or ask probabilities, against numpy in
float64, on 8 devices whose shards are padded.
"""

import numpy as np
import pytest

from siglax import config as config_lib
from siglax import evals
from siglax.evals import linear
from siglax.evals import linear_probe
from siglax.evals import ranking

SPEC = {"source": "shapes"}
NAMES = ("acc1", "acc5", "mean_per_class_recall")


class Examples:
  """Picture i is filled with pixels[i]; `known` says whether labels are known without pictures."""

  classnames = None

  def __init__(self, pixels, labels=None, captions=None, known=True):
    self._pixels, self._labels, self._captions, self._known = pixels, labels, captions, known

  def __len__(self):
    return len(self._pixels)

  def __getitem__(self, i):
    label = None if self._labels is None else self._labels[i]
    image = np.full((2, 2, 3), self._pixels[i], np.uint8)
    return {"image": image, "captions": self.captions(i), "label": label}

  def captions(self, i):
    return [] if self._captions is None else self._captions[i]

  def labels(self):
    return ([None] * len(self) if self._labels is None else self._labels) if self._known else None


class Embedder:
  """A picture filled with i is zimg[i], a text is ztxt[text]."""

  scale, bias = 7.0, -1.5

  def __init__(self, zimg, ztxt=None):
    self._zimg, self._ztxt = zimg, ztxt

  def images(self, get, count):
    return self._zimg[[int(get(i)[0, 0, 0]) for i in range(count)]]

  def texts(self, texts):
    return np.stack([self._ztxt[text] for text in texts])


def unit(rng, *shape):
  x = rng.normal(size=shape).astype(np.float32)
  return x / np.linalg.norm(x, axis=-1, keepdims=True)


def make_config(task, **fields):
  config = config_lib.default()
  config.eval.tasks = ({"name": "x", "data": SPEC, **task},)
  for field, value in fields.items():
    config_lib.set_field(config, field.replace("__", "."), value)
  return config


def opener(data, others):
  return lambda spec: others[spec["path"]] if "path" in spec else data


def run(task, data, embedder, other=None, **fields):
  """(metrics, facts, values of each example), of which the mean is the metric."""
  config, facts, each = make_config(task, **fields), {}, {}
  evals.validate_tasks(config)
  open_data = opener(data, {"other": other})
  evals.check(config, open_data)
  found = evals.run(config, embedder, open_data, facts=facts, each=each)
  found, facts, each = (
    {name.removeprefix("eval/").removeprefix("x/"): value for name, value in values.items()}
    for values in (found, facts, each)
  )
  for name, values in each.items():
    assert values.dtype == np.float32 and values.mean() == pytest.approx(found[name], rel=1e-5)
  return found, facts, each


OTHER = {"source": "parquet", "path": "other"}


@pytest.fixture(scope="module")
def seven():
  """(embedder, data, train): rows around the centres of classes 3, 5, … 15; data lacks the last.

  There are 101 pictures to learn from and 43 to name, of which the first three are copies.
  """
  rng = np.random.default_rng(1)
  labels = np.r_[np.arange(7), rng.integers(0, 7, 94), rng.integers(0, 6, 43)]
  z = unit(rng, 7, 6)[labels] + 1.2 * unit(rng, len(labels), 6)
  z /= np.linalg.norm(z, axis=1, keepdims=True)
  labels[101:104], z[101:104], z[20] = labels[7:10] % 6, z[7:10], z[7]
  train, test = np.arange(101), np.arange(101, 144)
  named = (2 * labels + 3).tolist()
  return Embedder(z), Examples(test, named[101:]), Examples(train, named[:101]), z, np.array(named)


def metrics_of(scores, labels, known, prefix):
  """Of scores [n, classes]: a stable sort, and recall of the classes that occur."""
  named = np.array(known)[np.argsort(-scores, axis=1, kind="stable")]
  right = named[:, 0] == labels
  return {
    f"{prefix}acc1": right.mean(),
    f"{prefix}acc5": (named[:, :5] == labels[:, None]).any(axis=1).mean(),
    f"{prefix}mean_per_class_recall": np.mean([right[labels == c].mean() for c in set(labels)]),
  }


def votes(z, train_z, train_labels, known, k, weights):
  """A row of numpy at a time: the k nearest, and what each class gets of them."""
  found = np.zeros((len(z), len(known)))
  for row, x in enumerate(np.float64(z)):
    distance = 1 - train_z @ x
    near = np.argsort(distance, kind="stable")[:k]
    if weights == "uniform":
      weight = np.ones(k)
    elif np.any(distance[near] < 1e-6):
      weight = np.float64(distance[near] < 1e-6)
    else:
      weight = 1 / distance[near]
    for i, w in zip(near, weight):
      found[row, known.index(train_labels[i])] += w
  return found


@pytest.mark.parametrize("weights", ["uniform", "distance"])
@pytest.mark.parametrize("k", [1, 6])
def test_knn_counts_the_votes_of_the_nearest(seven, k, weights):
  embedder, data, train, z, labels = seven
  known = sorted(set(labels[:101].tolist()))
  found, facts, each = run(
    {"kind": "knn", "train": OTHER, "k": k, "weights": weights}, data, embedder, train
  )
  scores = votes(z[101:], z[:101], labels[:101], known, k, weights)
  assert found == pytest.approx(metrics_of(scores, labels[101:], known, "knn_"), abs=1e-6)
  assert 0.3 < found["knn_acc1"] < 1 and facts["chance/knn_acc5"] == 5 / 7
  assert sorted(each) == ["knn_acc1", "knn_acc5"] and each["knn_acc1"].shape == (43,)
  few = {"examples": 9, "train_examples": 60, "train": OTHER, "kind": "knn", "k": k}
  found, *_ = run(few, data, embedder, train)
  scores = votes(z[101:110], z[:60], labels[:60], known, k, "distance")
  assert found == pytest.approx(metrics_of(scores, labels[101:110], known, "knn_"), abs=1e-6)


@pytest.mark.parametrize("weights", ["uniform", "distance"])
def test_knn_equals_scikit_learn(seven, weights):
  neighbors = pytest.importorskip("sklearn.neighbors")
  embedder, data, train, z, labels = seven
  classifier = neighbors.KNeighborsClassifier(6, metric="cosine", weights=weights)
  predicted = classifier.fit(z[:101], labels[:101]).predict(z[101:])
  task = {"kind": "knn", "train": OTHER, "k": 6, "weights": weights}
  _, _, each = run(task, data, embedder, train)
  np.testing.assert_array_equal(each["knn_acc1"], predicted == labels[101:])


def softmax(x):
  e = np.exp(x - x.max(axis=1, keepdims=True))
  return e / e.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("decay", [1e-4, 1e-2, 1.0])
def test_the_logistic_probe_is_where_the_gradient_is_zero(seven, decay):
  """The objective is strictly convex, so that is its only optimum."""
  *_, z, labels = seven
  z, y = np.float64(z[:101]), np.unique(labels[:101], return_inverse=True)[1]
  fit = linear.Logistic(z.astype(np.float32), y, 7)
  if decay < 1:
    fit(1.0)  # the next begins there
  W, b = fit(decay)
  error = (softmax(z @ W + b) - np.eye(7)[y]) / len(z)
  np.testing.assert_allclose(z.T @ error + decay * W, 0, atol=2e-4)
  np.testing.assert_allclose(error.sum(axis=0), 0, atol=2e-4)


def test_the_ridge_probe_solves_the_least_squares_of_more_rows(seven):
  """‖z W + b − t‖²/n + decay·‖W‖² as rows of one least-squares problem."""
  *_, z, labels = seven
  z, y = np.float64(z[:101]), np.unique(labels[:101], return_inverse=True)[1]
  n, d = z.shape
  rows = np.c_[np.r_[z, np.sqrt(n * 0.03) * np.eye(d)], np.r_[np.ones(n), np.zeros(d)]]
  target = np.r_[2 * np.eye(7)[y] - 1, np.zeros((d, 7))]
  want = np.linalg.lstsq(rows, target, rcond=None)[0]
  W, b = linear.Ridge(z.astype(np.float32), y, 7)(0.03)
  np.testing.assert_allclose(np.r_[W, b[None]], want, atol=1e-6)


@pytest.mark.parametrize("shots", [None, 4])
def test_the_linear_probe_chooses_its_decay_and_learns(seven, shots, caplog):
  embedder, data, train, z, labels = seven
  known = sorted(set(labels[:101].tolist()))
  task = {"kind": "linear_probe", "train": OTHER, "solver": "ridge", "held_out": 0.3}
  with caplog.at_level("INFO", logger="siglax"):
    found, facts, each = run(
      task | ({} if shots is None else {"shots": shots}), data, embedder, train
    )
  assert facts["chance/lp_acc1"] == 1 / 7 and sorted(each) == ["lp_acc1", "lp_acc5"]
  decay = float(caplog.messages[-1].split()[2].rstrip(","))
  if shots is None:  # learned from all of train again
    W, b = linear.Ridge(z[:101], np.searchsorted(known, labels[:101]), 7)(decay)
    want = metrics_of(z[101:] @ W + b, labels[101:], known, "lp_")
    assert found == pytest.approx(want, abs=1e-6)
  again, *_ = run(task | ({} if shots is None else {"shots": shots}), data, embedder, train)
  assert again == found and found["lp_acc1"] > 0.3


def test_held_out_pictures_and_shots_are_of_each_class_and_apart():
  y = np.repeat([0, 1, 2], [40, 10, 25])
  learned, held = linear_probe._split(y, 0.2, None, 5, np.random.default_rng(0))
  assert not set(learned) & set(held)
  assert np.bincount(y[learned]).tolist() == [5, 5, 5]
  assert np.bincount(y[held]).tolist() == [8, 2, 5]
  other, _ = linear_probe._split(y, 0.2, None, 5, np.random.default_rng(1))
  assert set(other) != set(learned)
  learned, held = linear_probe._split(y, 0.2, None, None, np.random.default_rng(0))
  assert sorted([*learned, *held]) == list(range(75))
  with pytest.raises(ValueError, match="shots=9: class 1 of train has 10 examples, of which 2 are"):
    linear_probe._split(y, 0.2, None, 9, np.random.default_rng(0))
  with pytest.raises(ValueError, match="held_out=0.1 leaves none of the 4 examples of train"):
    linear_probe._split(np.arange(4), 0.1, None, None, np.random.default_rng(0))
  learned, held = linear_probe._split(y, 0.2, 1e-3, None, np.random.default_rng(0))
  assert len(learned) == 75 and not len(held)


@pytest.mark.parametrize("peak", [0, 37, 96])
def test_the_search_finds_the_peak_with_few_fits(peak):
  tried = []

  def accuracy(decay):
    tried.append(decay)
    return -abs(np.log10(decay) - np.log10(linear_probe.DECAYS[peak]))

  assert linear_probe.best_decay(accuracy) == linear_probe.DECAYS[peak]
  assert len(tried) == len(set(tried)) <= 15


def pairs_of(z, others):
  return np.float64(z) @ np.float64(others).T


def captioned(count, width, seed):
  """(embedder, data) of pictures with one to three captions, a few with none; and both arrays."""
  rng = np.random.default_rng(seed)
  counts = rng.integers(0, 4, count)
  counts[:2] = 1, 3
  captions = [[f"{i} {k}" for k in range(n)] for i, n in enumerate(counts)]
  zimg, ztxt = unit(rng, count, width), {}
  for i, texts in enumerate(captions):
    for text in texts:
      z = zimg[i] + 0.8 * unit(rng, width)
      ztxt[text] = z / np.linalg.norm(z)
  keep = np.flatnonzero(counts)
  first = np.stack([ztxt[captions[i][0]] for i in keep])
  return Embedder(zimg, ztxt), Examples(range(count), None, captions), zimg[keep], first


def test_alignment_and_uniformity(monkeypatch):
  monkeypatch.setattr(ranking, "MAX_SIMILARITIES", 60)
  embedder, data, zimg, ztxt = captioned(45, 5, 2)
  found, _, each = run({"kind": "alignment", "t": 3.0, "alpha": 1.5}, data, embedder)
  want = {"alignment": np.mean(np.linalg.norm(np.float64(zimg) - ztxt, axis=1) ** 1.5)}
  for name, z in (("image", zimg), ("text", ztxt)):
    n = len(z)
    apart = [np.sum((np.float64(z[i]) - z[j]) ** 2) for i in range(n) for j in range(n) if i != j]
    want[f"uniformity_{name}"] = np.log(np.mean(np.exp(-3 * np.array(apart))))
  assert found == pytest.approx(want, rel=1e-5) and list(each) == ["alignment"]
  assert len(each["alignment"]) == len(zimg) < 45


@pytest.mark.parametrize("block", [None, 13])
def test_calibration(monkeypatch, block):
  monkeypatch.setattr(ranking, "MAX_SIMILARITIES", 60)
  embedder, data, zimg, ztxt = captioned(45, 5, 3)
  size = block or 16
  found, facts, each = run({"kind": "calibration", "block": block}, data, embedder, batch_size=16)
  brier, nll, p_all, y_all, weight = [], [], [], [], []
  for start in range(0, len(zimg), size):
    x = 7 * pairs_of(zimg[start : start + size], ztxt[start : start + size]) - 1.5
    p, y = 1 / (1 + np.exp(-x)), np.eye(len(x))
    brier += np.mean((p - y) ** 2, axis=1).tolist()
    nll += np.mean(-np.log(np.where(y == 1, p, 1 - p)), axis=1).tolist()
    p_all += p.ravel().tolist()
    y_all += y.ravel().tolist()
    weight += [1 / len(x)] * x.size
  p, y, weight = np.array(p_all), np.array(y_all), np.array(weight) / len(zimg)
  ece = 0
  for b in range(15):
    inside = (p >= b / 15) & (p < (b + 1) / 15)
    if share := weight[inside].sum():
      mean = lambda values: np.average(values[inside], weights=weight[inside])
      ece += share * abs(mean(p) - mean(y))
  want = {"ece": ece, "brier": np.mean(brier), "nll": np.mean(nll)}
  assert found == pytest.approx(want, rel=1e-4) and facts["batch/ece"] == size
  np.testing.assert_allclose(each["nll"], nll, rtol=1e-4)
  assert sorted(each) == ["brier", "nll"] and ece > 0.05


def test_compositionality_counts_a_tie_and_a_diverged_model_as_wrong():
  rng = np.random.default_rng(4)
  counts = rng.integers(2, 5, 21)
  captions = [[f"{i} {k}" for k in range(n)] for i, n in enumerate(counts)]
  ztxt = {text: unit(rng, 4) for texts in captions for text in texts}
  ztxt["3 1"] = ztxt["3 0"]
  ztxt["5 1"] = np.full(4, np.nan, np.float32)
  zimg, data = unit(rng, 21, 4), Examples(range(21), None, captions)
  found, facts, each = run({"kind": "compositionality"}, data, Embedder(zimg, ztxt))
  right = []
  for i, texts in enumerate(captions):
    scores = [float(np.float64(zimg[i]) @ ztxt[text]) for text in texts]
    right.append(all(scores[0] > score for score in scores[1:]))
  assert each["acc"].tolist() == right and found["acc"] == np.mean(right) > 0
  assert facts["chance/acc"] == pytest.approx(np.mean(1 / counts))
  assert not right[3] and not right[5]


def test_composed_queries_pass_their_own_picture_over():
  """A red and a blue square and circle: red square − red + blue finds blue square."""
  zimg = np.float32([[1, 0, 1, 0], [0, 1, 1, 0], [1, 0, 0, 1], [0, 1, 0, 1]]) / np.sqrt(2)
  texts = {"red": 0, "blue": 1, "square": 2, "circle": 3}
  ztxt = {name: np.eye(4, dtype=np.float32)[k] for name, k in texts.items()}
  # Picture 0 is there twice; labels name the pictures that are wanted.
  data = Examples([0, 0, 1, 2, 3], [0, 0, 1, 2, 3])
  queries = Examples([0, 0, 3], [1, 2, 2], [["-red", "+ blue"], ["circle"], ["red"]])
  task = {"kind": "composed", "queries": OTHER, "text_scale": 1.0}
  found, facts, each = run(task, data, Embedder(zimg, ztxt), queries)
  # The last: blue circle + red is as near to itself, passed over, and then to red circle.
  assert each["composed_recall@1"].tolist() == [1, 1, 1] and found["composed_recall@5"] == 1
  # Two of five pictures are the first query's own, and one the last's.
  assert facts["chance/composed_recall@1"] == pytest.approx((1 / 3 + 1 / 3 + 1 / 4) / 3)
  wrong = Examples([0, 0, 3], [3, 2, 2], [["-red", "+ blue"], ["circle"], ["red"]])
  found, _, each = run(task, data, Embedder(zimg, ztxt), wrong)
  assert each["composed_recall@1"].tolist() == [0, 1, 1] and found["composed_recall@5"] == 1


def brute_composed(zquery, zimg, labels, wanted, own, k):
  hits = []
  for z, label, passed in zip(zquery, wanted, own):
    order = [i for i in np.argsort(-(zimg @ z), kind="stable") if i not in passed]
    hits.append(any(labels[i] == label for i in order[:k]))
  return hits


def test_composed_equals_brute_force():
  rng = np.random.default_rng(6)
  zimg, pixels = unit(rng, 40, 5), np.r_[np.arange(40), 3, 3, 17]
  labels = rng.integers(0, 9, len(pixels))
  queries, words = rng.integers(0, 40, 25), [f"word {k}" for k in range(6)]
  ztxt = dict(zip(words, unit(rng, 6, 5)))
  signs, said = rng.integers(0, 2, (25, 2)) * 2 - 1, rng.integers(0, 6, (25, 2))
  captions = [
    [f"{'-' if s < 0 else ''}{words[w]}" for s, w in zip(*row)] for row in zip(signs, said)
  ]
  wanted = rng.integers(0, 9, 25)
  task = {"kind": "composed", "queries": OTHER}
  data, other = Examples(pixels, labels.tolist()), Examples(queries, wanted.tolist(), captions)
  _, _, each = run(task, data, Embedder(zimg, ztxt), other)
  z = [
    np.float64(zimg[q]) + 2 * sum(s * np.float64(ztxt[words[w]]) for s, w in zip(*row))
    for q, row in zip(queries, zip(signs, said))
  ]
  own = [set(np.flatnonzero(pixels == q)) for q in queries]
  for k in (1, 5, 10):
    want = brute_composed(z, np.float64(zimg[pixels]), labels, wanted, own, k)
    assert each[f"composed_recall@{k}"].tolist() == want


@pytest.mark.parametrize("max_similarities", [2**24, 7])
def test_nearest_equals_a_stable_sort(monkeypatch, max_similarities):
  monkeypatch.setattr(ranking, "MAX_SIMILARITIES", max_similarities)
  rng = np.random.default_rng(0)
  dyadic = lambda *shape: rng.integers(-2, 3, size=shape).astype(np.float32)
  for draw in (dyadic, lambda *shape: unit(rng, *shape)):
    queries, items = draw(11, 5), draw(29, 5)
    want = np.argsort(-(queries.astype(np.float64) @ items.T), axis=1, kind="stable")
    np.testing.assert_array_equal(ranking.nearest(queries, items, 6), want[:, :6])
  items[:] = np.nan
  np.testing.assert_array_equal(ranking.nearest(queries, items, 3), np.tile(np.arange(3), (11, 1)))


NO_LABELS, FOUR = Examples(range(4)), Examples(range(4), [0, 1, 1, 2])
PROBE, KNN = {"kind": "linear_probe", "train": OTHER}, {"kind": "knn", "train": OTHER, "k": 4}


@pytest.mark.parametrize(
  "task, data, other, message",
  [
    (PROBE, NO_LABELS, FOUR, "example 0 of data has no label; name a column of labels in data."),
    (KNN, FOUR, NO_LABELS, "example 0 of train has no label; name a column of labels in train."),
    (KNN, FOUR, Examples(range(9)), "example 0 of train has no label"),
    (KNN, Examples(range(4), known=False), FOUR, "example 0 of data has no label"),
    (
      PROBE,
      FOUR,
      Examples(range(4), [0, 1, 1, 0]),
      "class 2 of data has no example in train, which has 2 classes",
    ),
    (KNN | {"k": 5}, FOUR, FOUR, "k=5 is more than the 4 examples of train; give 4 or fewer"),
    (KNN | {"train_examples": 3}, FOUR, FOUR, "k=4 is more than the 3 examples of train"),
    (
      {"kind": "compositionality"},
      Examples(range(2), None, [["a", "b"], ["a"]]),
      None,
      "example 1 of data has 1 captions; it needs the true one",
    ),
    (
      {"kind": "composed", "queries": OTHER},
      FOUR,
      Examples(range(2), [0, 1], [["-"], ["a"]]),
      "example 0 of queries has the captions ['-']; it needs words",
    ),
    (
      {"kind": "composed", "queries": OTHER},
      NO_LABELS,
      Examples(range(2), [0, 1], [["a"], ["a"]]),
      "example 0 of data has no label; a query has that of the pictures it wants",
    ),
    (
      {"kind": "composed", "queries": OTHER},
      FOUR,
      Examples(range(2), [0, 3], [["a"], ["a"]]),
      "example 1 of queries has label 3, which no other picture of data has",
    ),
    (
      {"kind": "alignment"},
      Examples([0], None, [["a"]]),
      None,
      "uniformity needs two examples with captions, there is 1",
    ),
    ({"kind": "calibration"}, NO_LABELS, None, "none of the 4 examples has a caption"),
  ],
)
def test_what_data_lack_is_said_in_one_line_before_anything_runs(task, data, other, message):
  config = make_config(task)
  evals.validate_tasks(config)
  with pytest.raises(ValueError) as error:
    evals.check(config, opener(data, {"other": other}))
  assert str(error.value).startswith("config.eval.tasks.0 ('x'): ")
  assert message in str(error.value) and "\n" not in str(error.value)


def test_a_class_that_only_pictures_tell_is_refused_before_it_learns():
  data, train = Examples(range(4), [0, 1, 1, 2], known=False), Examples(range(4), [0, 1, 1, 0])
  config, open_data = make_config(KNN), opener(data, {"other": train})
  evals.check(config, open_data)
  with pytest.raises(ValueError, match="class 2 of data has no example in train"):
    evals.run(config, Embedder(unit(np.random.default_rng(0), 4, 3)), open_data)


@pytest.mark.parametrize(
  "fields, message",
  [
    ({"shots": 2}, "shots=2: class 0 of train has 1 examples, of which 0 are held out"),
    ({"held_out": 0.1}, "held_out=0.1 leaves none of the 4 examples of train"),
    ({"shots": 1, "weight_decay": 0.1}, None),
  ],
)
def test_too_few_labels_are_told_before_anything_runs(fields, message):
  config = make_config({**PROBE, "train": OTHER, **fields})
  open_data = opener(Examples(range(3), [0, 1, 2]), {"other": Examples(range(4), [0, 1, 1, 2])})
  if message is None:
    evals.check(config, open_data)
    return
  with pytest.raises(ValueError, match=message):
    evals.check(config, open_data)


def test_all_labels_of_zero_shot_are_looked_at_where_they_can_be_read_alone():
  config = make_config({"kind": "zero_shot", "classnames": ("a", "b")})
  labels = [0, 1] * 30 + [2]
  with pytest.raises(ValueError, match="example 60 has label 2, but the 2 classnames need 0 to 1"):
    evals.check(config, opener(Examples(range(61), labels), {}))
  evals.check(config, opener(Examples(range(61), labels, known=False), {}))
  # The first pictures are looked at all the same: one may be broken.
  broken = Examples(range(40), [0, 1] * 20)
  broken._pixels = [*range(5), "no picture", *range(34)]
  with pytest.raises(ValueError, match="no picture"):
    evals.check(config, opener(broken, {}))


def test_calibration_needs_a_loss_with_probabilities():
  config = make_config({"kind": "calibration"}, loss__name="softmax")
  with pytest.raises(ValueError, match="config.loss.name='softmax' gives a pair alone no probabil"):
    evals.check(config, opener(Examples(range(2), None, [["a"]] * 2), {}))


@pytest.mark.parametrize(
  "task, message",
  [
    ({"kind": "knn"}, "config.eval.tasks.0.train is missing; knn needs it"),
    (
      {"kind": "knn", "train": {"source": "parquet"}},
      "config.eval.tasks.0.train.path is missing; source 'parquet' needs it",
    ),
    (
      {"kind": "linear_probe", "train": {"source": "embeddings", "path": "x.npz"}},
      'config.eval.tasks.0.train.source="embeddings" has no pictures',
    ),
    (
      {**PROBE, "solver": "ridges"},
      "config.eval.tasks.0.solver='ridges' is unknown; known are logistic, ridge",
    ),
    ({**PROBE, "held_out": 0.0}, "config.eval.tasks.0.held_out=0.0 must lie in (0, 1)"),
  ],
)
def test_fields_of_the_kinds_are_checked(task, message):
  with pytest.raises(ValueError) as error:
    evals.validate_tasks(make_config(task))
  assert message in str(error.value) and "\n" not in str(error.value)
