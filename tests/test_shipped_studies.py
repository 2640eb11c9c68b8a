"""The studies in configs/ablate: each is a study whose runs could begin, small and on a cluster."""

import pathlib
import re

import cv2
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from siglax.commands import cli
from siglax.data import text as text_lib
from siglax.data.shapes import Shapes
from siglax.studies import grid
from siglax.studies import study as study_lib
from siglax.training import checks

ROOT = pathlib.Path(__file__).parent.parent
FILES = sorted(p.relative_to(ROOT) for p in (ROOT / "configs" / "ablate").glob("*.py"))
SCALES = ("small", "full")


@pytest.fixture(autouse=True)
def root(monkeypatch):
  monkeypatch.chdir(ROOT)  # their bases are named from there


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_all_its_runs_have_good_configs(file, scale):
  study = study_lib.load(f"{file}:scale={scale}", {"seeds": "(0,)"} if scale == "full" else {})
  assert len(study.seeds) >= (3 if scale == "small" else 1)
  runs = grid.runs_of(study, lambda study, overrides, share: {})
  of_settings = [run for run in runs if not run.is_trunk]
  assert len(of_settings) == len(study.combinations) * len(study.seeds) >= 4
  for run in runs:
    if run.seed == 0:
      checks.validate(run.config(), devices=8)
  assert study.baseline and any(
    all(run.values.get(field) == value for field, value in study.baseline.items()) for run in runs
  )


def test_each_tells_what_the_paper_found_and_stands_in_the_docs():
  docs = (ROOT / "docs" / "ablations.md").read_text()
  for file in FILES:
    text = (ROOT / file).read_text()
    assert re.search(r"arXiv \d{4}\.\d{5}", text), file
    assert f"siglax ablate --config {file} --workdir studies/" in text
    assert f"`{file.name}`" in docs


@pytest.mark.slow
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_its_dry_run_prints_all_runs(file, scale, tmp_path, capsys):
  source = Shapes(examples=40, image_size=32)
  pictures = [cv2.imencode(".png", source[i]["image"])[1].tobytes() for i in range(40)]
  captions = [source[i]["captions"][0] for i in range(40)]
  pq.write_table(pa.table({"image": pictures, "caption": captions}), tmp_path / "a.parquet")
  words = f"scale={scale},train={tmp_path}/a.parquet,tokenizer={text_lib.SHIPPED['shapes']}"
  command = ["ablate", "--config", f"{file}:{words}", "--workdir", str(tmp_path / "study")]
  assert cli.main([*command, "--config.seeds=(0,)", "--dry-run", "--chips", "H100"]) == 0
  said = capsys.readouterr().out
  study = study_lib.load(f"{file}:{words}", {})
  for setting in study.combinations:
    assert f"  {grid.name_of(setting, 0)} " in said
  firsts = sum("first.share" in setting for setting in study.combinations)
  assert f"{len(study.combinations) + firsts} runs" in said and "hours on H100" in said
  assert not (tmp_path / "study").exists()
