"""condseg-prepare --format=msd --source=DIR --out=DIR [--keep=CLASS,…] [--spacing=D,H,W]

Turns a raw dataset into a prepared store; cases that are already prepared are kept.

  condseg-prepare --format=msd --source=Task03_Liver --keep=liver --out=prepared/liver

Datasets that train together need the same --spacing. Training on raw folders prepares them itself,
with the median spacing of all of them; this command is for doing it beforehand or otherwise.

The formats `phantom` and `street` make the embedded example data, raw, in --out.
"""

import sys

from absl import flags

from condseg_jax.cli import shell
from condseg_jax.errors import InputError

FORMATS = ("msd", "camvid", "phantom", "street")


def main(argv=None) -> int:
  return shell.run(__doc__, _define, _work, argv)


def _define(values: flags.FlagValues) -> None:
  flags.DEFINE_enum("format", None, FORMATS, "Layout of the source.", flag_values=values)
  flags.DEFINE_string("source", "", "Folder of the raw dataset.", flag_values=values)
  flags.DEFINE_string("out", "", "Folder to write.", flag_values=values)
  flags.DEFINE_list("keep", [], "msd: classes to keep annotated; all when empty.",
                    flag_values=values)
  flags.DEFINE_list("spacing", [], "Target spacing D,H,W in mm (H,W in pixels); the dataset's "
                    "median when empty.", flag_values=values)
  flags.DEFINE_integer("block", 6, "camvid: training frames are dealt to the classes in blocks of "
                       "this many; 0 annotates every class everywhere.", flag_values=values)
  flags.DEFINE_enum("size", "quick", ("quick", "standard", "fine"), "phantom: of the volumes.",
                    flag_values=values)
  flags.DEFINE_integer("seed", 0, "phantom, street: what is drawn.", flag_values=values)


def _work(values: flags.FlagValues) -> int:
  shell.need(values, "format", "out")
  if values.format == "phantom":
    from condseg_jax.data.prepare.phantom import write_abdomen
    write_abdomen(values.out, size=values.size, seed=values.seed)
    print(f"wrote abdominal CT phantoms to {values.out}")
    return 0
  if values.format == "street":
    from condseg_jax.data.prepare.street import write_street
    write_street(values.out, seed=values.seed)
    print(f"wrote street scenes to {values.out}")
    return 0

  shell.need(values, "source")
  try:
    spacing = tuple(float(s) for s in values.spacing)
  except ValueError as error:
    raise InputError("--spacing", str(error), "numbers, as in 3,1.5,1.5", usage=True) from error
  from condseg_jax.data.prepare import camvid
  from condseg_jax.data.prepare import msd
  from condseg_jax.data.prepare.prepare import prepare
  if values.format == "msd":
    folder = msd.read_msd(values.source, values.keep)
  else:
    folder = camvid.read_camvid(values.source, values.block)
  store = prepare(folder, values.out, spacing or None)
  print(f"prepared {len(store.cases)} cases ({', '.join(store.table.names)}) in {store.root}, "
        f"spacing {','.join(f'{s:g}' for s in store.spacing)}")
  return 0


if __name__ == "__main__":
  sys.exit(main())
