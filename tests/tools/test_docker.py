"""Static checks of the Dockerfile; `tools/docker/check.py` installs and starts as it says."""

from pathlib import Path
import re
import urllib.error
import urllib.request

import pytest

from condseg_jax.cli import serve
from condseg_jax.cli import shell
from tools.docker import check

ROOT = Path(__file__).parent.parent.parent
FOLDER = ROOT / "tools" / "docker"


@pytest.fixture
def instructions():
  return check.instructions(FOLDER / "Dockerfile")


def of(instructions, name):
  return [argument for instruction, argument in instructions if instruction == name]


def test_the_base_image_and_the_user(instructions):
  assert re.fullmatch(r"python:3\.\d+-slim", *of(instructions, "FROM"))
  assert not re.search(r"https?://(?!127\.0\.0\.1)", str(instructions))
  (user,) = of(instructions, "USER")
  assert user not in ("root", "0") and f"useradd --create-home --uid 10001 {user}" in str(
      of(instructions, "RUN"))
  names = [instruction for instruction, _ in instructions]
  assert names.index("USER") > max(i for i, name in enumerate(names) if name in ("RUN", "COPY"))


def test_copied_files_exist_and_are_not_ignored(instructions):
  kept = {line[1:] for line in (FOLDER / "Dockerfile.dockerignore").read_text().splitlines()
          if line.startswith("!")}
  copied = {source for argument in of(instructions, "COPY") for source in argument.split()[:-1]}
  assert copied == kept and all((ROOT / source).exists() for source in copied)


def test_the_entry_point_is_a_valid_command(instructions, monkeypatch):
  program, *flags = check.arguments(*of(instructions, "ENTRYPOINT"))
  assert program == "condseg-serve"
  flags_given = {}
  monkeypatch.setattr(
      serve, "_work", lambda values: flags_given.update(values.flag_values_dict()))
  assert shell.run("", serve._define, serve._work, [program, *flags]) == 0
  assert (flags_given["host"], flags_given["workdir"]) == ("0.0.0.0", "/model")
  assert of(instructions, "EXPOSE") == [str(flags_given["port"])]


def test_the_health_check(instructions, monkeypatch):
  (text,) = of(instructions, "HEALTHCHECK")
  code = check.arguments(text.partition("CMD")[2])[2]
  addresses = []
  monkeypatch.setattr(urllib.request, "urlopen", addresses.append)
  exec(code)
  assert addresses == ["http://127.0.0.1:8000/health"]
