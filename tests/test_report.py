"""`siglax report` on studies written by hand: tables against numpy, the page, and bad input."""

import csv
import json
import re
import shutil
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from siglax.commands import cli
from siglax.config import fields
from siglax.runs import each as each_lib
from siglax.runs import history
from siglax.runs import records
from siglax.studies import comparison
from siglax.studies import figures
from siglax.studies import folder as folder_lib
from siglax.studies import found
from siglax.studies import intervals
from siglax.studies import plots
from siglax.studies import report
from siglax.studies import tables

import pages
import studies_by_hand

ACC, DISTANCE, LOSS = "eval/zs/acc1", "eval/val/alignment", "eval/val/loss"


@pytest.fixture(scope="module")
def study(tmp_path_factory):
  """A study of 2 losses and 4 batch sizes, of whose last setting one run is finished; reported."""
  folder = tmp_path_factory.mktemp("studies") / "study"
  studies_by_hand.write(folder, losses=("sigmoid", "hinge"))
  assert cli.main(["report", str(folder)]) == 0
  return folder


@pytest.fixture
def small(tmp_path):
  """A study of 2 losses at one batch size, that a test may change."""
  studies_by_hand.write(tmp_path / "study", losses=("sigmoid", "softmax"), batches=(32,))
  return tmp_path / "study"


def compared(folder, baseline=None) -> comparison.Comparison:
  runs = found.read(folder)
  return comparison.Comparison(runs, comparison.baseline(runs, baseline))


def run_folder(study, loss, batch, seed):
  return study / "runs" / f"loss.name={loss},batch_size={batch},seed={seed}"


def last(folder, metric):
  return [r[metric] for r in records.read(folder) if metric in r][-1]


def test_means_are_those_of_the_finished_runs(study):
  """results.json, results.csv and the table, each against numpy on metrics.jsonl."""
  told = json.loads((study / "report/results.json").read_text())
  assert [list(s["values"].values()) for s in told["settings"]] == [
    [loss, batch] for loss in ("sigmoid", "hinge") for batch in (32, 64, 128, 256)
  ][:-1]
  lines = (study / "report/tables.md").read_text().splitlines()
  rows = list(csv.DictReader((study / "report/results.csv").open()))
  for setting in told["settings"]:
    loss, batch = setting["values"].values()
    of_runs = [run_folder(study, loss, batch, seed) for seed in (0, 1, 2)]
    for metric, unit, digits in ((ACC, 100, 1), (DISTANCE, 1, 4)):
      want = [last(folder, metric) for folder in of_runs]
      assert setting["metrics"][metric]["mean"] == pytest.approx(np.mean(want))
      assert setting["metrics"][metric]["sd"] == pytest.approx(np.std(want, ddof=1))
      mean, sd = unit * np.mean(want), unit * np.std(want, ddof=1)
      row = next(line for line in lines if line.startswith(f"| {loss} | {batch} | 3 |"))
      assert f" {mean:.{digits}f} ± {sd:.{digits}f} " in row
      in_csv = [
        float(r[metric]) for r in rows if (r["loss.name"], r["batch_size"]) == (loss, str(batch))
      ]
      assert in_csv == pytest.approx(want)
    for name in ("scale", "bias"):
      want = [last(folder, name) for folder in of_runs]
      assert setting["learned"][name] == pytest.approx(np.mean(want))
      told_of = f" {np.mean(want):.3f} ± {np.std(want, ddof=1):.3f} ".replace("-", "−")
      assert sum(told_of in x for x in lines if x.startswith(f"| {loss} | {batch} | 3 |")) == 1
    seconds = [sum(s["seconds"].values()) for folder in of_runs for s in history.read(folder)]
    assert setting["costs"]["seconds"] == pytest.approx(np.mean(seconds), abs=1e-3)
    assert setting["costs"]["peak_bytes"] == 2 * 10**8 and setting["costs"]["examples"] == 20480


