"""A certificate of its own for this machine, by openssl."""

from pathlib import Path
import shutil
import subprocess

import pytest


def make_certificate(folder: Path) -> tuple[Path, Path]:
  """Writes a certificate that is its own authority, and its key; skips the test without openssl."""
  if shutil.which("openssl") is None:
    pytest.skip("openssl is not installed")
  paths = folder / "cert.pem", folder / "key.pem"
  subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2",
                  "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost",
                  "-out", paths[0], "-keyout", paths[1]], check=True, capture_output=True)
  return paths
