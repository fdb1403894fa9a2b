"""What a server answers is not trusted: a real HTTP server, with answers of its own."""

import http.server
import json
import threading

import pytest

from condseg_jax.errors import InputError

pytest.importorskip("dicomweb_client", reason="the extra pacs is not installed")

from condseg_jax.dicomweb.server import Server  # noqa: E402

STUDY, SERIES, MODALITY = "0020000D", "0020000E", "00080060"


@pytest.fixture
def answering():
  """Starts a server that answers every query with some series; returns its URL."""
  servers = []

  def start(*uids):
    body = json.dumps([{STUDY: {"vr": "UI", "Value": ["1.2"]}, SERIES: {"vr": "UI", "Value": [uid]},
                        MODALITY: {"vr": "CS", "Value": ["CT"]}} for uid in uids]).encode()

    class Handler(http.server.BaseHTTPRequestHandler):
      def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Type", "application/dicom+json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

      def log_message(self, *_arguments):
        pass
    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    servers.append(server)
    return f"http://127.0.0.1:{server.server_port}/dicom-web"
  yield start
  for server in servers:
    server.shutdown()
    server.server_close()


def test_identifiers_become_names_of_files_only_if_they_are_identifiers(answering):
  server = Server(answering("1.2.3", "../../outside", "/tmp/outside", "1.2/3", ""))
  assert [found.uid for found in server.image_series("1.2")] == ["1.2.3"]
  with pytest.raises(InputError, match="no images of study 1.2"):
    Server(answering("../outside")).image_series("1.2")
