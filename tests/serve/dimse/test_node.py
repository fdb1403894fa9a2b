"""The node against DCMTK and Orthanc: what arrives is answered once, to the right place."""

import contextlib
import json
import logging
import struct
import subprocess
import time

import httpx2
import numpy as np
import pydicom
import pytest

pytest.importorskip("pynetdicom", reason="the extra pacs is not installed")

from pynetdicom import AE  # noqa: E402
from pynetdicom.sop_class import CTImageStorage  # noqa: E402

from condseg_jax.errors import InputError  # noqa: E402
from condseg_jax.geometry import Volume  # noqa: E402
from condseg_jax.serve.dimse import network as module  # noqa: E402
from condseg_jax.serve.dimse import spool  # noqa: E402
from condseg_jax.serve.dimse.settings import Peer  # noqa: E402
from condseg_jax.serve.dimse.settings import Tls  # noqa: E402
from condseg_jax.serve.request import PredictRequest  # noqa: E402
from support import dimse  # noqa: E402
from support import orthanc  # noqa: E402
from support.dicom_files import read_segments  # noqa: E402
from support.service import AFFINE  # noqa: E402
from support.service import network  # noqa: E402
from support.service import voxels  # noqa: E402
from support.tls import make_certificate  # noqa: E402
from support.waiting import free_port  # noqa: E402
from support.waiting import listens  # noqa: E402
from support.waiting import until  # noqa: E402

# pynetdicom leaves the socket of a peer that has gone away to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
STUDY = "1.2.826.9"


@pytest.fixture(scope="module")
def predictor():
  return network()


@pytest.fixture(scope="module")
def receiver(tmp_path_factory):
  """A port, and the folder of what has arrived there."""
  port, folder = free_port(), tmp_path_factory.mktemp("received")
  with dimse.storescp(port, folder):
    yield port, folder


@pytest.fixture
def received(receiver):
  """The objects that have arrived for given series."""
  whole = {}  # each is read once

  def read(*series):
    for path in receiver[1].iterdir():
      if path.suffix == ".tmp" or path in whole:
        continue
      with contextlib.suppress(pydicom.errors.InvalidDicomError, EOFError, AttributeError):
        dataset = pydicom.dcmread(path)  # a file that is being written has no end yet
        if source(dataset) and "PixelData" in dataset:
          whole[path] = dataset
    return [dataset for dataset in whole.values() if source(dataset) in series]
  return read


