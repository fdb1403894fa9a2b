"""The commands of the documents do what they say: blocks are run, or listed with a reason."""

import importlib
import json
import os
from pathlib import Path
import re
import shlex
import shutil
import subprocess
import sys

import numpy as np
import pytest

from condseg_jax.datasets.synthetic import phantom
from condseg_jax.formats.nifti import write_nifti
from condseg_jax.geometry import Volume
from condseg_jax.train import candidates
from support import tiny
from support.documents import Block
from support.documents import blocks
from support.documents import pages
from support.documents import ROOT

# The pages in the order in which they are run: all in one folder, each with what is left there by
# those before it.
ORDER = ("README.md", "docs/index.md", "docs/data.md", "docs/training.md", "docs/growing.md",
         "docs/prediction.md", "docs/analysis.md")

EXTENDING = "see tests/e2e/test_extending.py"
# How a block begins → why it is not run.
NOT_RUN = {
    "bash tools/quickstart.sh": "minutes; its commands are those of docs/index.md",
    "bash tools/test.sh": "runs these tests",
    "pip install \".[buckets]\"": "needs buckets; see tests/buckets",
    "pip install": "changes the environment",
    "condseg-init RAW --modality": "as in README.md",
    "condseg-train --config=base --config.init.source=encoder.condseg":
        "see tests/model_io/nnunet/test_encoder.py",
    "condseg-train --config=base": "as in README.md",
    "condseg-train --config=mine.py --workdir=FILM":
        "as in README.md; see tests/models for the mechanisms",
    "condseg-evaluate --workdir=RUN --data=TEST --out=scores --tolerance_mm": "as in README.md",
    "condseg-train --config=mine.py --config.train.minutes=60":
        "an hour; see tests/train/test_budget.py",
    "condseg-prepare --format=folder --unlabelled": "see tests/e2e/test_unlabelled_runs.py",
    "condseg-train --config=mine.py --workdir=RUN --folds=5":
        "five trainings; see tests/e2e/test_folds.py and test_pseudo_masks.py",
    "from condseg_jax.model_io.fold_run import": "needs the run above; see tests/e2e/test_folds.py",
    "condseg-predict --workdir=RUN --input=scan.nii.gz --output=masks --members=1":
        "needs the run above; see tests/e2e/test_folds.py",
    "condseg-predict --workdir=RUN --input=scans --output=masks --refuse_below":
        "needs the run above; see tests/e2e/test_folds.py",
    "condseg-predict --workdir=PANCREAS": "two runs; see tests/e2e/test_growth.py",
    "condseg-grow": "see tests/e2e/test_growth.py",
    "condseg-federate": "see tests/e2e/test_federation.py",
    "condseg-audit": "needs the run above; see tests/e2e/test_audit.py",
    "condseg-predict --workdir=RUN --input=scans --output=masks --uncertainty":
        "needs the run above; see tests/cli/test_predict_outputs.py",
    "condseg-next": "needs the run above; see tests/e2e/test_next.py",
    "condseg-verify TODO": "what condseg-next writes; see tests/e2e/test_next.py",
    "condseg-fetch": "needs the network; see tests/datasets/download",
    "condseg-serve": "waits for requests; see tests/serve",
    "condseg-predict --workdir=RUN --input=scans --output=masks --cluster":
        "needs a scheduler; see tests/cluster",
    "dask scheduler": "waits for workers; see tests/cluster",
    "condseg-deidentify": "see tests/cli/test_deidentify.py",
    "curl --data-binary @scan.nii.gz -o result.zip": "see tests/serve",
    "condseg-predict --workdir=RUN --output=masks --dicom=seg,rtstruct --send":
        "see tests/dicomweb",
    "curl -X POST -o seg.dcm": "see tests/serve/test_pacs.py",
    "condseg-train --config=hippocampus":
        "needs MSD Task04; see tests/e2e/test_bring_your_own.py",
    "condseg-export --workdir=RUN --out=model.condseg --onnx": "see tests/export and tests/cli",
    "condseg-analyse --workdir=RUN,RUN,…": "names the runs of the studies; see docs/analysis.md",
    "python -m tools.fuzz": "see tests/tools/test_fuzz.py",
    "condseg-study": "hours, or see tests/study",
    "from condseg_jax.models.conditioning import": EXTENDING,
    "import jax\nimport jax.numpy as jnp\n\nfrom condseg_jax.classes": EXTENDING,
    "from condseg_jax.metrics import": EXTENDING,
    "from condseg_jax.train.augment import": EXTENDING,
    "import dataclasses\n\nfrom condseg_jax.models.build": EXTENDING,
}

