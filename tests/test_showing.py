"""`siglax evaluate --html`: what the page shows is what numpy counts."""

import re

import numpy as np
import pytest
import test_evals

from siglax import evals
from siglax.commands import cli
from siglax.evals import showing

import pages
import saved
import tiny

NAMES = ("cat", "dog <b>", "fish & chips")


def test_confusions_are_counted():
  rng = np.random.default_rng(0)
  labels, predicted = rng.integers(0, 3, 50), rng.integers(0, 3, 50)
  page = pages.Page(showing.classes(labels, predicted, NAMES))
  matrix, confusions, classes = page.tables
  assert matrix[0] == ["", *NAMES]
  for k, (name, row) in enumerate(zip(NAMES, matrix[1:], strict=True)):
    want = [np.sum((labels == k) & (predicted == j)) for j in range(3)]
    assert row == [name, *(str(n) if n else "" for n in want)]
  counts = [int(row[2]) for row in confusions[1:]]
  assert counts == sorted(counts, reverse=True) and sum(counts) == np.sum(labels != predicted)
  (a, b, n, share) = confusions[1]
  of_class = labels == NAMES.index(a)
  assert int(n) == np.sum(of_class & (predicted == NAMES.index(b)))
  assert float(share) == pytest.approx(100 * int(n) / np.sum(of_class), abs=0.05)
  recalls = [float(row[1]) for row in classes[1:]]
  want = [100 * np.mean(predicted[labels == k] == k) for k in range(3)]
  assert recalls == pytest.approx(sorted(want, reverse=True), abs=0.05)


def test_many_classes_have_a_list_and_two_ends():
  rng, n = np.random.default_rng(1), showing.MATRIX + 1
  labels = np.repeat(np.arange(n), 4)
  predicted = np.where(rng.random(4 * n) < 0.5, labels, rng.integers(0, n, 4 * n))
  page = pages.Page(showing.classes(labels, predicted, [f"c{k}" for k in range(n)]))
  confusions, best, worst = page.tables
  recall = {f"c{k}": 100 * np.mean(predicted[labels == k] == k) for k in range(n)}
  assert len(confusions) <= 1 + showing.CONFUSIONS
  ends = sorted(recall.values())
  assert [float(row[1]) for row in best[1:]] == ends[: -showing.CLASSES - 1 : -1]
  assert [float(row[1]) for row in worst[1:]] == ends[: showing.CLASSES]
  assert all(recall[row[0]] == float(row[1]) for row in best[1:] + worst[1:])


def test_queries_show_the_nearest_and_mark_the_true_one():
  rng = np.random.default_rng(2)
  owner = np.repeat(np.arange(9), 2)
  zimg, ztxt = test_evals.unit(rng, 9, 4), test_evals.unit(rng, 18, 4)
  captions = [f"text <{t}>" for t in range(18)]
  picture = lambda i: np.full((8, 8, 3), 10 * i, np.uint8)
  text = showing.retrieval(zimg, ztxt, owner, captions, picture, "r")
  figures = re.findall(r"<figure( class=\"true\")?>.*?alt=\"picture (\d+)\".*?<b>(.*?)</b>", text)
  queries = showing.spread(len(ztxt))
  assert queries[0] == 0 and queries[-1] == 17 and len(queries) == showing.QUERIES
  cosines = ztxt.astype(float) @ zimg.T.astype(float)
  for q, t in enumerate(queries):
    shown = figures[q * showing.ANSWERS : (q + 1) * showing.ANSWERS]
    order = np.argsort(-cosines[t], kind="stable")
    assert [int(i) for _, i, _ in shown] == list(order[: showing.ANSWERS])
    assert [c for _, _, c in shown] == [f"{cosines[t, i]:.3f}" for i in order[: showing.ANSWERS]]
    assert [bool(mark) for mark, _, _ in shown] == [i == owner[t] for i in order[: showing.ANSWERS]]
    place = np.flatnonzero(order == owner[t])[0] + 1
    assert f'text &lt;{t}&gt;</p>\n<p class="quiet">the true one is at place {place}<' in text
  lists = re.findall(r"picture (\d+): the true one is at place (\d+)<ol>(.*?)</ol>", text)
  for i, place, items in lists:
    order = np.argsort(-cosines[:, int(i)], kind="stable")
    assert int(place) == 1 + min(np.flatnonzero(owner[order] == int(i)))
    found = re.findall(r"<li( class=true)?>\S+ text &lt;(\d+)&gt;", items)
    assert [int(t) for _, t in found] == list(order[: showing.ANSWERS])
    assert [bool(mark) for mark, _ in found] == [
      owner[t] == int(i) for t in order[: showing.ANSWERS]
    ]
  assert f"Mean cosine of 18 pairs {np.mean(cosines[np.arange(18), owner]):.3f}" in text


def test_a_diverged_model_is_shown_too():
  z = np.full((4, 2), np.nan, np.float32)
  picture = lambda i: np.zeros((8, 8, 3), np.uint8)
  text = showing.retrieval(z, z, np.arange(4), list("abcd"), picture, "r")
  assert "They are not finite." in text


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  """The folder of a run that has not been trained."""
  folder = tmp_path_factory.mktemp("run")
  saved.write(tiny.get_config(), folder)
  return folder


def test_the_page_of_a_run(run, tmp_path, capsys):
  out = tmp_path / "page.html"
  assert cli.main(["evaluate", "--from", str(run), "--html", str(out)]) == 0
  printed, text = capsys.readouterr().out, out.read_text()
  assert pages.is_alone(text) and len(text) < 5_000_000 and f"wrote {out}" in printed
  page = pages.Page(text)
  of_metrics = [table for table in page.tables if table[0] == ["metric", "value", "chance"]]
  told = {row[0]: row[1:] for table in of_metrics for row in table[1:]}
  config = tiny.get_config()
  assert set(told) == {name.rpartition("/")[2] for name in evals.metric_names(config)}
  for name in evals.metric_names(config):
    value = re.search(rf"{re.escape(name)} +([\d.]+)", printed)[1]
    assert told[name.rpartition("/")[2]][0] == value
  matrix = page.tables[1]
  assert sum(int(n) for row in matrix[1:] for n in row[1:] if n) == 24
  assert text.count("<figure") == showing.QUERIES * (showing.ANSWERS + 1)
  ids = [value for name, value in page.attributes if name == "id"]
  assert len(ids) == len(set(ids))


def test_a_page_that_cannot_be_written_is_one_line(run, tmp_path, capsys):
  (tmp_path / "a.txt").touch()
  for name, message in (
    ("none/a.html", "there is no folder"),
    ("a.txt", "exists and is no .html file"),
  ):
    page = tmp_path / name
    assert cli.main(["evaluate", "--from", str(run), "--html", str(page)]) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert f"--html {page}" in said and message in said