def test_differences_pair_seeds_and_examples(study):
  told = json.loads((study / "report/results.json").read_text())
  (setting,) = [
    s for s in told["settings"] if s["values"] == {"loss.name": "hinge", "batch_size": 64}
  ]
  d = np.array(
    [
      np.subtract(
        *(
          np.load(run_folder(study, loss, 64, seed) / "each.npz")["zs/acc1"].astype(float)
          for loss in ("hinge", "sigmoid")
        )
      )
      for seed in (0, 1, 2)
    ]
  )
  difference = setting["metrics"][ACC]["difference"]
  mean, low, high = intervals.of_pairs(d)  # tests/test_intervals.py has its formula
  assert [difference[k] for k in ("mean", "low", "high")] == pytest.approx([mean, low, high])
  assert difference["mean"] == pytest.approx(d.mean())
  assert (difference["seeds"], difference["examples"]) == (3, 400)
  assert difference["verdict"] == ("worse" if high < 0 else "not resolved")
  # The distance has no single examples: its seeds are paired.
  of_seeds = [
    last(run_folder(study, "hinge", 64, s), DISTANCE)
    - last(run_folder(study, "sigmoid", 64, s), DISTANCE)
    for s in (0, 1, 2)
  ]
  difference = setting["metrics"][DISTANCE]["difference"]
  assert difference["examples"] is None
  half = 4.302652729911275 * np.std(of_seeds, ddof=1) / np.sqrt(3)
  assert difference["high"] - difference["mean"] == pytest.approx(half)
  baseline = [s for s in told["settings"] if s["values"]["loss.name"] == "sigmoid"]
  assert not any("difference" in m for s in baseline for m in s["metrics"].values())


def test_a_setting_with_fields_of_its_own_is_compared(small):
  """As the global loss, whose temperature the others do not have."""
  told = json.loads((small / "study.json").read_text())
  for run in told["runs"]:
    if run["values"]["loss.name"] == "softmax":
      run["values"]["loss.scale_init"] = 1 / 0.07
  told["fields"]["loss.scale_init"] = [1 / 0.07]
  (small / "study.json").write_text(json.dumps(told))
  c = compared(small, "loss.name=sigmoid")
  sigmoid, softmax = c.settings
  assert softmax.values["loss.scale_init"] == 1 / 0.07
  assert c.baseline_of(softmax) is sigmoid and c.baseline_of(sigmoid) is None
  assert c.difference(softmax, ACC).seeds == 3
  assert c.name(softmax).endswith("loss.scale_init=14.2857")
  assert (comparison.shown(1 / 0.07), comparison.shown(10.0)) == ("14.2857", "10.0")


def test_a_baseline_may_be_without_a_field(small):
  """As whole pictures are, beside runs that begin with smaller ones."""
  told = json.loads((small / "study.json").read_text())
  for run in told["runs"]:
    if run["values"]["loss.name"] == "softmax":
      run["values"] = {"loss.name": "sigmoid", "batch_size": 32, "first.share": 0.75}
  told["fields"] = {"loss.name": ["sigmoid"], "batch_size": [32], "first.share": [0.75]}
  (small / "study.json").write_text(json.dumps(told))
  c = compared(small, "first.share=none")
  staged = next(s for s in c.settings if "first.share" in s.values)
  whole = next(s for s in c.settings if s is not staged)
  assert c.baseline_of(staged) is whole and c.baseline_of(whole) is None
  assert c.difference(staged, ACC).seeds == 3


def test_losses_of_another_definition_are_not_compared(small):
  c = compared(small)
  assert c.statistic(c.settings[1], LOSS) is not None and c.difference(c.settings[1], LOSS) is None
  for field, other in (
    ("batch_size", True),
    ("loss.name", True),
    ("loss.bias_init", False),
    ("loss.dtype", False),
    ("optim.lr", False),
    (None, False),
  ):
    assert comparison.makes_a_loss(field) == other
  assert comparison.is_loss("eval/a/loss") and not comparison.is_loss("eval/loss/acc1")


def test_the_fields_of_the_same_loss_are_known():
  assert set(comparison.SAME_LOSS) < set(fields.all_fields())


def test_runs_that_have_not_finished_are_listed_and_in_no_mean(study):
  told = json.loads((study / "report/results.json").read_text())
  of_status = {r["name"].rpartition("=")[2]: r for r in told["runs"] if r["status"] != "finished"}
  assert {seed: r["status"] for seed, r in of_status.items()} == {
    "0": "failed",
    "1": "unfinished",
    "2": "missing",
  }
  assert len(told["settings"]) == 7  # of 8: none of hinge at 256 has finished
  table = (
    (study / "report/tables.md")
    .read_text()
    .partition("Runs that are in no mean, and values that finished ones lack.")[2]
  )
  assert [line.split(" | ")[1] for line in table.strip().splitlines()[2:]] == [
    "failed",
    "unfinished",
    "missing",
  ]
  assert "FloatingPointError: loss=nan at step 7" in table
  assert folder_lib.results(study) == told["runs"]


