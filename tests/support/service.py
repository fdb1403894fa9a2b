"""A service in the process of the test, and request bodies; shared by the tests of serve/."""

import asyncio
import contextlib
import gzip
import io
from pathlib import Path
import socket
import stat
import struct
import tempfile
import threading
import zipfile

import jax
import jax.numpy as jnp
import nibabel
import numpy as np
from PIL import Image
from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.testclient import TestClient
import uvicorn

from condseg_jax.classes import ClassTable
from condseg_jax.infer.fuse import FUSIONS
from condseg_jax.models.dense_unet import DenseUNet
from condseg_jax.plan import Plan
from condseg_jax.predictor import Predictor
from condseg_jax.serve.app import build_app
from condseg_jax.serve.guard import Access
from condseg_jax.serve.handler import handle
from condseg_jax.serve.hosts import Hosts
from condseg_jax.serve.queue import Queue
from condseg_jax.serve.request import Limits
from condseg_jax.serve.server import Protocol
from support.dicom_files import write_series

AFFINE = np.array([[-1.0, 0, 0, 9], [0, -1.0, 0, 7], [0, 0, 2.0, -5], [0, 0, 0, 1]])
LIMITS = Limits(body=1 << 20, members=50, grace_seconds=60, memory=8 << 20)
WINDOW = (4, 8, 8)


def network() -> Predictor:
  """An untrained network with three classes."""
  table = ClassTable.create(["liver", "spleen", "pancreas"], presets={"two": ["liver", "spleen"]})
  model = DenseUNet(codes=tuple(table.codes.tolist()), strides=((2, 2, 2),),
                    layers_per_level=(1, 1),
                    channels=4, growth=4)
  variables = jax.jit(model.init)(jax.random.key(3), jnp.zeros((1, *WINDOW, 1)),
                                  jnp.zeros(1, jnp.int32))
  return Predictor(model, variables, table, Plan("mr", (2.0, 1.0, 1.0), WINDOW))


def picture_network() -> Predictor:
  """An untrained network of two classes for colour pictures."""
  table = ClassTable.create(["car", "road"])
  model = DenseUNet(codes=tuple(table.codes.tolist()), strides=((2, 2),), layers_per_level=(1, 1),
                    channels=4, growth=4)
  variables = jax.jit(model.init)(jax.random.key(3), jnp.zeros((1, 16, 16, 3)),
                                  jnp.zeros(1, jnp.int32))
  return Predictor(model, variables, table, Plan("rgb", (1.0, 1.0), (16, 16)))


def picture(shape=(20, 30), kind="PNG") -> bytes:
  """A colour picture as a file."""
  stream = io.BytesIO()
  array = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
  Image.fromarray(array).save(stream, kind)
  return stream.getvalue()


class Inside:
  """A `Device` that predicts in a thread instead of a worker process."""

  def __init__(self, predictor: Predictor, limits: Limits):
    self._predictor, self._limits = predictor, limits
    self.table, self.fusions, self.ready = predictor.table, FUSIONS, True
    self.axes, self.progress = len(predictor.plan.spacing), None

  async def start(self):
    self.ready = True

  async def run(self, folder, request, _cancelled):
    return await asyncio.to_thread(handle, self._predictor, folder, vars(request), self._limits,
                                   self._told)

  def _told(self, _event, done=None):
    self.progress = done

  async def exited(self):
    await asyncio.Event().wait()

  def kill(self):
    pass


class Held(Inside):
  """Holds each prediction until `go` is set; records its start and its cancellation."""

  def __init__(self, predictor, limits):
    super().__init__(predictor, limits)
    self.begun, self.go, self.stopped = threading.Event(), threading.Event(), threading.Event()

  async def run(self, folder, request, cancelled):
    self.begun.set()
    while not self.go.is_set():
      if cancelled.is_set():
        self.stopped.set()
        return {"status": 0}
      await asyncio.sleep(0.01)
    return await super().run(folder, request, cancelled)


def application(device, limits: Limits, folder: Path, tokens=None, audit=None,
                **more) -> Starlette:
  """The application on a device, with its queue at work."""
  queue = Queue(device, limits)
  access = Access(Hosts("127.0.0.1"), tokens, audit)

  @contextlib.asynccontextmanager
  async def lifespan(_app):
    run = asyncio.create_task(queue.run())
    yield
    run.cancel()

  return Starlette(routes=[Mount("/", build_app(queue, limits, folder, access, **more))],
                   lifespan=lifespan)


@contextlib.contextmanager
def client(device, limits: Limits = LIMITS, folder: Path | None = None, **more):
  """A client of the application on a device."""
  with contextlib.ExitStack() as stack:
    folder = folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
    yield stack.enter_context(TestClient(application(device, limits, folder, **more),
                                         base_url="http://localhost",
                                         raise_server_exceptions=False))


