"""A DICOMweb server: finds series (QIDO-RS), fetches them (WADO-RS), stores results (STOW-RS).

Needs the extra `pacs`. Name and password, where a server wants them, are those of ~/.netrc.
"""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
import contextlib
import os
from pathlib import Path
from typing import NamedTuple
import warnings

from condseg_jax.dicomweb.address import check_url
from condseg_jax.dicomweb.address import is_uid
from condseg_jax.errors import InputError

TIMEOUT = 60.0  # seconds for the server to answer, or to send anything
ATTEMPTS, FIRST_PAUSE = 3, 250  # of a request; milliseconds, doubled for each further one
WHOLE = (("application/dicom", "*"),)  # in whatever transfer syntax it is stored
# Of series that are not images.
NO_IMAGE = ("AU", "DOC", "ECG", "FID", "HD", "KO", "PLAN", "PR", "REG", "RTDOSE", "RTPLAN",
            "RTRECORD", "RTSTRUCT", "RWV", "SEG", "SMR", "SR", "SRF", "STAIN")
STUDY_UID, SERIES_UID, MODALITY = "0020000D", "0020000E", "00080060"
INSTANCES = "00201209"  # their number in a series; optional in answers
FAILED = "FailedSOPSequence"


class Found(NamedTuple):
  """A series on a server.

  Attributes:
    study: StudyInstanceUID.
    uid: SeriesInstanceUID.
    modality: CT, MR, …; "" if unknown.
    instances: number of instances; 0 if unknown.
  """

  study: str
  uid: str
  modality: str
  instances: int = 0


class Server:
  """A DICOMweb server.

  Args:
    url: its address.

  Raises:
    InputError: an invalid address, or the extra `pacs` is not installed.
  """

  def __init__(self, url: str):
    check_url(url)
    try:
      from dicomweb_client import DICOMwebClient
    except ImportError as error:
      raise InputError("DICOMweb", "needs dicomweb-client", 'pip install "condseg-jax[pacs]"'
                       ) from error
    self.url = url
    self._client = DICOMwebClient(url, permissive_uid=True, timeout=TIMEOUT)
    self._client.set_http_retry_params(max_attempts=ATTEMPTS,
                                       wait_exponential_multiplier=FIRST_PAUSE)

  def image_series(self, study: str = "", series: str = "") -> list[Found]:
    """Finds the image series of a study, or a series by its identifier.

    Args:
      study: StudyInstanceUID; "" for any study, with `series`.
      series: SeriesInstanceUID; "" for all series of the study.

    Raises:
      InputError: there is none, or the server fails.
    """
    assert study or series
    filters = {"SeriesInstanceUID": series} if series else None
    with self._told():
      answers = self._client.search_for_series(study or None, search_filters=filters)
      found = [Found(_value(one, STUDY_UID) or study, _value(one, SERIES_UID),
                     _value(one, MODALITY), int(_value(one, INSTANCES) or 0)) for one in answers]
    # A server may ignore a filter that it does not know. Identifiers become names of files here, so
    # anything else that it answers is left out.
    found = [one for one in found if is_uid(one.uid) and is_uid(one.study)
             and (not series or one.uid == series) and one.modality not in NO_IMAGE]
    if not found:
      kind = f"series {series}" if series else f"study {study}"
      raise InputError(self.url, f"has no images of {kind}", "check the identifier",
                       kind="missing")
    return found

  def fetch(self, found: Found, folder: Path, *, max_files: int | None = None,
            max_bytes: int | None = None, stopped: Callable[[], bool] = lambda: False) -> int:
    """Writes the instances of a series as files, one at a time in memory.

    Args:
      found: the series.
      folder: is created.
      max_files: maximum number of instances.
      max_bytes: maximum size of all instances.
      stopped: called before each instance; ends the transfer when it returns True.

    Returns:
      The number of instances.

    Raises:
      InputError: more than the maximum, none or fewer instances than the server has, or the server
        fails.
    """
    folder.mkdir(parents=True)
    count, size = 0, 0
    with self._told():
      for dataset in self._client.iter_series(found.study, found.uid, media_types=WHOLE):
        path = folder / f"{count:05d}.dcm"
        # As it was sent. Written anew from its elements, a damaged instance would look sound.
        path.write_bytes(dataset.buffer.getvalue())
        count, size = count + 1, size + path.stat().st_size
        if stopped():
          break
        if (max_files is not None and count > max_files
            or max_bytes is not None and size > max_bytes):
          raise InputError(self.url, f"sends more than {count - 1} instances and "
                           f"{size >> 20} MiB of a series", "choose a smaller series",
                           kind="size")
    if not count:
      raise InputError(self.url, f"sends no instance of series {found.uid}",
                       "check the permissions on the server")
    if count < found.instances and not stopped():
      # A message that ends too early is no error for the parser: slices would be missing unnoticed.
      raise InputError(self.url, f"sends {count} of {found.instances} instances of series "
                       f"{found.uid}", "try again, and see the log of the server")
    return count

  def store(self, paths: Sequence[str | os.PathLike]) -> None:
    """Stores DICOM files.

    Raises:
      InputError: the server refuses one, or fails.
    """
    import pydicom
    with self._told():
      answer = self._client.store_instances([pydicom.dcmread(path) for path in paths])
    failed = answer.get(FAILED)
    if failed:
      code = failed[0].get("FailureReason", 0)
      raise InputError(self.url, f"refuses {len(failed)} of {len(paths)} objects (reason "
                       f"{code:04X}H)", "see the log of the server")

  @contextlib.contextmanager
  def _told(self) -> Iterator[None]:
    """Turns failures of the server, and what it sends that is no DICOM, into InputError."""
    import pydicom
    import requests
    try:
      with warnings.catch_warnings(), pydicom.config.disable_value_validation():
        warnings.simplefilter("ignore")  # about what servers send
        yield
    except requests.HTTPError as error:
      status = error.response.status_code if error.response is not None else "unknown"
      raise InputError(self.url, f"answers with status {status}",
                       "check the address, the identifiers and ~/.netrc") from error
    except requests.RequestException as error:
      kind = "does not answer in time" if isinstance(error, requests.Timeout) else (
          "cannot be reached")
      raise InputError(self.url, f"{kind} ({type(error).__name__})",
                       "check the address and the server") from error
    except InputError:
      raise
    except Exception as error:  # of the parsers, about what the server sends
      if isinstance(error, OSError) and error.errno is not None:  # of the local disk
        raise
      raise InputError(self.url, f"sends what is no DICOMweb answer ({type(error).__name__})",
                       "check the address") from error


def _value(attributes: dict, tag: str) -> str:
  """Returns the first value of an attribute in DICOM JSON; "" for none."""
  values = attributes.get(tag, {}).get("Value") or [""]
  return str(values[0])