def test_the_page_needs_nothing_else(study):
  text = (study / "report/index.html").read_text()
  assert pages.is_alone(text) and len(text.encode()) < 5_000_000
  assert not pages.is_alone(text.replace("</body>", '<img src="https://example.com/a.png"></body>'))
  page = pages.Page(text)
  ids = [v for k, v in page.attributes if k == "id"]
  assert len(ids) == len(set(ids))
  used = {v[1:] for k, v in page.attributes if k in ("href", "xlink:href")}
  assert used | set(re.findall(r"url\(#([^)]*)\)", text)) <= set(ids)
  assert "prefers-color-scheme: dark" in text and "#1b1c1d" not in text
  # Each table scrolls in its own box.
  assert page.tags.count("table") == text.count('<div class="box"><table>') >= 6
  for words in ("siglax ablate --config configs/ablate/losses.py", "0.10.2", "equal examples"):
    assert words in text


def test_plots_are_whole_files(study):
  names = {path.name for path in (study / "report/plots").iterdir()}
  stems = {
    "metrics-by-batch_size",
    "power-law-batch_size",
    "curves-loss",
    "curves-scale",
    "curves-bias",
    "curves-zs-acc1",
    "curves-val-image_retrieval_recall-at-1",
  }
  assert names == {f"{stem}.{kind}" for stem in stems for kind in ("png", "svg")}
  for path in (study / "report/plots").iterdir():
    if path.suffix == ".png":
      assert path.read_bytes().startswith(b"\x89PNG")
    else:
      assert ElementTree.parse(path).getroot().tag == "{http://www.w3.org/2000/svg}svg"


def test_settings_without_the_main_field_have_a_figure_of_their_own(tmp_path):
  """As the noise of images has beside that of pairs."""
  studies_by_hand.write(tmp_path / "study", losses=("sigmoid", "softmax"))
  told = json.loads((tmp_path / "study/study.json").read_text())
  for run in told["runs"]:
    if run["values"]["loss.name"] == "softmax":
      run["values"]["optim.lr"] = run["values"].pop("batch_size") / 1e5
  told["fields"]["optim.lr"] = [batch / 1e5 for batch in studies_by_hand.BATCHES]
  (tmp_path / "study/study.json").write_text(json.dumps(told))
  found = {f.name: f for f in figures.Figures(compared(tmp_path / "study")).all}
  for name, label, at in (
    ("metrics-by-batch_size", "sigmoid", [32, 64, 128, 256]),
    ("metrics-by-optim.lr", "softmax", [32e-5, 64e-5, 128e-5, 256e-5]),
  ):
    for panel in found[name].panels:
      assert [(line.label, line.x) for line in panel.lines] == [(label, at)]
  assert "val loss ↓" in [panel.title for panel in found["metrics-by-optim.lr"].panels]
  # Of the curves those without a batch size have the last panel.
  titles = [panel.title for panel in found["curves-loss"].panels]
  assert titles == [f"batch_size {n}" for n in studies_by_hand.BATCHES] + ["no batch_size"]
  lines = [line for figure in found.values() for panel in figure.panels for line in panel.lines]
  assert len({line.style for line in lines}) == len({line.label for line in lines}) == 6


def test_axes_are_logarithmic_where_values_are_far_apart():
  wide = {(64, 128, 256): True, (64, 128): False, (0.1, 0.3, 0.5): False, (1e-3, 1e-2): True}
  assert {values: figures._is_wide(values) for values in wide} == wide


def test_a_legend_of_long_names_has_fewer_columns():
  short, long = ["sigmoid"] * 6, ["softmax, noise_images 0.1, noise_texts 0.1"] * 6
  columns = [plots._legend_columns(labels, inches=12.6) for labels in (short, long)]
  assert columns == [5, 3] and plots._legend_columns(long, inches=4.2) == 1


def test_power_laws_are_fitted_where_there_are_four_sizes(study):
  told = json.loads((study / "report/results.json").read_text())["power_laws"]
  assert {fit["line"] for fit in told} == {"sigmoid"}  # hinge has three
  (fit,) = [fit for fit in told if fit["metric"] == DISTANCE]
  assert fit["low"] < fit["exponent"] < fit["high"] and fit["exponent"] == pytest.approx(
    -0.2, abs=5e-3
  )


