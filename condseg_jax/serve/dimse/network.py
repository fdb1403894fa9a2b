"""Receives and sends DICOM objects over the network, with pynetdicom."""

from collections.abc import Callable
from io import BytesIO
import itertools
import logging
from pathlib import Path
import shutil
import socket
from socketserver import BaseServer
import threading
import warnings

from pydicom import dcmread
from pydicom.errors import InvalidDicomError
from pydicom.uid import DeflatedExplicitVRLittleEndian
from pydicom.uid import ExplicitVRBigEndian
from pydicom.uid import ExplicitVRLittleEndian
from pydicom.uid import ImplicitVRLittleEndian
from pydicom.uid import JPEG2000
from pydicom.uid import JPEG2000Lossless
from pydicom.uid import JPEGLSTransferSyntaxes
from pydicom.uid import JPEGTransferSyntaxes
from pydicom.uid import RLELossless
from pynetdicom import _config
from pynetdicom import AE
from pynetdicom import evt
from pynetdicom.association import Association
from pynetdicom.dul import DULServiceProvider
from pynetdicom.sop_class import CTImageStorage  # type: ignore[attr-defined]
from pynetdicom.sop_class import MRImageStorage  # type: ignore[attr-defined]
from pynetdicom.sop_class import PositronEmissionTomographyImageStorage  # type: ignore[attr-defined]
from pynetdicom.sop_class import RTStructureSetStorage  # type: ignore[attr-defined]
from pynetdicom.sop_class import SegmentationStorage  # type: ignore[attr-defined]
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]
from pynetdicom.transport import ThreadedAssociationServer

from condseg_jax.errors import InputError
from condseg_jax.serve.dimse.settings import Node
from condseg_jax.serve.dimse.settings import normal
from condseg_jax.serve.dimse.spool import Spool
from condseg_jax.serve.request import FREE_BYTES
from condseg_jax.serve.tls import client_context
from condseg_jax.serve.tls import server_context

IMAGES = (CTImageStorage, MRImageStorage, PositronEmissionTomographyImageStorage)
# What the reader of series decodes.
SYNTAXES = (ExplicitVRLittleEndian, ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian,
            ExplicitVRBigEndian, RLELossless, *JPEGTransferSyntaxes, *JPEGLSTransferSyntaxes,
            JPEG2000Lossless, JPEG2000)
MAX_ASSOCIATIONS = 32
MAX_INSTANCE = 32 << 20  # bytes of a slice; it is in memory while it is received
SECONDS = 30.0  # for a peer to answer or to send anything
CONNECT_SECONDS = 5.0
# Status codes, PS3.4, B.2.3 and PS3.7, C.
SUCCESS, OUT_OF_RESOURCES, CANNOT_UNDERSTAND = 0x0000, 0xA700, 0xC000
# Reasons of rejection, PS3.8, 9.3.4.
UNKNOWN_CALLING, UNKNOWN_CALLED = 0x03, 0x07
LOG = logging.getLogger("condseg_jax")

# What they would log, or warn of, quotes values of patients.
_config.LOG_HANDLER_LEVEL = "none"
logging.getLogger("pynetdicom").setLevel(logging.CRITICAL)
QUIET = r"(pydicom|pynetdicom)\."  # modules
warnings.filterwarnings("ignore", module=QUIET)


def _tell_in_a_line(former: Callable[[threading.ExceptHookArgs], object]
                    ) -> Callable[[threading.ExceptHookArgs], object]:
  """Returns a hook for threads that fail, which has a line for those of pynetdicom.

  Garbled commands and PDUs out of order end its threads with an exception.
  """
  def hook(failure: threading.ExceptHookArgs) -> None:
    if isinstance(failure.thread, Association | DULServiceProvider):
      LOG.warning("dicom: a peer sent what is no DICOM (%s)", failure.exc_type.__name__)
    else:
      former(failure)
  return hook


threading.excepthook = _tell_in_a_line(threading.excepthook)


