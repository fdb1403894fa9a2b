"""TLS from files of certificates and keys (PEM)."""

import os
import ssl

from condseg_jax.errors import InputError


def server_context(certificate: str | os.PathLike, key: str | os.PathLike,
                   authority: str | os.PathLike = "") -> ssl.SSLContext:
  """Returns the context of a server, for TLS 1.2 and newer.

  Args:
    certificate: file of the certificate, followed by those that lead to its authority.
    key: file of its key, without a password.
    authority: file of the certificates that those of clients must lead to; "" if they need none.

  Raises:
    InputError: a file cannot be read, or does not fit the others.
  """
  context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
  if authority:
    context.verify_mode = ssl.CERT_REQUIRED
    _load_authority(context, authority)
  _load(context, certificate, key)
  return context


def client_context(certificate: str | os.PathLike, key: str | os.PathLike,
                   authority: str | os.PathLike) -> ssl.SSLContext:
  """Returns the context of a client that shows a certificate; arguments as for `server_context`."""
  context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
  _load_authority(context, authority)
  _load(context, certificate, key)
  return context


def _load(context: ssl.SSLContext, certificate: str | os.PathLike, key: str | os.PathLike) -> None:
  context.minimum_version = ssl.TLSVersion.TLSv1_2
  for path in (certificate, key):
    _check(path)

  def no_password() -> str:  # OpenSSL would ask for it at the terminal
    raise InputError(key, "is encrypted", "give a key without a password, which its owner alone "
                     "can read", usage=True)

  try:
    context.load_cert_chain(certificate, key, no_password)
  except ssl.SSLError as error:
    raise InputError(certificate, f"and {key} are no certificate and its key "
                     f"({error.reason or error})", "give two PEM files that belong together",
                     usage=True) from error


def _load_authority(context: ssl.SSLContext, path: str | os.PathLike) -> None:
  _check(path)
  try:
    context.load_verify_locations(path)
  except ssl.SSLError as error:
    raise InputError(path, f"contains no certificate ({error.reason or error})",
                     "give a PEM file", usage=True) from error


def _check(path: str | os.PathLike) -> None:
  try:
    with open(path, "rb"):
      pass
  except OSError as error:
    raise InputError(path, f"cannot be read: {error.strerror}", "check path and permissions",
                     usage=True) from error
