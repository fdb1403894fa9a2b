"""condseg-export --workdir=RUN --out=model.condseg [--onnx]

Writes a trained network as one portable file: parameters, config, classes, plan and a model card,
each with its SHA-256. It works offline on any machine with condseg_jax and any number of devices:

  condseg-export --workdir=runs/ct --checkpoint=best --out=ct.condseg
  condseg-predict --workdir=ct.condseg --input=scan.nii.gz --output=masks

With --without=tumour it holds the network without these classes; the others are decoded as before.
With --onnx it also contains encoder and decoder as ONNX, verified against JAX before writing.
"""

import sys
from typing import TYPE_CHECKING

from absl import flags

from condseg_jax.cli import shell
from condseg_jax.cli.argument_flags import as_flags
from condseg_jax.errors import InputError

if TYPE_CHECKING:  # imported late, so that --help is fast
  from condseg_jax.model_io.bundle import Bundle


def main(argv: list[str] | None = None) -> int:
  """Runs the command and returns its exit code."""
  return shell.run(__doc__, _define, _work, argv, in_buckets=("workdir", "out"))


def _define(values: flags.FlagValues) -> None:
  shell.define_model(values)
  shell.define_verify(values)
  flags.DEFINE_string("out", "", "The bundle, NAME.condseg.", flag_values=values)
  flags.DEFINE_list("without", [], "Classes to take away.", flag_values=values)
  flags.DEFINE_bool("onnx", False, "Add encoder.onnx and decoder.onnx.", flag_values=values)


def _work(values: flags.FlagValues) -> int:
  shell.require(values, "workdir", "out")
  if not values.out.endswith(".condseg"):
    raise InputError(f"--out={values.out}", "must end in .condseg", "rename it", usage=True)

  from condseg_jax.model_io.bundle import write_bundle
  from condseg_jax.model_io.card import run_facts
  from condseg_jax.model_io.load import is_bundle
  from condseg_jax.model_io.load import read_model
  from condseg_jax.system.cache import enable_compilation_cache

  enable_compilation_cache()
  with as_flags(members="--members"):
    bundle = read_model(values.workdir, values.checkpoint, verify=values.verify == "on",
                        members=values.members)
  if values.onnx and bundle.others:
    raise InputError("--onnx", "is for one network, this is an ensemble", "add --members=1",
                     usage=True)
  if not is_bundle(values.workdir):
    bundle = bundle._replace(facts=run_facts(values.workdir, bundle.facts["step"]))
  if values.without:
    from condseg_jax.model_io.drop import without_classes
    bundle = without_classes(bundle, values.without)
  if values.onnx:
    bundle = bundle._replace(graphs=_graphs(bundle))
  digest = write_bundle(values.out, bundle)
  networks = f"{1 + len(bundle.others)} networks, " if bundle.others else ""
  print(f"{values.out}: {', '.join(bundle.record.table.names)}, {networks}"
        f"step {bundle.facts['step']}\nSHA-256: {digest}")
  return 0


def _graphs(bundle: "Bundle") -> tuple[bytes, bytes]:
  """Converts the network to ONNX and verifies it against JAX."""
  from condseg_jax.export import runtime
  from condseg_jax.models.build import build_model

  runtime.require("onnx")
  from condseg_jax.export.network import onnx_halves

  record = bundle.record
  model = build_model(record.config.model, record.config.conditioning, record.table.codes)
  shape = record.plan.subvolume, record.plan.channels
  graphs = onnx_halves(model, bundle.params, *shape)
  difference = runtime.check(model, bundle.params, graphs, *shape)
  print(f"largest difference of ONNX and JAX on random windows: {difference:.1e}")
  return graphs


if __name__ == "__main__":
  sys.exit(main())
