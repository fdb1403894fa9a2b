"""--config: packaged names, files anywhere, and a misspelt setting wherever it is written."""

import os
from pathlib import Path
import shutil
import subprocess
import sys

import pytest

from condseg_jax.cli import config_file
from condseg_jax.cli import train
from condseg_jax.config import Config
from condseg_jax.errors import InputError

CONFIGS = Path(__file__).parent.parent.parent / "experiments" / "configs"


def says(capsys, code, *arguments) -> str:
  """The one line of the command, which must not have made a workdir."""
  assert train.main(["condseg-train", *map(str, arguments)]) == code
  line, = capsys.readouterr().err.strip().splitlines()[-1:]
  assert line.startswith("condseg-train: ") and "Traceback" not in line
  return line.removeprefix("condseg-train: ")


def write(path: Path, *lines: str) -> Path:
  path.write_text("\n".join(("from condseg_jax.configs import base", "", "",
                             "def get_config():", "  config = base.get_config()", *lines,
                             "  return config", "")))
  return path


# --- a misspelt setting -------------------------------------------------------------------------
@pytest.mark.parametrize("line, error", [
    ("  config.data.hold_outt = 0.2", "data.hold_outt: unknown setting (did you mean "
     "data.hold_out?)"),
    ("  config.train.update(stepz=100)", "train.stepz: unknown setting (did you mean "
     "train.steps?)"),
    ("  config.optimzer = {}", "optimzer: unknown setting (did you mean optimizer?)"),
    ("  config.data.subvolume = (2 * config.data.subvolum[0],) * 3", "data.subvolum: unknown "
     "setting (did you mean data.subvolume?)"),
    ("  config.data.keep = ('liver',)", "data.keep: unknown setting (renamed to "
     "data.include_classes)"),
    ("  config.data.batch_size = 2.5", "data.batch_size: 2.5 is of original type"),
    ("  config.data.batch_class = 'singel'", "data.batch_class: 'singel' is not allowed"),
    ("  config.data.classes_per_image = 3; config.data.batch_class = 'single'",
     "data.classes_per_image: 3 excludes data.batch_class 'single'"),
    ("  config.loss.objective = 'dice'", "loss.objective: 'dice' is not registered"),
    ("  config.augment.extra.blurr = 1.0", "augment.extra.blurr: is not a registered"),
    ("  config.conditioning.mechanism = 'flim'", "mechanism 'flim' is not one of"),
    ("  config.model.activation = 'gelo'", "activation 'gelo' is not one of")])
def test_in_ones_own_config(line, error, tmp_path, capsys):
  """One line and exit code 2, before any data is read: there is none."""
  path = write(tmp_path / "mine.py", "  config.data.root = '/nowhere'", line)
  assert error in says(capsys, 2, f"--config={path}", f"--workdir={tmp_path / 'run'}")
  assert not (tmp_path / "run").exists()


def test_in_a_copy_of_a_config(tmp_path, capsys):
  """A copy renamed by hand, as of phantom.py, which sets a field that there is not."""
  text = (CONFIGS / "phantom.py").read_text(encoding="utf-8")
  path = tmp_path / "copy.py"
  path.write_text(text.replace("config.data.batch_size", "config.data.batchsize"))
  assert "data.batchsize: unknown setting (did you mean data.batch_size?)" in says(
      capsys, 2, f"--config={path}", f"--workdir={tmp_path / 'run'}")


def test_in_a_dict_of_ones_own(tmp_path, capsys):
  """A config that imports nothing of the package, and so is not locked."""
  path = tmp_path / "own.py"
  path.write_text("import ml_collections\n\n\ndef get_config():\n  return "
                  "ml_collections.ConfigDict({'data': {'root': '/nowhere', 'hold_outt': 0.1}})\n")
  assert "data.hold_outt: unknown setting (did you mean data.hold_out?)" in says(
      capsys, 2, f"--config={path}", f"--workdir={tmp_path / 'run'}")


@pytest.mark.parametrize("flag, error", [
    ("--config.data.hold_outt=0.1", "data.hold_outt: unknown setting (did you mean "
     "data.hold_out?)"),
    ("--config.train.stepz=1", "train.stepz: unknown setting (did you mean train.steps?)"),
    ("--config.data.cases=3", "data.cases: unknown setting (renamed to data.max_cases)"),
    ("--config.data.hold_out=1.5", "data.hold_out: 1.5 is not allowed, must be in [0, 1)"),
    ("--config.train.steps=many", "config.train.steps"),
    ("--config.data.spacing=(1.0,2.0)", "data.spacing: has 2 axes, model.strides 3")])
def test_on_the_command_line(flag, error, tmp_path, capsys):
  assert error in says(capsys, 2, "--config=base", f"--workdir={tmp_path / 'run'}", flag)
  assert not (tmp_path / "run").exists()


