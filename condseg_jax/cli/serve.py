"""condseg-serve --workdir=RUN [--host=127.0.0.1] [--port=8000]

Serves a trained network over HTTP, with a web page at / and an interface for programs:

  curl --data-binary @scan.nii.gz -o result.zip "http://127.0.0.1:8000/predict?classes=liver"
  curl --data-binary @series.zip "http://127.0.0.1:8000/predict?output=statistics"

The request body is a NIfTI file or a zipped DICOM series, raw or as the file of a form. Query
parameters: classes, preset, fusion, threshold, series, force=1, and output=zip, label, statistics
or, for a DICOM series, dicom_seg. Also GET /classes and GET /health.

3D Slicer's module and OHIF's plugin for MONAI Label work with this service, too; --datastore=FOLDER
lists images for them. --dicomweb=URL and --dicom=AET:PORT connect it to a PACS.

There is no authentication and no encryption: serve only this machine, or put the service behind a
proxy that provides both. Requests from pages of other sites are refused. No data of a request is
kept.
"""

import sys

from absl import flags

from condseg_jax.cli import shell
from condseg_jax.cli.argument_flags import as_flags
from condseg_jax.errors import InputError
from condseg_jax.system.large_pages import restart_with_large_pages


def main(argv=None) -> int:
  restart_with_large_pages(argv)
  return shell.run(__doc__, _define, _work, argv)


def _define(values: flags.FlagValues) -> None:
  shell.define_model(values)
  flags.DEFINE_string("host", "127.0.0.1", "Address to listen on; 0.0.0.0 for all interfaces.",
                      flag_values=values)
  flags.DEFINE_integer("port", 8000, "Port to listen on; 0 for any free port.", lower_bound=0,
                       upper_bound=65535, flag_values=values)
  flags.DEFINE_list("allowed_hosts", [], "Names under which the service is reached besides "
                    "--host, e.g. that of a proxy; other requests get status 421.",
                    flag_values=values)
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
  shell.require(values, "workdir")
  if values.dicom:
    shell.require(values, "dicom_config")
  try:
    from condseg_jax.dicomweb.server import Server
    from condseg_jax.serve.dimse.settings import read_node
    from condseg_jax.serve.monai.datastore import Datastore
    from condseg_jax.serve.server import Connections
    from condseg_jax.serve.server import serve
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
  with as_flags(members="--members"):
    serve(values.workdir, values.checkpoint, values.host, values.port, limits, connections,
          values.allowed_hosts, values.members)
  return 0


if __name__ == "__main__":
  sys.exit(main())
