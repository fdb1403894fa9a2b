"""condseg-serve --workdir=RUN [--host=127.0.0.1] [--port=8000]
condseg-serve --new_token=NAME --tokens=FILE

Serves a trained network over HTTP, with a web page at / and an interface for programs:

  curl --data-binary @scan.nii.gz -o result.zip "http://127.0.0.1:8000/predict?classes=liver"
  curl --data-binary @series.zip "http://127.0.0.1:8000/predict?output=statistics"

The request body is a NIfTI file or a zipped DICOM series, raw or as the file of a form. Query
parameters: classes, preset, fusion, threshold, series, force=1, and output=zip, label, statistics
or, for a DICOM series, dicom_seg. Also GET /classes and GET /health.

3D Slicer's module and OHIF's plugin for MONAI Label work with this service, too; --datastore=FOLDER
lists images for them. --dicomweb=URL and --dicom=AET:PORT connect it to a PACS.

Without --tokens anybody who reaches the service may use it, and without --tls_cert and --tls_key
nothing is encrypted: serve only this machine then. The second command adds a token to FILE and
prints it. Requests from pages of other sites are refused. No data of a request is kept.
"""

import ipaddress
import logging
import sys

from absl import flags

from condseg_jax.cli import shell
from condseg_jax.cli.argument_flags import as_flags
from condseg_jax.errors import InputError
from condseg_jax.system.large_pages import restart_with_large_pages

LOG = logging.getLogger("condseg_jax")


def main(argv=None) -> int:
  restart_with_large_pages(argv)
  return shell.run(__doc__, _define, _work, argv, in_buckets=("workdir",))


def _define(values: flags.FlagValues) -> None:
  shell.define_model(values)
  flags.DEFINE_string("host", "127.0.0.1", "Address to listen on; 0.0.0.0 for all interfaces.",
                      flag_values=values)
  flags.DEFINE_integer("port", 8000, "Port to listen on; 0 for any free port.", lower_bound=0,
                       upper_bound=65535, flag_values=values)
  flags.DEFINE_list("allowed_hosts", [], "Names under which the service is reached besides "
                    "--host, e.g. that of a proxy; other requests get status 421.",
                    flag_values=values)
  flags.DEFINE_string("tokens", "", "File of the tokens, one of which every request must have, "
                      "except those to /health and /live.", flag_values=values)
  flags.DEFINE_string("new_token", "", "Add a token of this name to the file --tokens, print it, "
                      "and end.", flag_values=values)
  flags.DEFINE_string("audit", "", "File for a line of JSON about every request: time, token, "
                      "route, classes, outcome, seconds.", flag_values=values)
  flags.DEFINE_string("tls_cert", "", "PEM file of the certificate, and of those above it; the "
                      "service then speaks HTTPS.", flag_values=values)
  flags.DEFINE_string("tls_key", "", "PEM file of its key.", flag_values=values)
  flags.DEFINE_integer("queue", 8, "Maximum number of waiting requests; further ones get status "
                       "429.", lower_bound=0, flag_values=values)
  flags.DEFINE_integer("max_mb", 512, "Maximum size of a request body in MiB.", lower_bound=1,
                       flag_values=values)
  flags.DEFINE_float("memory_gb", 4, "Maximum memory of an image and its prediction in GB, besides "
                     "that of the network. It is estimated from the header of the image; larger "
                     "ones get status 413.", lower_bound=0.001, flag_values=values)
  flags.DEFINE_string("datastore", "", "Folder of images (.nii, .nii.gz, zipped DICOM series) that "
                      "clients of MONAI Label may list, segment and label.", flag_values=values)
  flags.DEFINE_string("dicomweb", "", "Address of a DICOMweb server, e.g. http://HOST/dicom-web: "
                      "requests name its studies and series, and can store results there (extra "
                      "`pacs`).", flag_values=values)
  flags.DEFINE_string("dicom", "", "AET:PORT: be a DICOM node that segments the series sent to it "
                      "(extra `pacs`).", flag_values=values)
  flags.DEFINE_string("dicom_config", "", "JSON file: who may send series, and where results go.",
                      flag_values=values)
  flags.DEFINE_float("timeout", 1800, "Maximum duration of a prediction in seconds.",
                     lower_bound=0.1, flag_values=values)


def _work(values: flags.FlagValues) -> int:
  if values.new_token:
    shell.require(values, "tokens")
    from condseg_jax.serve.tokens import add_token
    print(add_token(values.tokens, values.new_token))
    return 0
  shell.require(values, "workdir", *(["dicom_config"] if values.dicom else []),
                *(["tls_cert", "tls_key"] if values.tls_cert or values.tls_key else []))
  try:
    from condseg_jax.dicomweb.server import Server
    from condseg_jax.serve.audit import Audit
    from condseg_jax.serve.dimse.settings import read_node
    from condseg_jax.serve.guard import Access
    from condseg_jax.serve.hosts import Hosts
    from condseg_jax.serve.monai.datastore import Datastore
    from condseg_jax.serve.server import Address
    from condseg_jax.serve.server import Connections
    from condseg_jax.serve.server import serve
    from condseg_jax.serve.tls import server_context
    from condseg_jax.serve.tokens import Tokens
    if values.dicom:
      import pynetdicom  # noqa: F401
  except ModuleNotFoundError as error:
    extra = "pacs" if error.name == "pynetdicom" else "serve"
    raise InputError(f"package {error.name}", "is not installed",
                     f'pip install "condseg-jax[{extra}]"') from error
  from condseg_jax.serve.request import Limits

  limits = Limits(body=values.max_mb << 20, waiting=values.queue, job_seconds=values.timeout,
                  memory=int(values.memory_gb * 1e9))
  connections = Connections(Datastore(values.datastore) if values.datastore else None,
                            Server(values.dicomweb) if values.dicomweb else None,
                            read_node(values.dicom, values.dicom_config) if values.dicom else None)
  with as_flags(allowed_hosts="--allowed_hosts"):
    access = Access(Hosts(values.host, values.allowed_hosts),
                    Tokens(values.tokens) if values.tokens else None,
                    Audit(values.audit) if values.audit else None)
  tls = server_context(values.tls_cert, values.tls_key) if values.tls_cert else None
  if not _is_loopback(values.host):
    if access.tokens is None:
      LOG.warning("anybody who reaches %s may use the service; see --tokens", values.host)
    if tls is None:
      LOG.warning("images%s are sent without encryption; see --tls_cert, or put a proxy in front",
                  " and tokens" if access.tokens else "")
  with as_flags(members="--members"):
    serve(values.workdir, values.checkpoint, Address(values.host, values.port, tls), limits,
          connections, access, values.members)
  return 0


def _is_loopback(host: str) -> bool:
  try:
    return ipaddress.ip_address(host).is_loopback
  except ValueError:
    return host == "localhost"


if __name__ == "__main__":
  sys.exit(main())
