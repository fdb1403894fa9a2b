"""Stopping on SIGTERM, whatever the main thread does."""

import signal
import subprocess
import sys

import pytest

PROGRAM = """
import hashlib, sys
from condseg_jax.train.timing import Interrupt
with Interrupt(at_end=lambda: print("ended", flush=True)) as interrupt:
  if sys.argv[1] == "step":
    interrupt.everywhere(asks=False)
  print("ready", flush=True)
  hashlib.pbkdf2_hmac("sha256", b"", b"", int(sys.argv[2]))  # runs no Python, like a compiler
  print("stops" if interrupt.everywhere(asks=False) else "goes on", flush=True)
"""


@pytest.mark.parametrize("when, rounds, said", [
    ("compiling", 2_000_000_000, "ended\n"), ("step", 3_000_000, "stops\n")])
def test_sigterm_ends_compilation_and_waits_for_a_step(when, rounds, said):
  with subprocess.Popen([sys.executable, "-c", PROGRAM, when, str(rounds)],
                        stdout=subprocess.PIPE, encoding="utf-8") as process:
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0
    assert process.stdout.read() == said
