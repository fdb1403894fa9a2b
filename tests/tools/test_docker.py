"""Static checks of the Dockerfile; nothing is built."""

from pathlib import Path
import re
import shlex
import urllib.error
import urllib.request

import pytest

from condseg_jax.cli import serve
from condseg_jax.cli import shell

ROOT = Path(__file__).parent.parent.parent
FOLDER = ROOT / "tools" / "docker"


@pytest.fixture
def instructions():
  """(instruction, argument), without comments and line continuations."""
  text = re.sub(r"^#.*\n", "", (FOLDER / "Dockerfile").read_text(encoding="utf-8"), flags=re.M)
  lines = text.replace("\\\n", " ").splitlines()
  return [tuple(line.split(maxsplit=1)) for line in lines if line.strip()]


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
  program, *flags = shlex.split(of(instructions, "ENTRYPOINT")[0].strip("[]").replace(",", " "))
  assert program == "condseg-serve"
  flags_given = {}
  monkeypatch.setattr(
      serve, "_work", lambda values: flags_given.update(values.flag_values_dict()))
  assert shell.run("", serve._define, serve._work, [program, *flags]) == 0
  assert (flags_given["host"], flags_given["workdir"]) == ("0.0.0.0", "/model")
  assert of(instructions, "EXPOSE") == [str(flags_given["port"])]


def test_the_health_check(instructions, monkeypatch):
  (check,) = of(instructions, "HEALTHCHECK")
  code = shlex.split(check.partition("CMD")[2].strip(" []").replace('",', '"'))[2]
  addresses = []
  monkeypatch.setattr(urllib.request, "urlopen", addresses.append)
  exec(code)
  assert addresses == ["http://127.0.0.1:8000/health"]
