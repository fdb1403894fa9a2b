"""condseg-import nnunet FOLDER --out=encoder.condseg

Turns the encoder of a network that nnU-Net v2 trained into a bundle to start a training from.
FOLDER has dataset.json, plans.json and fold_*/checkpoint_final.pth. torch is not needed, and
nothing in the checkpoint is executed:

  condseg-import nnunet nnUNetTrainer__nnUNetPlans__3d_fullres --out=encoder.condseg
  condseg-train --config=CONFIG --config.init.source=encoder.condseg --config.init.what=encoder

Weights have licences of their own, which an import does not change.
"""

import sys

from absl import flags

from condseg_jax.cli import shell
from condseg_jax.errors import InputError

FORMATS = ("nnunet",)


def main(argv: list[str] | None = None) -> int:
  """Runs the command and returns its exit code."""
  return shell.run(__doc__, _define, _work, argv, positional="FORMAT FOLDER", several=True)


def _define(values: flags.FlagValues) -> None:
  flags.DEFINE_string("out", "", "The bundle, NAME.condseg.", flag_values=values)
  flags.DEFINE_string("fold", "", "Number of the fold, or all; the first one there is by default.",
                      flag_values=values)


def _work(values: flags.FlagValues, arguments: list[str]) -> int:
  shell.require(values, "out")
  if not values.out.endswith(".condseg"):
    raise InputError(f"--out={values.out}", "must end in .condseg", "rename it", usage=True)
  if arguments[0] not in FORMATS:
    raise InputError(arguments[0], "is not a format", f"give {', '.join(FORMATS)} and a folder",
                     usage=True)
  if len(arguments) != 2:
    raise InputError(" ".join(arguments), "is not a format and one folder",
                     "see condseg-import --help", usage=True)

  from condseg_jax.model_io.bundle import write_bundle
  from condseg_jax.model_io.nnunet.encoder import import_encoder
  from condseg_jax.model_io.nnunet.encoder import settings_to_train

  bundle = import_encoder(arguments[1], values.fold)
  digest = write_bundle(values.out, bundle)
  plan = bundle.record.plan
  print(f"{values.out}: encoder of {bundle.facts['origin']['checkpoint']}, "
        f"{len(plan.spacing)}-D {plan.modality}\nSHA-256: {digest}\n"
        "The weights keep their licence. A network with this encoder has the settings")
  for name, value in settings_to_train(bundle.record).items():
    print(f"  --config.{name}={_flag(value)}")
  if bundle.facts["origin"]["intensities"] != "of whole images":
    print("nnU-Net took mean and deviation of non-zero voxels; here they are of the whole image.")
  return 0


def _flag(value) -> str:
  """Returns a value as a flag takes it, quoted for a shell where it has to be."""
  return f"'{value}'".replace(" ", "") if isinstance(value, tuple) else str(value)


if __name__ == "__main__":
  sys.exit(main())