@contextlib.contextmanager
def listening(device, folder: Path, limits: Limits = LIMITS, tls=None, **more):
  """The address at which the application listens, in a thread of this process."""
  config = uvicorn.Config(application(device, limits, folder, **more), log_config=None,
                          loop="asyncio", http=Protocol, ws="none",
                          ssl_context_factory=(lambda *_: tls) if tls else None)
  server = uvicorn.Server(config)
  with socket.create_server(("127.0.0.1", 0)) as listener:
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
      yield f"{'https' if tls else 'http'}://127.0.0.1:{listener.getsockname()[1]}"
    finally:
      server.should_exit = True
      thread.join()


def voxels(seed=0, shape=(12, 10, 6)) -> np.ndarray:
  """A volume along the axes of its file."""
  return np.random.default_rng(seed).normal(60, 60, shape).astype(np.int16)


def nifti(array=None, affine=AFFINE) -> bytes:
  """A NIfTI file, by nibabel alone."""
  array = voxels() if array is None else array
  return nibabel.Nifti1Image(array, affine, dtype=array.dtype).to_bytes()


def zipped(members, **attributes) -> bytes:
  """A zip of (name, content) with attributes set on every member."""
  stream = io.BytesIO()
  with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
    for name, content in members:
      info = zipfile.ZipInfo(name)
      info.compress_type = zipfile.ZIP_DEFLATED
      for key, value in attributes.items():
        setattr(info, key, value)
      archive.writestr(info, content)
  return stream.getvalue()


def series(array=None, modality="MR", **options) -> bytes:
  """A zipped DICOM series, of what `network` is for."""
  with tempfile.TemporaryDirectory() as folder:
    paths = write_series(Path(folder), voxels() if array is None else array, AFFINE,
                         modality=modality, **options)
    return zipped([(f"study/{path.name}", path.read_bytes()) for path in paths])


def bad_bodies() -> dict[str, tuple[bytes, int]]:
  """Name of an invalid body → the body and its expected status, within `LIMITS`."""
  whole, packed, dicom = nifti(), gzip.compress(nifti()), series()
  holed = voxels().astype(np.float32)
  holed[2, 3, 4] = np.nan
  nowhere = bytearray(whole)
  nowhere[252:256] = bytes(4)
  far = bytearray(whole)
  far[80:84] = struct.pack("<f", 1e6)  # pixdim; the sform follows
  far[280:284] = struct.pack("<f", -1e6)
  with_link = zipped([("a.dcm", "/etc/passwd")], external_attr=(stat.S_IFLNK | 0o777) << 16)
  return {
      "empty": (b"", 400),
      "text": (b"hello " * 100, 415),
      "noise": (np.random.default_rng(1).bytes(5000), 415),
      "picture": (b"\x89PNG\r\n\x1a\n" + bytes(100), 415),
      "gzip of text": (gzip.compress(b"hello " * 100), 422),
      "cut": (whole[:-100], 422),
      "header alone": (whole[:348], 422),
      "cut gzip": (packed[:len(packed) // 2], 422),
      "damaged gzip": (packed[:-8] + bytes(8), 422),
      "gzip without end": (gzip.compress(whole + bytes(80 << 20)), 422),
      "four dimensions": (nifti(np.zeros((4, 4, 4, 3), np.int16)), 422),
      "not a number": (nifti(holed), 422),
      "nowhere": (bytes(nowhere), 422),
      "spacing of a kilometre": (bytes(far), 413),
      "too many voxels": (gzip.compress(nifti(np.zeros((100, 100, 100), np.int16))), 413),
      "too many bytes": (bytes(LIMITS.body + 1), 413),
      "empty zip": (zipped([]), 422),
      "zip of text": (zipped([("a.txt", "hello")]), 422),
      "cut zip": (dicom[:len(dicom) // 2], 422),
      "upward": (zipped([("../../etc/cron.d/a", "x")]), 422),
      "absolute": (zipped([("/etc/cron.d/a", "x")]), 422),
      "of Windows": (zipped([("c:\\a.dcm", "x")]), 422),
      "link": (with_link, 422),
      "zip in zip": (zipped([("a.zip", dicom)]), 422),
      "zip bomb": (zipped([(f"{i}.dcm", bytes(1 << 20)) for i in range(5)]), 413),
      "many members": (zipped([(f"{i}.dcm", "x") for i in range(51)]), 413),
      "missing slice": (series(tags={2: {"0020|0032": "9\\9\\9"}}), 422),
  }
