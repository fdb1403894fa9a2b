"""Bytes to the port of a DICOM node: the PDUs of an association (PS3.8), one file for each.

Each association has to end: refused (rejected, aborted, closed, a status other than success) or as
the intact one, or as another valid one. A slice is in the spool if and only if its C-STORE was
answered with success, or its association broke before; a series is complete only if that ended in
order. Afterwards the node has to answer C-ECHO.
"""

import contextlib
import io
from pathlib import Path
import socket
import struct
import threading
import time
import warnings

import pydicom
from pydicom.uid import ImplicitVRLittleEndian
from pynetdicom.dsutils import encode

from condseg_jax.errors import InputError
from tools.fuzz import content as standard
from tools.fuzz.mutate import FILE
from tools.fuzz.mutate import Files
from tools.fuzz.mutate import Place
from tools.fuzz.target import Target
from tools.fuzz.targets import images

AET, SENDER = "CONDSEG", "SENDER"
VERIFICATION, CT = "1.2.840.10008.1.1", "1.2.840.10008.5.1.4.1.1.2"
CONTEXT = "1.2.840.10008.3.1.1.1"  # application context of DICOM
# Types of PDU, PS3.8, 9.3.
ASSOCIATE_RQ, ASSOCIATE_AC, REJECT, DATA, RELEASE_RQ, RELEASE_RP, ABORT = range(1, 8)
COMMAND, LAST = 1, 2  # bits of the header of a PDV
ANSWER_SECONDS = 1.0  # for a whole PDU to be answered
END_SECONDS = 10.0  # for an association to end after its connection
LITTLE = 1.0  # seconds that the node waits for the rest of a PDU
SETTLED = 0.4  # seconds after which the node has taken note of an end, and a series is complete


class Dimse(Target):
  """Associations with a node that puts what it receives into its spool."""

  name = "dimse"
  command_name = "serve"
  seconds = 30.0
  every = 0

  def __init__(self, home: Path):
    super().__init__(home)
    self._receiver, self._slot = None, None
    echo = {0x0002: VERIFICATION, 0x0100: 0x30, 0x0110: 1, 0x0800: 0x0101}
    self._echo = {"1 associate": _associate(VERIFICATION),
                  "2 command": _data(_command(echo), COMMAND | LAST),
                  "3 release": _pdu(RELEASE_RQ, bytes(4))}

  def variants(self) -> dict[str, dict[str, bytes]]:
    """Returns the associations."""
    dataset = _slice(self.home)
    store = {0x0002: CT, 0x0100: 1, 0x0110: 1, 0x0700: 0, 0x0800: 0,
             0x1000: str(pydicom.dcmread(io.BytesIO(_file(self.home))).SOPInstanceUID)}
    middle = len(dataset) // 2 & ~1
    release, command = _pdu(RELEASE_RQ, bytes(4)), _data(_command(store), COMMAND | LAST)
    return {
        "echo": self._echo,
        "store": {"1 associate": _associate(CT), "2 command": command,
                  "3 data": _data(dataset, LAST), "4 release": release},
        "parts": {"1 associate": _associate(CT), "2 command": command,
                  "3 data": _data(dataset[:middle], 0), "4 data": _data(dataset[middle:], LAST),
                  "5 release": release}}

  def places(self, files: Files) -> list[Place]:
    """Returns the PDUs, which may also be left out or exchanged."""
    names = sorted(files)
    return [*(Place(name, FILE) for name in names),
            *(Place(name, "bytes", (), 1 if " data" in name else 3) for name in names)]

  def warm_up(self) -> None:
    """Starts the node."""
    if self._receiver is not None:
      return
    from pydicom import config

    from condseg_jax.serve.dimse import network
    from condseg_jax.serve.dimse.settings import Node
    from condseg_jax.serve.dimse.settings import Peer
    from condseg_jax.serve.request import PredictRequest
    config.settings.reading_validation_mode = config.IGNORE
    network.SECONDS = LITTLE
    self._slot = _Slot()
    node = Node(AET, 0, "127.0.0.1", (Peer(SENDER, "127.0.0.1"),), Peer("NOBODY", "127.0.0.1", 9),
                self.home / "spool", 0.1, PredictRequest(output="dicom_seg"))
    self._receiver = network.Receiver(node, self._slot)
    self._receiver.start()

  def close(self) -> None:
    """Ends the node."""
    if self._receiver is not None:
      self._receiver.close()
      self._receiver = None

  def door(self, variant: str, folder: Path, out: Path) -> tuple[int, dict]:
    """Sends the PDUs, and looks at the spool afterwards."""
    from condseg_jax.serve.dimse import network
    from condseg_jax.serve.dimse.spool import Spool
    self.warm_up()
    warnings.filterwarnings("ignore", module=network.QUIET)  # as there; attempts show all others
    self._slot.spool = Spool(out / "spool", 0.1)
    sent = [path.read_bytes() for path in sorted(folder.iterdir())]
    answers = self._send(sent)
    if not self._ended():
      return 0, {"unsound": "the association does not end"}
    kinds = [kind for kind, _ in answers]
    stored = len(list((out / "spool").glob("receiving/*/*.dcm")))
    if stored and not any(pdu[:1] == bytes([RELEASE_RQ]) for pdu in sent):
      time.sleep(SETTLED)
      self._slot.spool.collect()
      if self._slot.spool.ready():
        return 0, {"unsound": "a series is complete although its association broke"}
    statuses = [status for kind, status in answers if kind == DATA]
    successes = statuses.count(0) if variant != "echo" else 0
    self._slot.spool = Spool(out / "echo", 0.1)
    trouble = ""
    if self._send(list(self._echo.values()))[:2] != [(ASSOCIATE_AC, None), (DATA, 0)]:
      trouble = "no answer to C-ECHO afterwards"
    elif stored > successes and RELEASE_RP in kinds:
      trouble = f"{stored} slices in the spool, {successes} answered with success"
    elif stored < min(successes, 1):
      trouble = "success, but no slice in the spool"
    if trouble:
      return 0, {"unsound": trouble}
    if kinds[:1] != [ASSOCIATE_AC] or any(statuses) or not statuses or kinds[-1] != RELEASE_RP:
      raise InputError("association", f"ended after {kinds}, with the statuses {statuses}",
                       "send it again")
    return 0, {"answers": kinds, "statuses": statuses, "stored": stored}

  def explain(self, variant: str, intact: Files, files: Files, content: dict) -> str:
    """Accepts other valid associations."""
    if content["stored"] > 1:
      raise standard.Damaged("more is stored than was sent")
    return "another valid association"

  def subjects(self, files: Files) -> list[str]:
    """Accepts any subject: a node refuses by the codes of the protocol."""
    return [""]

  def _send(self, pdus: list[bytes]) -> list[tuple[int, int | None]]:
    """Returns the types of the PDUs that come back, with the statuses of commands."""
    received = bytearray()
    with socket.create_connection(("127.0.0.1", self._receiver.port), ANSWER_SECONDS) as connection:
      with contextlib.suppress(ConnectionError, TimeoutError):
        for number, pdu in enumerate(pdus):
          connection.sendall(pdu)
          more = pdus[number + 1] if number + 1 < len(pdus) else b""
          if not pdu or pdu[0] == DATA and more[:1] == bytes([DATA]):  # its answer comes later
            continue
          part = connection.recv(1 << 16)
          received += part
          if not part or part[0] in (REJECT, ABORT):
            break
      with contextlib.suppress(ConnectionError, TimeoutError, OSError):
        connection.shutdown(socket.SHUT_WR)
        while part := connection.recv(1 << 16):
          received += part
    return list(_answers(bytes(received)))

  def _ended(self) -> bool:
    end = time.monotonic() + END_SECONDS
    while any(one.is_alive() for one in threading.enumerate()
              if one.name.startswith("AcceptorThread")):
      if time.monotonic() > end:
        return False
      time.sleep(0.005)
    return True


