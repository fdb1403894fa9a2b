"""The file that configures a DICOM node."""

import json

import pytest

from condseg_jax.errors import InputError
from condseg_jax.serve.dimse.settings import normal
from condseg_jax.serve.dimse.settings import Peer
from condseg_jax.serve.dimse.settings import read_node
from condseg_jax.serve.dimse.settings import Tls
from condseg_jax.serve.request import PredictRequest

LEAST = {"spool": "spool", "peers": [{"aet": "A", "host": "127.0.0.1"}],
         "send_to": {"aet": "B", "host": "localhost", "port": 104}}


@pytest.fixture
def read(tmp_path):
  def call(address="CONDSEG:11112", **changes):
    content = {key: value for key, value in (LEAST | changes).items() if value is not None}
    (tmp_path / "node.json").write_text(json.dumps(content))
    return read_node(address, tmp_path / "node.json")
  return call


def test_defaults_and_values(read):
  node = read()
  assert (node.aet, node.port, node.listen, node.quiet_seconds) == ("CONDSEG", 11112, "127.0.0.1",
                                                                    30)
  assert node.request == PredictRequest(output="dicom_seg") and node.send_to.port == 104
  node = read(objects=["seg", "rtstruct"], classes=["liver"], quiet_seconds=0.5, listen="0.0.0.0")
  assert node.request == PredictRequest(("liver",), output="dicom")
  assert read(objects=["rtstruct"]).request.output == "dicom_rtstruct"
  files = {"certificate": "c.pem", "key": "k.pem", "authority": "a.pem"}
  assert read(tls=files).tls == Tls(**files) and node.tls is None


@pytest.mark.parametrize("changes, reason", [
    ({"address": "CONDSEG"}, "AET:PORT"), ({"address": "A B:1"}, "AET:PORT"),
    ({"address": f"{'x' * 17}:1"}, "AET:PORT"), ({"address": "A:70000"}, "AET:PORT"),
    ({"spool": None}, "`spool` is missing"), ({"spool": 1}, "`spool` is no text"),
    ({"peers": []}, "lists nobody"), ({"peers": None}, "lists nobody"),
    ({"peers": [{"aet": "A"}]}, "no `host`"), ({"peers": ["A"]}, "no JSON object"),
    ({"peers": [{"aet": "A" * 17, "host": "x"}]}, "no `aet`"),
    ({"peers": [{"aet": "A", "host": "x", "port": 1}]}, "unknown key 'port'"),
    ({"send_to": None}, "no JSON object"), ({"send_to": LEAST["peers"][0]}, "no valid `port`"),
    ({"send_to": LEAST["send_to"] | {"port": True}}, "no valid `port`"),
    ({"objects": ["pdf"]}, "`objects` must be"), ({"objects": []}, "`objects` must be"),
    ({"classes": "liver"}, "no list of texts"), ({"quiet_seconds": 0}, "not a positive number"),
    ({"quiet_seconds": float("inf")}, "not a positive number"), ({"color": 1}, "unknown key"),
    ({"tls": "cert.pem"}, "`tls` is no JSON object"),
    ({"tls": {"certificate": "c", "key": "k"}}, "`tls` needs the files"),
    ({"tls": {"certificate": "c", "key": "k", "authority": 1}}, "`tls` needs the files"),
    ({"tls": {"password": "x"}}, "unknown key 'password'")])
def test_mistakes_are_one_line_of_usage(read, changes, reason):
  with pytest.raises(InputError, match=reason) as caught:
    read(**changes)
  assert caught.value.usage and "\n" not in str(caught.value)


def test_no_file_or_no_json(tmp_path):
  with pytest.raises(InputError, match="cannot be read"):
    read_node("A:1", tmp_path / "none")
  (tmp_path / "x").write_text("{")
  with pytest.raises(InputError, match="is not JSON"):
    read_node("A:1", tmp_path / "x")


def test_addresses_in_one_form():
  assert normal("::ffff:127.0.0.1") == normal("127.0.0.1") == "127.0.0.1"
  assert normal("fe80::1%eth0") == normal("FE80:0::1")
  assert "127.0.0.1" in Peer("A", "localhost").addresses()
  with pytest.raises(InputError, match="unknown"):
    Peer("A", "no.such.host.invalid").addresses()
