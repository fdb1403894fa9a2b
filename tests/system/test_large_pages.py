"""A command restarts itself once with large pages; nothing else does."""

import json
import os
from pathlib import Path
import subprocess
import sys

import pytest

from condseg_jax.system import large_pages

ROOT = Path(__file__).parent.parent.parent
TUNABLE = "glibc.malloc.hugetlb=1"
# A command of the package `experiments`; the machine's own setting of large pages is replaced.
PROBE = """
import json, os, sys
from pathlib import Path
from condseg_jax.system import large_pages

def main(argv=None):
  large_pages.THP = Path(os.environ["THP"])
  large_pages.restart_with_large_pages(argv)
  print(json.dumps([os.getpid(), os.environ.get("GLIBC_TUNABLES"), sys.argv[1:], os.getcwd(),
                    os.environ.get("MINE"), sys.warnoptions, sys.stdin.read()]))

if __name__ == "__main__":
  main()
"""

linux = pytest.mark.skipif(
    sys.platform != "linux" or "glibc" not in (os.confstr("CS_GNU_LIBC_VERSION") or ""),
    reason="the C library is not glibc")


@pytest.fixture
def probe(tmp_path):
  (tmp_path / "experiments").mkdir()
  for path in (tmp_path / "experiments" / "probe.py", tmp_path / "condseg-probe",
               tmp_path / "other.py"):
    path.write_text(PROBE)
  thp = tmp_path / "thp"
  thp.write_text("always [madvise] never\n")

  def run(*command, **changes):
    environment = {name: value for name, value in os.environ.items()
                   if name not in (large_pages.TUNABLES, large_pages.GUARD)}
    environment |= {"PYTHONPATH": str(ROOT), "THP": str(thp), **changes}
    process = subprocess.Popen([sys.executable, *command], cwd=tmp_path, env=environment, text=True,
                               stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE)
    out, errors = process.communicate("input")
    assert process.returncode == 0, errors
    line = next(line for line in out.splitlines() if line.startswith("["))
    pid, tunables, arguments, folder, mine, warnings, text = json.loads(line)
    assert pid == process.pid and folder == str(tmp_path) and text == "input"
    return tunables, arguments, mine, warnings
  return run


MODULE = ("-m", "experiments.probe")


@linux
def test_a_command_restarts_as_it_was_started(probe):
  """With its arguments, options, folder, environment, standard input and process id."""
  arguments = ["--a=b c", "", "-m", "ä"]
  expected = (TUNABLE, arguments, "x=y", ["error"])
  assert probe("-Werror", *MODULE, *arguments, MINE="x=y") == expected
  assert probe("-Werror", "-u", "condseg-probe", *arguments, MINE="x=y") == expected
  assert probe(*MODULE)[:2] == (TUNABLE, [])


@linux
@pytest.mark.parametrize("before, after", [
    ("glibc.malloc.check=1", f"glibc.malloc.check=1:{TUNABLE}"),
    ("glibc.malloc.hugetlb=0", "glibc.malloc.hugetlb=0"),
    ("a=1:glibc.malloc.hugetlb=2:b=1", "a=1:glibc.malloc.hugetlb=2:b=1"), ("", TUNABLE)])
def test_other_tunables_stay(probe, before, after):
  assert probe(*MODULE, GLIBC_TUNABLES=before)[0] == after


@linux
@pytest.mark.parametrize("command", [
    ("other.py",), ("-m", "other"), ("-m", "cProfile", *MODULE),
    ("-m", "cProfile", "condseg-probe"),
    ("-c", "import sys; sys.argv[0] = 'condseg-probe'\n"
     "from experiments.probe import main; main()"),
    ("-c", "from experiments.probe import main; main([])"), (*MODULE, "--help")])
def test_what_does_not_restart(probe, command):
  """Other programs, profilers, library calls, and --help, which is to be fast."""
  assert probe(*command)[0] is None


@linux
def test_it_can_be_turned_off_and_never_loops(probe, tmp_path):
  assert probe(*MODULE, CONDSEG_LARGE_PAGES="0")[0] is None
  for setting in ("[always] madvise never", "always madvise [never]"):
    (tmp_path / "thp").write_text(setting)
    assert probe(*MODULE)[0] is None
  (tmp_path / "thp").unlink()
  assert probe(*MODULE)[0] is None


@pytest.mark.parametrize("platform, version, restarts", [
    ("linux", "glibc 2.35", True), ("linux", "glibc 2.100", True), ("linux", "glibc 3.0", True),
    ("linux", "glibc 2.34", False), ("linux", "", False), ("linux", None, False),
    ("linux", "musl 2.36", False), ("linux", "glibc unknown", False),
    ("darwin", "glibc 2.36", False)])
def test_where_it_has_an_effect(monkeypatch, tmp_path, platform, version, restarts):
  (tmp_path / "thp").write_text("always [madvise] never\n")
  monkeypatch.setattr(large_pages, "THP", tmp_path / "thp")
  monkeypatch.setattr(large_pages.sys, "platform", platform)
  monkeypatch.setattr(large_pages.os, "confstr", lambda _: version)
  for name in (large_pages.TUNABLES, large_pages.GUARD):
    monkeypatch.delenv(name, raising=False)
  assert large_pages._has_effect() is restarts


def test_under_pytest_nothing_restarts(monkeypatch):
  monkeypatch.setattr(large_pages, "_has_effect", lambda: True)
  monkeypatch.setattr(large_pages.os, "execve", lambda *_: pytest.fail("restarted"))
  large_pages.restart_with_large_pages()
  monkeypatch.setattr(large_pages, "_is_own_process", lambda: True)
  large_pages.restart_with_large_pages(["condseg-train"])


def test_a_restart_that_is_refused_changes_nothing(monkeypatch):
  def refuse(*_):
    raise PermissionError
  monkeypatch.setattr(large_pages, "_has_effect", lambda: True)
  monkeypatch.setattr(large_pages, "_is_own_process", lambda: True)
  monkeypatch.setattr(large_pages.os, "execve", refuse)
  assert large_pages.restart_with_large_pages() is None


@linux
@pytest.mark.skipif("[madvise]" not in (large_pages.THP.read_text() if large_pages.THP.exists()
                                        else ""), reason="the system does not leave it to us")
@pytest.mark.parametrize("program", ["-m experiments.train", "-m condseg_jax.cli.train", "script"])
def test_training_has_large_pages(program, tmp_path):
  """The config file, which is loaded after the restart, shows the environment."""
  script = Path(sys.executable).parent / "condseg-train"
  command = [sys.executable, *program.split()] if program != "script" else [script]
  if program == "script" and not script.exists():
    pytest.skip("the package is not installed in this environment")
  config = tmp_path / "config.py"
  config.write_text("import os\ndef get_config():\n  raise ValueError("
                    "f\"{os.getpid()} {os.environ['GLIBC_TUNABLES']}\")\n")
  environment = {name: value for name, value in os.environ.items()
                 if name not in (large_pages.TUNABLES, large_pages.GUARD)}
  process = subprocess.Popen([*command, f"--config={config}"], stderr=subprocess.PIPE, text=True,
                             cwd=ROOT, env=environment | {"PYTHONPATH": str(ROOT)})
  errors = process.communicate()[1]
  assert f"ValueError: {process.pid} {TUNABLE}" in errors