SMALL = " ".join(f"--config.{field}='{value}'" for field, value in {
    "train.steps": 2, "train.minutes": 0, "model.channels": 4, "model.growth": 4,
    "model.layers_per_level": (1, 1), "model.strides": ((1, 2, 2),), "model.norm": "none",
    **{f"augment.{name}": 0.0 for name in ("rotate", "zoom", "shift", "scale", "offset", "gamma",
                                           "noise")}}.items())
# Pattern → what takes its place, so that a run takes seconds; continued lines are joined before.
SUBSTITUTIONS = {
    r"^( *condseg-train .*)$": rf"\1 {SMALL}",
    r"condseg-prepare --format=phantom": "small-phantom",
    r"condseg-init": "small-init",
    r"--workdir=RUN,FILM": "--workdir=RUN,RUN",
    r"^( *condseg-analyse .*)$": r"\1 --cases=2 --gradient_cases=2 --nomaps",
}

# A command as it is in this checkout, installed or not; without the underscore of `import_`.
COMMAND = """#!{python}
import sys
sys.argv[0] = "condseg-{name}"
from condseg_jax.cli.{name} import main
sys.exit(main())
"""


def every_block() -> list[Block]:
  return [block for path in pages() for block in blocks(path)]


def excuse(block: Block) -> str | None:
  """Returns the beginning in `NOT_RUN` by which a block is left out."""
  return next((begin for begin in NOT_RUN if block.text.startswith(begin)), None)


def small(text: str) -> str:
  """Returns commands with the substitutions."""
  text = re.sub(r"\\\n\s*", "", text)
  for pattern, replacement in SUBSTITUTIONS.items():
    text = re.sub(pattern, replacement, text, flags=re.MULTILINE)
  return text


def test_every_block_is_run_or_listed():
  found = every_block()
  runnable = {block.page for block in found if excuse(block) is None}
  assert runnable == set(ORDER)
  unused = set(NOT_RUN) - {excuse(block) for block in found}
  assert not unused, f"begin no block: {unused}"
  run = "\n".join(block.text for block in found if excuse(block) is None)
  for name in ("init", "prepare", "verify", "train", "evaluate", "predict", "export", "import",
               "analyse"):
    assert f"condseg-{name} " in run
  for pattern in SUBSTITUTIONS:
    assert re.search(pattern, run, re.MULTILINE), pattern


def test_blocks_are_found(tmp_path):
  """Fenced at any indentation, or indented and a command; other languages are passed over."""
  page = tmp_path / "page.md"
  page.write_text("1. A step:\n\n    ```bash\n    a \\\n      b\n    ```\n\nText:\n\n"
                  "    condseg-verify DIR\n    # more\n\n```yaml\npip: x\n```\n"
                  "    for example, prose\n\n```python\nx = 1\n```\n", encoding="utf-8")
  assert list(blocks(page, "page")) == [
      Block("page", 3, "bash", "a \\\n  b"),
      Block("page", 10, "bash", "condseg-verify DIR\n# more"),
      Block("page", 18, "python", "x = 1")]
  page.write_text("```bash\na\n", encoding="utf-8")
  with pytest.raises(ValueError, match="page:1: a fence"):
    list(blocks(page, "page"))


def test_substitutions():
  assert small("condseg-train --config=a \\\n  --workdir=b\nls") == (
      f"condseg-train --config=a --workdir=b {SMALL}\nls")