class _Slot:
  """Stands for the spool of the node: that of the current attempt."""

  spool = None

  @property
  def folder(self) -> Path:
    return self.spool.folder

  def add(self, *arguments) -> None:
    self.spool.add(*arguments)

  def end(self, *arguments, **more) -> None:
    self.spool.end(*arguments, **more)


def _answers(received: bytes):
  """Takes the PDUs of the node apart; each is (type, status of a command or None)."""
  while len(received) >= 6:
    kind, length = received[0], struct.unpack(">I", received[2:6])[0]
    body, received = received[6:6 + length], received[6 + length:]
    status = None
    if kind == DATA:
      at = body.find(struct.pack("<HHI", 0, 0x0900, 2))
      status = struct.unpack("<H", body[at + 8:at + 10])[0] if at >= 0 else None
    yield kind, status


def _pdu(kind: int, body: bytes) -> bytes:
  return struct.pack(">BxI", kind, len(body)) + body


def _item(kind: int, body: bytes) -> bytes:
  return struct.pack(">BxH", kind, len(body)) + body


def _associate(abstract: str) -> bytes:
  """A-ASSOCIATE-RQ with one presentation context, PS3.8, 9.3.2."""
  syntaxes = _item(0x30, abstract.encode()) + _item(0x40, ImplicitVRLittleEndian.encode())
  user = _item(0x51, struct.pack(">I", 16384)) + _item(0x52, b"1.2.826.0.1.99")
  return _pdu(ASSOCIATE_RQ, struct.pack(">H2x16s16s32x", 1, AET.ljust(16).encode(),
                                        SENDER.ljust(16).encode())
              + _item(0x10, CONTEXT.encode()) + _item(0x20, b"\1\0\0\0" + syntaxes)
              + _item(0x50, user))


def _data(content: bytes, flags: int) -> bytes:
  """P-DATA-TF with one PDV, PS3.8, 9.3.5."""
  return _pdu(DATA, struct.pack(">IBB", len(content) + 2, 1, flags) + content)


def _command(values: dict[int, int | str]) -> bytes:
  """A command set, PS3.7, 6.3: element of group 0 → value."""
  elements = b""
  for element, value in sorted(values.items()):
    content = struct.pack("<H", value) if isinstance(value, int) else value.encode()
    content += bytes(len(content) % 2)
    elements += struct.pack("<HHI", 0, element, len(content)) + content
  return struct.pack("<HHII", 0, 0, 4, len(elements)) + elements


def _file(home: Path) -> bytes:
  return images.Dicom(home).variants()["series"]["slice_1.dcm"]


def _slice(home: Path) -> bytes:
  """Returns a slice as it is sent: without the head of its file, in implicit VR."""
  content = encode(pydicom.dcmread(io.BytesIO(_file(home))), True, True)
  assert content is not None
  return content
