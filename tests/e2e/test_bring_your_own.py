"""From raw folders of other formats to a running training, with the commands of the README."""

import json
from pathlib import Path
import shutil

import numpy as np
import pytest
import SimpleITK as sitk

from condseg_jax.cli import prepare as prepare_command
from condseg_jax.cli import train as train_command
from condseg_jax.cli import verify as verify_command
from condseg_jax.data.store import Store
from condseg_jax.datasets.layouts.description import read_description
from condseg_jax.datasets.prepare import prepare
from condseg_jax.datasets.synthetic.anatomy import TISSUE_ID
from condseg_jax.datasets.synthetic.phantom import draw_case
from condseg_jax.formats import files
from condseg_jax.geometry import to_canonical
from condseg_jax.geometry import Volume

CONFIGS = Path(__file__).parent.parent.parent / "experiments" / "configs"


def write_sliver07(root, count=4):
  """Abdominal phantoms as Sliver07 stores its CTs: MetaImage, liver alone."""
  for part in ("scan", "label"):
    (root / part).mkdir(parents=True)
  for number in range(1, count + 1):
    image, tissue = draw_case("liver", number, size="quick")
    label = Volume((tissue.array == TISSUE_ID["liver"]).astype(np.uint8), tissue.affine)
    for volume, part, name in ((image, "scan", "liver-orig"), (label, "label", "liver-seg")):
      # SimpleITK takes z y x, and left and posterior as positive.
      out = sitk.GetImageFromArray(np.ascontiguousarray(volume.array.T))
      lps = np.diag([-1, -1, 1, 1]) @ volume.affine
      out.SetSpacing(volume.spacing)
      out.SetOrigin(lps[:3, 3].tolist())
      out.SetDirection((lps[:3, :3] / volume.spacing).ravel().tolist())
      sitk.WriteImage(out, str(root / part / f"{name}{number:03d}.mhd"))
  return root


def trained(config, data, workdir, **changes):
  """Two steps of a small network of the config."""
  changes = {"data.subvolume": None, "model.strides": None, "model.layers_per_level": None,
             "train.steps": 2, "train.eval_every": 2, **changes}
  arguments = [f"--config.{k}={v}" for k, v in changes.items() if v is not None]
  code = train_command.main(["condseg-train", f"--config={CONFIGS / config}",
                             f"--config.data.root={data}", f"--workdir={workdir}", *arguments])
  run = json.loads((workdir / "run.json").read_text())
  return code == 0 and run["status"] == "finished" and run["step"] == 2


@pytest.mark.slow
def test_a_metaimage_set_in_two_commands(tmp_path):
  root = write_sliver07(tmp_path / "Sliver07")
  assert verify_command.main(["condseg-verify", str(root), "--format=sliver07"]) == 0
  assert prepare_command.main(["condseg-prepare", "--format=sliver07", f"--source={root}",
                               f"--out={tmp_path / 'sliver'}"]) == 0
  store = Store.open(tmp_path / "sliver")
  assert store.table.names == ("liver",) and len(store.cases) == 4
  for case in store.cases:
    image, _ = draw_case("liver", int(case.id), size="quick")
    np.testing.assert_array_equal(store.read_image(case)[..., 0], to_canonical(image).array)
    assert case.positives["liver"] > 500
  assert trained("base.py", tmp_path / "sliver", tmp_path / "run",
                 **{"data.subvolume": "(16,32,32)", "model.strides": "((2,2,2),)",
                    "model.layers_per_level": "(1,1)", "model.channels": 8, "model.growth": 8})


@pytest.mark.slow
@pytest.mark.parametrize(("name", "config", "changes"), [
    ("hippocampus", "hippocampus.py", {"model.layers_per_level": "(1,1,1,1)"}),
    ("camvid", "camvid.py", {"data.subvolume": "(32,32)", "data.batch_size": 2,
                             "model.layers_per_level": "(1,1,1,1,1)"})])
def test_real_data_in_one_command(name, config, changes, real_data, tmp_path):
  """A part of the cases, so that preparing takes seconds."""
  root = tmp_path / name
  if name == "camvid":
    shutil.copytree(real_data / name, root, ignore=shutil.ignore_patterns("val", "valannot"))
  else:
    root.mkdir()
    for part in ("imagesTr", "labelsTr"):
      (root / part).symlink_to(real_data / name / part)
    shutil.copy(real_data / name / "dataset.json", root)
    splits = json.loads((real_data / name / "splits.json").read_text())
    few = {organ: ids[:6] for organ, ids in splits["train"].items()}
    (root / "splits.json").write_text(json.dumps({"train": few, "val": splits["val"][:2]}))
  small = {"data.cache": tmp_path / "cache", "model.channels": 4, "model.growth": 4}
  assert trained(config, root, tmp_path / "run", **small, **changes)


def test_the_real_dicom_series_prepared(real_data, tmp_path):
  """DICOM and its NIfTI label, whose y axis runs the other way, agree in the store."""
  sample = real_data / "ct_sample"
  shutil.copytree(sample / "ct_dicom", tmp_path / "raw" / "scans" / "p1")
  shutil.copy(sample / "ct_dicom_labels.nii.gz", tmp_path / "raw" / "p1_labels.nii.gz")
  names = {value: f"other {value}" for value in range(1, 120)} | {5: "liver", 1: "spleen"}
  (tmp_path / "raw" / "d.yaml").write_text(
      'modality: ct\nimages: "scans/{id}"\nlabels: "{id}_labels.nii.gz"\n'
      f"classes: {json.dumps(names)}\nannotated: [liver]\n".replace('"', "'"))
  store = prepare(read_description(tmp_path / "raw" / "d.yaml"), tmp_path / "out", progress=False)
  case, = store.cases
  assert case.shape == (20, 512, 512) and store.spacing == pytest.approx((2, 0.9765625, 0.9765625))
  image = store.read_image(case)[..., 0]
  liver = store.read_masks(case, ["liver"])[0] == 1
  label = files.read_label(sample / "ct_dicom_labels.nii.gz")
  assert liver.sum() == (label.array == 5).sum() > 10_000
  inside = image[liver]
  assert 20 < inside.mean() < 250 and (inside < -200).mean() < 0.01
  # The same mask upside down lies partly in air and fat.
  assert image[np.flip(liver, 1)].std() > 2 * inside.std()
  # The liver lies right of the body's middle: at smaller indices of an axis that points left.
  body = np.argwhere(image > -300)[:, 2].mean()
  assert np.argwhere(liver)[:, 2].mean() < body