def test_in_python(tmp_path):
  from condseg_jax.train.loop import train as run
  with pytest.raises(InputError, match="data.hold_outt: unknown setting .did you mean"):
    Config.from_dict({"data": {"hold_outt": 0.1}})
  with pytest.raises(TypeError, match="hold_outt"):
    type(Config().data)(hold_outt=0.1)
  with pytest.raises(InputError, match="train.steps: -1 is not allowed"):
    run(Config(train=type(Config().train)(steps=-1)), [], tmp_path / "run")
  assert not (tmp_path / "run").exists()


def test_the_nearest_name_is_not_the_typo(tmp_path, capsys):
  """A hint never recommends what a config file itself misspells."""
  path = tmp_path / "own.py"
  path.write_text("import ml_collections\n\n\ndef get_config():\n  return "
                  "ml_collections.ConfigDict({'data': {'holdout': 0.1}})\n")
  line = says(capsys, 2, f"--config={path}", "--workdir=w", "--config.data.hold_outt=0.2")
  assert line == "data.hold_outt: unknown setting (did you mean data.hold_out?)"


# --- where configs are found --------------------------------------------------------------------
def test_every_committed_config_is_packaged():
  assert config_file.names() == sorted(p.stem for p in CONFIGS.glob("[!_]*.py"))
  assert "base" in config_file.names() and "cityscapes" in config_file.names()


@pytest.mark.parametrize("value, path", [
    ("base", "base.py"), ("base.py", "base.py"), ("encoders:residual", "encoders.py:residual"),
    ("encoders.py:residual", "encoders.py:residual")])
def test_a_name_is_a_packaged_config(value, path, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  for arguments in ((f"--config={value}",), ("--config", value)):
    *_, last = config_file.resolved(["program", *arguments])
    assert last.removeprefix("--config=") == f"{config_file.PACKAGED}{os.sep}{path}"


def test_a_file_comes_before_a_packaged_config_of_that_name(tmp_path, monkeypatch):
  write(tmp_path / "base.py")
  monkeypatch.chdir(tmp_path)
  assert config_file.resolved(["program", "--config=base.py"])[1] == "--config=base.py"


def test_no_such_config(capsys, tmp_path):
  line = says(capsys, 2, "--config=nothing", f"--workdir={tmp_path / 'run'}")
  assert line.startswith("nothing: does not exist") and "phantom" in line
  line = says(capsys, 2, f"--config={tmp_path / 'no.py'}", f"--workdir={tmp_path / 'run'}")
  assert "no.py: does not exist" in line


def test_a_config_that_imports_as_it_was_done_before(tmp_path, capsys):
  path = tmp_path / "old.py"
  path.write_text("from configs import base\n\n\ndef get_config():\n  return base\n")
  assert "from condseg_jax.configs import base" in says(
      capsys, 2, f"--config={path}", f"--workdir={tmp_path / 'run'}")


def test_loading_a_config_leaves_the_search_path_alone(tmp_path, capsys):
  before = list(sys.path)
  path = write(tmp_path / "mine.py", "  config.data.root = ''")
  says(capsys, 2, f"--config={path}", f"--workdir={tmp_path / 'run'}")
  assert sys.path == before


@pytest.mark.slow
def test_installed_far_from_the_checkout(tmp_path):
  """A wheel holds the configs and studies; a config elsewhere on the disk imports base."""
  source = tmp_path / "source"
  root = CONFIGS.parent.parent
  source.mkdir()
  for name in ("condseg_jax", "experiments"):
    shutil.copytree(root / name, source / name, symlinks=True,
                    ignore=shutil.ignore_patterns("__pycache__"))
  for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
    shutil.copy(root / name, source / name)
  pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
  done = subprocess.run([*pip, "install", "--no-deps", "--no-build-isolation", "--no-index",
                         "--target", str(tmp_path / "site"), str(source)],
                        capture_output=True, encoding="utf-8")
  assert done.returncode == 0, done.stdout + done.stderr
  path = write(tmp_path / "mine.py", "  config.data.hold_outt = 1")
  elsewhere = tmp_path / "elsewhere"
  elsewhere.mkdir()
  environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}

  def run(module, *arguments):
    return subprocess.run([sys.executable, "-m", f"condseg_jax.cli.{module}", *arguments],
                          capture_output=True, encoding="utf-8", cwd=elsewhere, env=environment)

  where = subprocess.run([sys.executable, "-c", "import condseg_jax; print(condseg_jax.__file__)"],
                         capture_output=True, encoding="utf-8", cwd=elsewhere, env=environment)
  assert where.stdout.startswith(str(tmp_path / "site"))
  done = run("train", f"--config={path}", "--workdir=run")
  assert done.returncode == 2 and "did you mean data.hold_out?" in done.stderr
  done = run("train", "--config=phantom", "--workdir=run", "--config.data.root=/nowhere")
  assert done.returncode == 1 and "/nowhere: does not exist" in done.stderr
  done = run("study", "hippocampus", "--out=out", "--dry_run")
  assert done.returncode == 0 and "hippocampus_full: not prepared yet" in done.stdout, done.stderr