class _Sender:
  """An association of which a peer sends.

  Attributes:
    number: of the association.
    aet: application entity title of the peer.
    size: bytes of the instance that is being received.
  """

  def __init__(self, number: int, aet: str):
    self.number, self.aet, self.size = number, aet, 0


class Receiver:
  """Listens for associations of the peers of a node, and puts what they send into its spool.

  C-ECHO is answered. Other hosts are disconnected, and other application entities, or known ones at
  other hosts, are rejected.

  Args:
    node: the node.
    spool: for slices.

  Raises:
    InputError: the address cannot be used, or the host of a peer is unknown.
  """

  def __init__(self, node: Node, spool: Spool):
    self._spool, self._numbers = spool, itertools.count()
    self._senders: dict[Association, _Sender] = {}
    self._allowed = {(peer.aet, address) for peer in node.peers for address in peer.addresses()}
    entity = _entity(node.aet)
    entity.maximum_associations = MAX_ASSOCIATIONS
    entity.network_timeout = 2 * node.quiet_seconds + SECONDS  # an open one may be quiet
    entity.add_supported_context(Verification)
    for image in IMAGES:
      entity.add_supported_context(image, list(SYNTAXES))
    hosts = {address for _, address in self._allowed}
    context = server_context(*node.tls) if node.tls else None
    sweep = self._sweep

    class Server(ThreadedAssociationServer):
      """Accepts connections of peers only."""

      def verify_request(self, _request: object, client_address: tuple) -> bool:
        return normal(client_address[0]) in hosts

      def finish_request(self, request: socket.socket | tuple[bytes, socket.socket],
                         client_address: tuple) -> None:
        """Encrypts a connection in its own thread: nobody waits for the peer's part of it."""
        if context is not None and isinstance(request, socket.socket):
          request.settimeout(CONNECT_SECONDS)
          try:
            request = context.wrap_socket(request, server_side=True)
          except OSError:
            LOG.warning("dicom: a peer has no certificate that the node trusts, or no TLS")
            return
          request.settimeout(None)
        super().finish_request(request, client_address)

      def service_actions(self) -> None:
        super().service_actions()
        sweep()

      def shutdown(self) -> None:
        BaseServer.shutdown(self)  # that of pynetdicom fails for servers of `make_server`
        self.server_close()

    handlers: list[evt.EventHandlerType] = [
        (evt.EVT_REQUESTED, self._requested, [node.aet]), (evt.EVT_C_STORE, self._store),
        (evt.EVT_C_ECHO, lambda _event: SUCCESS), (evt.EVT_PDU_RECV, self._count),
        (evt.EVT_RELEASED, self._ended, [True]), (evt.EVT_ABORTED, self._ended, [False])]
    try:
      self._server = entity.make_server((node.listen, node.port), evt_handlers=handlers,
                                        server_class=Server)
    except OSError as error:
      raise InputError(f"DICOM node {node.aet}:{node.port}", f"cannot listen at {node.listen}: "
                       f"{error.strerror or error}", "choose another port, or `listen`",
                       usage=True) from error
    self.port: int = self._server.server_address[1]
    self._thread = threading.Thread(target=self._server.serve_forever, args=(0.1,), daemon=True,
                                    name="dicom")

  def start(self) -> None:
    """Starts to listen."""
    self._thread.start()

  def close(self) -> None:
    """Breaks all associations."""
    self._server.shutdown()
    for association in self._server.active_associations:
      association.abort()

  def _requested(self, event: evt.Event, aet: str) -> None:
    """Rejects an association that nobody may have."""
    requestor, acse = event.assoc.requestor, event.assoc.acse
    request = requestor.primitive
    assert request is not None  # what was requested
    calling = request.calling_ae_title.strip()
    if (calling, normal(requestor.address)) not in self._allowed:
      LOG.warning("dicom: rejected an association of an unknown application entity")
      reason = UNKNOWN_CALLING
    elif request.called_ae_title.strip() != aet:
      reason = UNKNOWN_CALLED
    else:
      self._senders[event.assoc] = _Sender(next(self._numbers), calling)
      return
    acse.send_reject(0x01, 0x01, reason)  # permanently, by the user of the service
    event.assoc.kill()  # once that is sent

  def _count(self, event: evt.Event) -> None:
    """Aborts an association that sends too large an instance."""
    sender = self._senders.get(event.assoc)
    if sender is None:
      return
    for item in getattr(event.pdu, "presentation_data_value_items", ()):
      sender.size += len(item.presentation_data_value)
    if sender.size > MAX_INSTANCE:
      LOG.warning("dicom: aborted an association with an instance of more than %d MiB",
                  MAX_INSTANCE >> 20)
      event.assoc.abort(block=False)

  def _store(self, event: evt.Event) -> int:
    """Answers C-STORE."""
    sender = self._senders[event.assoc]
    sender.size = 0
    try:
      if shutil.disk_usage(self._spool.folder).free < FREE_BYTES:
        return OUT_OF_RESOURCES
      content = event.encoded_dataset()
      header = dcmread(BytesIO(content), stop_before_pixels=True,
                       specific_tags=["SeriesInstanceUID", "SOPInstanceUID"])
      series, instance = str(header.SeriesInstanceUID), str(header.SOPInstanceUID)
      if not series or not instance:
        return CANNOT_UNDERSTAND
      self._spool.add(sender.number, sender.aet, series, instance, content)
    except OSError:
      LOG.exception("dicom: a slice could not be written to disk")
      return OUT_OF_RESOURCES
    except Exception:  # of the parser: whatever a sender may send
      return CANNOT_UNDERSTAND
    return SUCCESS

  def _sweep(self) -> None:
    """Ends associations whose threads have failed, of which pynetdicom tells nothing."""
    for association in list(self._senders):
      if not association.is_alive() and (sender := self._senders.pop(association, None)):
        self._spool.end(sender.number, orderly=False)
        if association.dul.socket is not None:
          association.dul.socket.close()

  def _ended(self, event: evt.Event, orderly: bool) -> None:
    sender = self._senders.pop(event.assoc, None)
    if sender is not None:
      self._spool.end(sender.number, orderly=orderly)