def test_the_latex_table_holds_the_same_cells(study):
  cell = lambda text: text.replace(r"$\pm$", "±").replace(r"\_", "_").strip()
  lines = (study / "report/tables.tex").read_text().splitlines()
  first = lines[lines.index(r"\midrule") + 1 : lines.index(r"\bottomrule")]
  latex = [[cell(c) for c in line.removesuffix(r" \\").split(" & ")] for line in first]
  table = (study / "report/tables.md").read_text().split("\n\n")[1].splitlines()[2:]
  assert latex == [[c.strip() for c in line.strip("|").split("|")] for line in table]


def test_any_text_is_text_in_every_table():
  table = tables.Table("t", "50%", ["a_b", "c"], [["[0.9]", r"x|y & <z> \ ~^{}#$"]], 2, {(0, 0)})
  assert table.markdown().splitlines()[-1] == r"| **[0.9]** | x\|y & <z> \ ~^{}#$ |"
  row = table.latex().splitlines()[7]
  assert row.startswith(r"\textbf{{[}0.9{]}} & x$|$y \& $<$z$>$ \textbackslash{} ")
  assert row.endswith(r"\textasciitilde{}\textasciicircum{}\{\}\#\$ \\")


def test_a_report_is_the_same_again(small):
  report.report(small)
  before = {p: p.read_bytes() for p in (small / "report").rglob("*") if p.is_file()}
  report.report(small)
  assert before == {p: p.read_bytes() for p in (small / "report").rglob("*") if p.is_file()}


def test_any_folder_with_runs_is_a_study(small):
  of_study = compared(small, "loss.name=sigmoid")
  (small / "study.json").unlink()
  any_folder = compared(small, "loss.name=sigmoid")
  assert any_folder.found.fields == {"loss.name": ["sigmoid", "softmax"]}
  for a, b in zip(of_study.settings, any_folder.settings, strict=True):
    assert a.values["loss.name"] == b.values["loss.name"]
    for metric in (ACC, DISTANCE):
      assert of_study.statistic(a, metric) == any_folder.statistic(b, metric)
      assert of_study.difference(a, metric) == any_folder.difference(b, metric)
  assert "--config.loss.name=softmax --config.seed=2" in any_folder.found.commands[-1]
  (small / "elsewhere").mkdir()
  of_run, linked = run_folder(small, "sigmoid", 32, 0), small / "elsewhere" / "linked"
  of_run.rename(small.with_name("moved"))
  linked.symlink_to(small.with_name("moved"))
  (small / "elsewhere" / "circle").symlink_to(small)
  assert len(found.read(small).of("finished")) == 6
  # One that failed, and was made again.
  shutil.copytree(linked, small / "runs" / "failed")
  file = small / "runs/failed" / history.FILE
  file.write_text(file.read_text().replace('"finished"', '"OSError: no space"'))
  assert len(found.read(small).of("finished")) == 6
  shutil.copytree(linked, small / "runs" / "again")
  with pytest.raises(ValueError, match="have the same config and seed=0; move one of them away"):
    found.read(small)


def test_values_of_another_evaluation_pair_no_examples(small):
  folder = run_folder(small, "softmax", 32, 1)
  each = each_lib.read(folder)
  each_lib.write(folder, each | {"zs/acc1": 1 - each["zs/acc1"]})
  c = compared(small)
  difference = c.difference(c.settings[1], ACC)
  assert (difference.seeds, difference.examples) == (3, None)
  assert c.difference(c.settings[1], "eval/zs/acc5").examples == 400


def test_one_seed_has_no_spread_and_an_interval_of_its_examples(small):
  for loss in ("sigmoid", "softmax"):
    for seed in (0, 2):
      shutil.rmtree(run_folder(small, loss, 32, seed))
  report.report(small)
  told = json.loads((small / "report/results.json").read_text())["settings"][1]
  assert told["metrics"][ACC]["sd"] is None
  difference = told["metrics"][ACC]["difference"]
  assert difference["low"] < difference["mean"] < difference["high"] and difference["seeds"] == 1
  assert told["metrics"][DISTANCE]["difference"]["low"] is None
  assert told["metrics"][DISTANCE]["difference"]["verdict"] == "one seed"
  table = (small / "report/tables.md").read_text().partition("Difference to")[0]
  assert " ± " not in table.partition("|")[2]