@pytest.fixture(scope="module", autouse=True)
def soon():
  """What takes seconds with people takes less here."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(spool, "SETTLE_SECONDS", 0.2)
    yield


@pytest.fixture(scope="module")
def running(predictor, receiver, tmp_path_factory):
  """A node with short times, used by all tests that need no other."""
  node = dimse.make_node(tmp_path_factory.mktemp("spool") / "s", receiver[0], quiet_seconds=3.0)
  with dimse.running(node, predictor, tmp_path_factory.mktemp("requests")):
    yield node


def write(folder, number, **options):
  """Writes a series; returns its UID and files."""
  uid = f"{STUDY}.{number}.1"
  return uid, orthanc.write_study(folder, f"{STUDY}.{number}", uid, **options)


def source(dataset) -> str:
  return dataset.ReferencedSeriesSequence[0].SeriesInstanceUID


def associate(node, calling=dimse.SENDER, called=dimse.AET):
  entity = AE(ae_title=calling)
  entity.add_requested_context(CTImageStorage)
  return entity.associate("127.0.0.1", node.port, ae_title=called)


def test_echo_and_who_is_rejected(running):
  def echo(calling, called=dimse.AET):
    return subprocess.run([dimse.program("echoscu"), "-aet", calling, "-aec", called, "127.0.0.1",
                           str(running.port)], capture_output=True).returncode
  assert echo(dimse.SENDER) == 0
  assert echo("STRANGER") != 0 and echo(dimse.SENDER, "OTHER") != 0


def test_a_series_is_answered(running, predictor, received, tmp_path):
  uid, paths = write(tmp_path, 1)
  assert dimse.ended(dimse.storescu(running.port, *paths)) == 0
  (dataset,) = until(lambda: received(uid))
  assert dataset.PatientName == "Doe^Jane"
  dataset.save_as(tmp_path / "seg.dcm")
  expected = predictor.predict(Volume(voxels(), AFFINE))
  masks = read_segments(tmp_path / "seg.dcm", expected.label.geometry)
  assert masks
  for name, mask in masks.items():
    np.testing.assert_array_equal(mask, expected.label.array == expected.names[name])
  time.sleep(1)
  assert len(received(uid)) == 1 and not list((running.spool / "ready").iterdir())


def test_compressed_series(running, received, tmp_path):
  """Stored as they come, and segmented like the others: JPEG-LS, JPEG, RLE."""
  uids = []
  for number, (compress, flag) in enumerate((("dcmcjpls", "-xt"), ("dcmcjpeg", "-xs"),
                                             ("dcmcrle", "-xr"))):
    uid, paths = write(tmp_path, 20 + number)
    packed = [path.with_suffix(".packed") for path in paths]
    for before, after in zip(paths, packed, strict=True):
      subprocess.run([dimse.program(compress), str(before), str(after)], check=True)
    assert pydicom.dcmread(packed[0]).file_meta.TransferSyntaxUID.is_compressed
    assert dimse.ended(dimse.storescu(running.port, *packed, flags=(flag,))) == 0
    uids.append(uid)
  until(lambda: len(received(*uids)) == 3)


@pytest.mark.slow
def test_twenty_series_in_parallel_and_one_that_breaks(running, received, tmp_path):
  """Each is answered once; the broken one when it is sent again."""
  series = [write(tmp_path, 100 + number) for number in range(20)]
  broken, paths = series[-1]
  uids = [uid for uid, _ in series]
  senders = [dimse.storescu(running.port, *paths) for _, paths in series[:-1]]
  half = dimse.storescu(running.port, *paths[:3], flags=("--abort",))
  assert [dimse.ended(sender) for sender in senders] == [0] * 19
  dimse.ended(half)
  until(lambda: len(received(*uids)) == 19)
  time.sleep(running.quiet_seconds + 1)  # the three slices are not answered, however long it takes
  assert sorted(map(source, received(*uids))) == sorted(set(uids) - {broken})
  assert dimse.ended(dimse.storescu(running.port, *paths)) == 0
  until(lambda: received(broken))
  assert sorted(map(source, received(*uids))) == sorted(uids)


def test_an_open_association_that_is_quiet(running, received, tmp_path):
  uid, paths = write(tmp_path, 2)
  association = associate(running)
  for path in paths:
    assert association.send_c_store(path).Status == 0
  until(lambda: received(uid))
  assert association.is_established
  association.release()


def test_what_is_no_slice_is_refused(running, tmp_path):
  _, paths = write(tmp_path, 3)
  association = associate(running)
  dataset = pydicom.dcmread(paths[0])
  del dataset.SeriesInstanceUID
  assert association.send_c_store(dataset).Status == module.CANNOT_UNDERSTAND
  association.release()


def test_an_association_whose_thread_fails_is_broken(tmp_path, said):
  """A command without its kind ends a thread of pynetdicom, which then tells of no end."""
  node = dimse.make_node(tmp_path / "s", 9)
  kept = spool.Spool(node.spool, 0.1)
  receiver = module.Receiver(node, kept)
  receiver.start()
  try:
    association = associate(node)
    assert association.send_c_store(write(tmp_path, 11)[1][0]).Status == module.SUCCESS
    group_length = struct.pack("<HHII", 0, 0, 4, 0)
    value = bytes((association.accepted_contexts[0].context_id, 3)) + group_length
    association.dul.socket.send(struct.pack(">BxII", 4, len(value) + 4, len(value)) + value)
    until(lambda: any("broke" in line for line in said()))
    time.sleep(0.3)  # longer than it takes a series to be complete
    kept.collect()
    assert kept.ready() == [] and kept.waiting() == 1
    assert any("no DICOM (AttributeError)" in line for line in said())
    association.abort()
  finally:
    receiver.close()


def test_too_large_an_instance_breaks_the_association(running, monkeypatch, tmp_path):
  monkeypatch.setattr(module, "MAX_INSTANCE", 100_000)
  _, paths = write(tmp_path, 4)
  association = associate(running)
  dataset = pydicom.dcmread(paths[0])
  dataset.PixelData = bytes(300_000)
  assert "Status" not in association.send_c_store(dataset)
  until(lambda: not association.is_established)
  assert dimse.ended(dimse.storescu(running.port, *paths)) == 0  # others are not concerned


def test_a_full_disk(running, monkeypatch, tmp_path):
  monkeypatch.setattr(module, "FREE_BYTES", 1 << 62)
  _, paths = write(tmp_path, 5)
  association = associate(running)
  assert association.send_c_store(paths[0]).Status == module.OUT_OF_RESOURCES
  association.release()


def test_a_series_that_cannot_be_segmented(running, received, caplog, monkeypatch, tmp_path):
  monkeypatch.setattr(logging.getLogger("condseg_jax"), "propagate", True)
  uid, paths = write(tmp_path, 6, modality="PT")  # the network is for MR
  before = set((running.spool / "failed").iterdir())
  with caplog.at_level("INFO"):
    assert dimse.ended(dimse.storescu(running.port, *paths)) == 0
    (path,) = until(lambda: set((running.spool / "failed").iterdir()) - before)
    until(lambda: "not segmented" in caplog.text)
  assert json.loads(path.read_text())["status"] == 422
  assert "Doe" not in caplog.text and "patient" not in caplog.text
  time.sleep(0.5)
  assert received(uid) == []


def test_other_hosts_are_disconnected(predictor, receiver, tmp_path):
  node = dimse.make_node(tmp_path / "s", receiver[0], peers=(Peer(dimse.SENDER, "192.0.2.1"),))
  with dimse.running(node, predictor, tmp_path):
    assert not associate(node).is_established


def test_a_known_entity_at_the_host_of_another_is_rejected(predictor, receiver, tmp_path):
  node = dimse.make_node(tmp_path / "s", receiver[0], peers=(
      Peer(dimse.SENDER, "192.0.2.1"), Peer("ORTHANC", "127.0.0.1")))
  with dimse.running(node, predictor, tmp_path):
    association = associate(node)
    assert association.is_rejected
    assert associate(node, "ORTHANC").is_established


def test_results_wait_for_their_receiver(predictor, tmp_path):
  node = dimse.make_node(tmp_path / "s", free_port())
  _, paths = write(tmp_path, 7)
  with dimse.running(node, predictor, tmp_path):
    assert dimse.ended(dimse.storescu(node.port, *paths)) == 0
    until(lambda: list(node.spool.glob("results/[!.]*/*")))
  with dimse.storescp(node.send_to.port, tmp_path / "in"), dimse.running(node, predictor, tmp_path):
    until(lambda: not list(node.spool.glob("results/*")))
    assert len(list((tmp_path / "in").iterdir())) == 1


def test_unknown_classes_end_the_node(predictor, receiver, tmp_path):
  node = dimse.make_node(tmp_path / "s", receiver[0], request=PredictRequest(("heart",)))
  with pytest.raises(InputError, match="heart"):
    with dimse.running(node, predictor, tmp_path):
      until(lambda: not listens(node.port))


def test_tls(predictor, tmp_path):
  """Both ways; a peer without TLS, or without a certificate, is told nothing."""
  certificate, key = map(str, make_certificate(tmp_path))
  secure = ("+tls", key, certificate, "+cf", certificate)
  node = dimse.make_node(tmp_path / "s", free_port(), tls=Tls(certificate, key, certificate))
  _, paths = write(tmp_path, 10)
  with dimse.storescp(node.send_to.port, tmp_path / "in", secure), (
      dimse.running(node, predictor, tmp_path)):
    assert dimse.ended(dimse.storescu(node.port, *paths)) != 0
    nobody = ("+tla", "+cf", certificate)
    assert dimse.ended(dimse.storescu(node.port, *paths, flags=nobody)) != 0
    assert node_is_empty(node)
    assert dimse.ended(dimse.storescu(node.port, *paths, flags=secure)) == 0
    until(lambda: list((tmp_path / "in").iterdir()) and not list(node.spool.glob("results/*")))


def node_is_empty(node) -> bool:
  return not any(list(folder.iterdir()) for folder in node.spool.iterdir())


def test_orthanc_sends_and_receives(predictor, tmp_path):
  """In parallel: two studies are sent, and their segmentations are found by QIDO."""
  node = dimse.make_node(tmp_path / "s", 0, request=PredictRequest(output="dicom"))
  with orthanc.running(tmp_path, {dimse.AET: node.port}) as archive:
    node = node._replace(send_to=Peer(orthanc.AET, "127.0.0.1", archive.port))
    with dimse.running(node, predictor, tmp_path):
      for number in (8, 9):
        archive.upload(write(tmp_path, number)[1])
      for one in httpx2.get(f"{archive.url}/series").json():
        answer = httpx2.post(f"{archive.url}/modalities/{dimse.AET}/store", content=one,
                             timeout=60)
        assert answer.status_code == 200, answer.text
      for kind in ("SEG", "RTSTRUCT"):
        until(lambda kind=kind: len(archive.series(kind)) == 2)
      (found,) = archive.series("SEG", f"{STUDY}.8")
      (path,) = archive.download(found["0020000E"], tmp_path / "seg")
      expected = predictor.predict(Volume(voxels(), AFFINE))
      for name, mask in read_segments(path, expected.label.geometry).items():
        np.testing.assert_array_equal(mask, expected.label.array == expected.names[name])
