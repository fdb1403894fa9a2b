"""A real Orthanc on the loopback, and DICOM series of which every identifier is its own."""

from collections.abc import Iterator
import contextlib
import json
from pathlib import Path
import shutil
import subprocess
import time

import httpx2
import numpy as np
import pytest

from support.dicom_files import write_series
from support.service import AFFINE
from support.service import voxels
from support.waiting import free_port

PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
PATIENCE = 30  # seconds
AET = "ORTHANC"


class Orthanc:
  """A running Orthanc: `url` of its REST interface, `web` of DICOMweb, `port` of DIMSE."""

  def __init__(self, http: int, port: int):
    self.url, self.port = f"http://127.0.0.1:{http}", port
    self.web = f"{self.url}/dicom-web"
    self._http = httpx2.Client(base_url=self.url)

  def upload(self, paths: list[Path]) -> None:
    """Stores files."""
    for path in paths:
      answer = self._http.post("/instances", content=path.read_bytes())
      assert answer.status_code == 200, answer.text

  def series(self, modality: str, study: str = "") -> list[dict]:
    """Returns the series of a modality, found by QIDO: tag → value."""
    query = {"Modality": modality} | ({"StudyInstanceUID": study} if study else {})
    answer = self._http.get("/dicom-web/series", params=query)
    return [{tag: one["Value"][0] for tag, one in series.items() if "Value" in one}
            for series in (answer.json() if answer.content else [])]

  def download(self, series: str, folder: Path) -> list[Path]:
    """Writes the instances of a series into a folder."""
    folder.mkdir(exist_ok=True)
    query = {"Level": "Instance", "Query": {"SeriesInstanceUID": series}}
    paths = []
    for one in self._http.post("/tools/find", json=query).json():
      paths.append(folder / f"{one}.dcm")
      paths[-1].write_bytes(self._http.get(f"/instances/{one}/file").content)
    return paths

  def clear(self) -> None:
    """Removes everything stored."""
    for one in self._http.get("/patients").json():
      self._http.delete(f"/patients/{one}")

  def answers(self) -> bool:
    """Returns whether it has started."""
    try:
      return self._http.get("/system").status_code == 200
    except httpx2.HTTPError:
      return False

  def close(self) -> None:
    """Closes the connections to it."""
    self._http.close()


@contextlib.contextmanager
def running(folder: Path, peers: dict | None = None) -> Iterator[Orthanc]:
  """Starts Orthanc in a folder; the test is skipped where it is not installed.

  Args:
    folder: for its files.
    peers: AET → port of the DICOM nodes on this machine that it knows.
  """
  program = shutil.which("Orthanc")
  if program is None or not PLUGIN.exists():
    pytest.skip("orthanc and orthanc-dicomweb are not installed (Debian packages)")
  made = Orthanc(free_port(), free_port())
  (folder / "orthanc.json").write_text(json.dumps({
      "Name": "test", "HttpPort": int(made.url.rpartition(":")[2]), "DicomPort": made.port,
      "DicomAet": AET, "RemoteAccessAllowed": False, "AuthenticationEnabled": False,
      "StorageDirectory": str(folder / "storage"), "IndexDirectory": str(folder / "storage"),
      "Plugins": [str(PLUGIN)], "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
      "DicomModalities": {aet: [aet, "127.0.0.1", port] for aet, port in (peers or {}).items()},
      "OverwriteInstances": True, "StableAge": 1}))
  log = (folder / "orthanc.log").open("w")
  process = subprocess.Popen([program, str(folder / "orthanc.json")], stdout=log, stderr=log)
  try:
    end = time.monotonic() + PATIENCE
    while not made.answers():
      assert process.poll() is None, (folder / "orthanc.log").read_text()
      assert time.monotonic() < end, "Orthanc does not answer"
      time.sleep(0.05)
    yield made
  finally:
    made.close()
    process.kill()  # an orderly end takes seconds
    process.wait()
    log.close()


def write_study(folder: Path, study: str, *series: str, array: np.ndarray | None = None,
                modality: str = "MR") -> list[Path]:
  """Writes series with identifiers of their own, so that an archive keeps them apart.

  Args:
    folder: to write into, one folder per series.
    study: StudyInstanceUID.
    series: SeriesInstanceUIDs.
    array: columns, rows, slices; `service.voxels()` by default.
    modality: of the series.
  """
  array = voxels() if array is None else array
  paths = []
  for uid in series:
    common = {"0020|000d": study, "0010|0020": f"patient of {study}", "0010|0010": "Doe^Jane",
              "0008|0020": "20260101"}
    tags = {k: common | {"0008|0018": f"{uid}.{k + 1}", "0020|0013": str(k + 1)}
            for k in range(array.shape[2])}
    paths += write_series(folder / uid, array, AFFINE, uid=uid, tags=tags, modality=modality)
  return paths