def test_a_damaged_file_of_one_run_costs_no_other(small, tmp_path, capsys):
  folder = run_folder(small, "softmax", 32, 1)
  each = (folder / each_lib.FILE).read_bytes()
  (folder / each_lib.FILE).write_bytes(each[: len(each) // 2])
  (run_folder(small, "softmax", 32, 2) / records.FILE).unlink()
  assert cli.main(["report", str(small), "--out", str(tmp_path / "elsewhere")]) == 0
  assert not (small / "report").exists()
  table = (tmp_path / "elsewhere/tables.md").read_text()
  assert "| softmax | 2 |" in table and "seed=1 | finished | " in table
  assert "each.npz cannot be read: no .npz, or cut short; run siglax evaluate again" in table
  assert "seed=2 | damaged | metrics.jsonl is empty or absent; remove " in table
  told = json.loads((tmp_path / "elsewhere/results.json").read_text())["settings"][1]
  difference = told["metrics"][ACC]["difference"]
  assert (difference["seeds"], difference["examples"]) == (2, None)
  capsys.readouterr()
  assert cli.main(["report", ""]) == 1
  assert capsys.readouterr().err == "siglax report: DIR='' is empty; name a local folder or file\n"


def test_a_study_whose_settings_lack_the_main_field_so_far(small):
  """As the first runs of a study of negatives do, whose baseline has all of them."""
  told = json.loads((small / "study.json").read_text())
  for run in told["runs"]:
    del run["values"]["batch_size"]
  told["fields"]["batch_size"] = [32, 64]
  (small / "study.json").write_text(json.dumps(told))
  report.report(small)
  assert (small / "report/plots/metrics-by-setting.png").is_file()


def test_runs_that_evaluate_nothing_have_costs_and_curves(small):
  for file in small.glob("runs/*/metrics.jsonl"):
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    lines = [{k: v for k, v in line.items() if not k.startswith("eval/")} for line in lines]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
  report.report(small)
  assert {p.stem for p in (small / "report/plots").iterdir()} == {
    "curves-loss",
    "curves-scale",
    "curves-bias",
  }


def test_seeds_that_one_side_lacks_are_not_compared(small):
  (run_folder(small, "sigmoid", 32, 1) / history.FILE).unlink()
  c = compared(small)
  assert [len(s.runs) for s in c.settings] == [2, 3]
  assert c.difference(c.settings[1], ACC).seeds == 2


def test_a_value_that_is_not_finite_is_in_no_mean(small):
  file = run_folder(small, "softmax", 32, 1) / records.FILE
  lines = [json.loads(line) for line in file.read_text().splitlines()]
  lines[-2][DISTANCE] = None
  file.write_text("".join(json.dumps(line) + "\n" for line in lines))
  c = compared(small)
  assert (
    c.statistic(c.settings[1], DISTANCE) is None
    and c.difference(c.settings[1], DISTANCE).seeds == 2
  )
  report.report(small)
  assert "| softmax | 3 |" in (table := (small / "report/tables.md").read_text())
  assert "– |" in next(line for line in table.splitlines() if line.startswith("| softmax"))
  assert "softmax,batch_size=32,seed=1 | finished | eval/val/alignment is not finite |" in table


@pytest.mark.parametrize(
  "baseline, message",
  [
    ("loss.nam=sigmoid", "did you mean 'loss.name'?"),
    ("loss.name", "give FIELD=VALUE; the runs differ in loss.name"),
    ("loss.name=clip", "the values of loss.name are sigmoid, softmax"),
  ],
)
def test_a_wrong_baseline_is_one_line(small, capsys, baseline, message):
  assert cli.main(["report", str(small), "--baseline", baseline]) == 1
  said = capsys.readouterr().err
  assert message in said and said.count("\n") == 1 and not (small / "report").exists()


def test_a_folder_without_finished_runs_is_one_line(small, tmp_path, capsys):
  def fails(folder, message):
    assert cli.main(["report", str(folder)]) == 1
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1, said

  (tmp_path / "empty").mkdir()
  fails(tmp_path / "empty", "has no study.json and no run folder beneath")
  fails(tmp_path / "none", "no such folder")
  for file in (small / "runs").glob("*/starts.jsonl"):
    file.unlink()
  shutil.rmtree(run_folder(small, "softmax", 32, 2))
  fails(small, "has no finished run (5 unfinished, 1 missing)")
  (small / "study.json").write_text("{")
  fails(small, "is damaged")