def write_data(root: Path) -> None:
  """Writes what the documents name: RAW, TEST, scan.nii.gz and NNUNET."""
  names = dict(zip(("liver", "spleen"), tiny.ORGANS.values(), strict=True))
  for organ, value in names.items():
    for number in range(3):
      image, label = tiny.case(np.random.default_rng((value, number)))
      for part, array in (("images", image), ("masks", (label == value).astype(np.uint8))):
        path = root / "RAW" / organ / part / f"case_{organ}_{number}.nii.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_nifti(path, Volume(array, tiny.AFFINE), label=part == "masks")
  listed = []
  for number in range(3):
    image, label = tiny.case(np.random.default_rng((9, number)))
    entry = {"image": f"./imagesTr/t{number}.nii.gz", "label": f"./labelsTr/t{number}.nii.gz"}
    for key, array in (("image", image), ("label", label)):
      (root / "TEST" / entry[key]).parent.mkdir(parents=True, exist_ok=True)
      write_nifti(root / "TEST" / entry[key], Volume(array, tiny.AFFINE), label=key == "label")
    listed.append(entry)
  (root / "TEST" / "dataset.json").write_text(json.dumps(
      {"modality": {"0": "CT"}, "training": listed,
       "labels": {"0": "background", **{str(value): organ for organ, value in names.items()}}}))
  shutil.copy(root / "TEST" / "imagesTr" / "t0.nii.gz", root / "scan.nii.gz")
  shutil.copytree(ROOT / "tests" / "model_io" / "nnunet" / "fixtures" / "plain_3d",
                  root / "NNUNET")


def write_commands(folder: Path) -> None:
  """Writes the commands for the blocks that a shell has to run."""
  folder.mkdir()
  for path in (ROOT / "condseg_jax" / "cli").glob("*.py"):
    script = folder / f"condseg-{path.stem.rstrip('_')}"
    script.write_text(COMMAND.format(python=sys.executable, name=path.stem), encoding="utf-8")
    script.chmod(0o755)


def commands_of(text: str) -> list[list[str]] | None:
  """Returns the words of each line of a block, or None if there is more in it than commands."""
  lines = [shlex.split(line, comments=True) for line in text.splitlines()]
  lines = [words for words in lines if words]
  plain = all(re.match("(condseg|small)-", words[0]) for words in lines)
  return lines if plain and not re.search(r"[|><;&$]", text) else None


def run_here(words: list[str]) -> int:
  """Runs a command in this process, which has imported already what commands import."""
  name = words[0].partition("-")[2]
  if words[0] == "small-phantom":
    phantom.write_abdomen(words[1].removeprefix("--out="), size="quick", cases_per_organ=2,
                          test_cases_per_profile=1)
    return 0
  module = importlib.import_module(
      f"condseg_jax.cli.{name}_" if name == "import" else f"condseg_jax.cli.{name}")
  return module.main([f"condseg-{name}", *words[1:]])


@pytest.mark.slow
def test_the_documents_run(tmp_path, monkeypatch, capsys):
  """Every page in turn; what they promise lies in the folder at the end."""
  work = tmp_path / "work"
  write_data(work)
  write_commands(tmp_path / "bin")
  env = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu",
         "JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "XDG_CACHE_HOME": str(tmp_path / "cache"),
         "CONDSEG_ONEDNN": "0", "CONDSEG_LARGE_PAGES": "0",  # both would cost time at each start
         "PATH": os.pathsep.join([str(tmp_path / "bin"), os.environ["PATH"]])}
  monkeypatch.chdir(work)
  monkeypatch.setattr(phantom, "SIZES", {"quick": phantom.Size((16, 32, 32), (11.0,) * 3)})
  # The rule of condseg-init with a single candidate, which any machine gets done.
  monkeypatch.setattr(candidates, "LEAST_STEPS", {2: 1})
  monkeypatch.setattr(candidates, "IMAGES", {3: (1,)})
  for page in ORDER:
    scope: dict = {}
    for block in blocks(ROOT / page):
      if excuse(block) is not None:
        continue
      place = f"{block.page}:{block.line}"
      if block.language == "python":
        exec(compile(block.text, place, "exec"), scope)
        continue
      commands = commands_of(small(block.text))
      if commands is not None:
        for words in commands:
          assert run_here(words) == 0, f"{place}\n{words}\n{capsys.readouterr().err[-3000:]}"
        continue
      done = subprocess.run(["bash", "-e", "-c", small(block.text)], env=env, cwd=work,
                            capture_output=True, encoding="utf-8", check=False, timeout=300)
      assert done.returncode == 0, f"{place}\n{block.text}\n{done.stdout}\n{done.stderr[-3000:]}"
  for name in ("RUN/run.json", "masks/scan.nii.gz", "masks/report.html", "scores/summary.json",
               "quickstart/scores/summary.json", "findings.json", "MINE/manifest.json",
               "CARVED/manifest.json", "model.condseg", "encoder.condseg",
               "analysis/analysis.json"):
    assert (work / name).exists(), name
