"""The viewer's package: only the expected one is used."""

import subprocess
import sys

import pytest

from condseg_jax.errors import InputError
from condseg_jax.report.page import viewer


def test_no_package_is_no_error():
  viewer.path().unlink(missing_ok=True)
  assert viewer.code() is None


def test_another_package_is_refused_and_a_damaged_one_not_used(tmp_path):
  viewer.path().unlink(missing_ok=True)
  (tmp_path / "other.tgz").write_bytes(b"something else")
  with pytest.raises(InputError, match="checksum"):
    viewer.fetch(tmp_path / "other.tgz")
  assert not viewer.path().exists()
  with pytest.raises(InputError, match="does not exist"):
    viewer.fetch(tmp_path / "none.tgz")
  viewer.path().parent.mkdir(parents=True, exist_ok=True)
  viewer.path().write_bytes(b"cut off")
  assert viewer.code() is None
  viewer.path().unlink()


def test_without_npm_the_cure_is_named(monkeypatch, tmp_path):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  monkeypatch.setenv("PATH", str(tmp_path))
  with pytest.raises(InputError, match="npm: is not installed .*npm pack"):
    viewer.fetch()
  (tmp_path / "npm").write_text(f"#!{sys.executable}\nimport sys\nsys.exit('no way out')\n")
  (tmp_path / "npm").chmod(0o755)
  with pytest.raises(InputError, match="no way out"):
    viewer.fetch()


def test_the_command_says_what_is_wrong_in_one_line(tmp_path):
  done = subprocess.run([sys.executable, "-m", "condseg_jax.report.page", tmp_path / "none.tgz"],
                        capture_output=True, text=True, timeout=60)
  assert done.returncode == 1 and "none.tgz: does not exist" in done.stderr
  assert "Traceback" not in done.stderr
