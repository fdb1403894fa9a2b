"""The real Python client of MONAI Label; tests that need it are skipped where it is missing."""

import warnings

import pytest


def client(address: str, folder):
  """A client of a service.

  Args:
    address: of the service.
    folder: for the files that it receives.
  """
  with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # it imports `cgi`, which Python 3.13 lost
    module = pytest.importorskip("monailabel.client", exc_type=ImportError,
                                 reason="monailabel (or cgi, in Python 3.13) is not installed")
  return module.MONAILabelClient(address, str(folder), "a-test")