def send(node: Node, paths: list[Path], arrived: Callable[[Path], None]) -> None:
  """Sends DICOM files in one association.

  Args:
    node: the node; its `send_to` receives.
    paths: the files.
    arrived: called with each file that the receiver has accepted.

  Raises:
    InputError: the receiver is away, or refuses one.
  """
  entity, peer = _entity(node.aet), node.send_to
  # As they are written.
  entity.add_requested_context(SegmentationStorage, ExplicitVRLittleEndian)
  entity.add_requested_context(RTStructureSetStorage, ImplicitVRLittleEndian)
  tls = (client_context(*node.tls), peer.host) if node.tls else None
  association = entity.associate(peer.host, peer.port, ae_title=peer.aet, tls_args=tls)
  name = f"DICOM node {peer.aet}"
  if not association.is_established:
    raise InputError(name, "rejects the association" if association.is_rejected else
                     "cannot be reached", "check `send_to`, and that the node knows this one")
  try:
    for path in paths:
      try:
        status = association.send_c_store(path).get("Status")
      except (ValueError, RuntimeError, InvalidDicomError) as error:
        raise InputError(name, f"takes no such object ({error})", "check what it accepts"
                         ) from error
      if status is None or status != SUCCESS and status >> 12 != 0xB:  # B000H: a warning
        raise InputError(name, "does not answer" if status is None else
                         f"refuses an object (status {status:04X}H)", "see the log of the node")
      arrived(path)
  finally:
    association.release()


def _entity(aet: str) -> AE:
  entity = AE(ae_title=aet)
  entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = SECONDS
  entity.connection_timeout = CONNECT_SECONDS
  return entity
