"""The notebooks are committed without outputs and run from the first cell to the last."""

import ast
import json
import os
from pathlib import Path

from IPython.core.inputtransformer2 import TransformerManager
import nbclient
import nbformat
import pytest

ROOT = Path(__file__).parent.parent.parent
NOTEBOOKS = sorted((ROOT / "tools" / "notebooks").glob("*.ipynb"))
NAMES = ["checkpoint_analysis", "grow", "quick_tour", "reading_the_study", "trust",
         "your_dataset"]
LINES = 16  # of code in a cell

every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)


def read(path):
  return nbformat.read(path, as_version=4)


def code(notebook):
  return [cell for cell in notebook.cells if cell.cell_type == "code"]


def python(cell) -> str:
  """Returns the source of a cell with `!` and `%` lines converted to IPython calls."""
  return TransformerManager().transform_cell(cell.source)


def run(name, folder, probe) -> dict:
  """Runs a notebook in a folder with the project as on Colab.

  Args:
    name: name of the notebook.
    folder: an empty folder.
    probe: an expression that is evaluated after the last cell; its value must fit JSON.

  Returns:
    The value of `probe`, and under `pictures` the number of displayed pictures.
  """
  (folder / "project").symlink_to(ROOT)
  notebook = read(ROOT / "tools" / "notebooks" / f"{name}.ipynb")
  notebook.cells.append(nbformat.v4.new_code_cell(f"import json\nprint(json.dumps({probe}))"))
  settings = {"CONDSEG_NOTEBOOK_STEPS": "4", "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1",
              "IPYTHONDIR": str(folder / "ipython")}
  nbclient.NotebookClient(
      notebook, timeout=900, kernel_name="python3", resources={"metadata": {"path": str(folder)}},
  ).execute(env={**os.environ, **settings})
  outputs = [output for cell in code(notebook) for output in cell.outputs]
  values = json.loads("".join(o.text for o in notebook.cells[-1].outputs if o.name == "stdout"))
  return {**values, "pictures": sum("image/png" in o.get("data", {}) for o in outputs)}


def test_none_is_missing():
  assert [path.stem for path in NOTEBOOKS] == NAMES


@every_notebook
def test_committed_as_nbformat_writes_them_and_without_outputs(path):
  notebook = read(path)
  nbformat.validate(notebook)
  assert path.read_text(encoding="utf-8") == nbformat.writes(notebook) + "\n"
  for cell in code(notebook):
    assert cell.outputs == [] and cell.execution_count is None


@every_notebook
def test_the_first_cell_alone_installs_and_on_colab_alone(path):
  first, *others = code(read(path))
  assert read(path).cells[0] == first
  assert first.source == code(read(NOTEBOOKS[0]))[0].source
  tree = ast.parse(python(first))
  installs = [node for node in ast.walk(tree) if "pip" in ast.dump(node).split("'")]
  guarded = [node for branch in tree.body if isinstance(branch, ast.If)
             and ast.unparse(branch.test) == "'google.colab' in sys.modules"
             for node in ast.walk(branch)]
  assert installs
  assert all(node in guarded for node in installs if not isinstance(node, ast.Module))
  assert not any("pip" in cell.source.split() or "%pip" in cell.source for cell in others)


@every_notebook
def test_cells_are_short(path):
  for cell in read(path).cells:
    lines = cell.source.splitlines()
    assert max(map(len, lines)) <= 100, cell.source
    assert cell.cell_type != "code" or len(lines) <= LINES, cell.source


@every_notebook
def test_every_cell_compiles(path):
  """Unknown and unused names are found by ruff, which reads notebooks too."""
  cells = [python(cell) for cell in code(read(path))]
  for source in cells:
    compile(source, path.name, "exec")


@pytest.mark.slow
def test_quick_tour(tmp_path):
  values = run("quick_tour", tmp_path, """{
      "status": status, "step": predictor.step, "classes": list(summary["classes"]),
      "cases": summary["n_cases"], "dice": summary["mean_dice"],
      "scored": [row.metrics["dice"] for row in rows],
      "grid": prediction.label.array.shape == volume.array.shape,
      "logits": logits_KDHW.shape, "window": plan.subvolume,
      "asked": sorted(pancreas.masks), "preset": list(abdomen.masks)}""")
  assert values["status"] == "finished" and values["step"] == 4
  assert values["classes"] == values["preset"] == ["liver", "spleen", "pancreas"]
  assert values["cases"] == 3 and len(values["scored"]) == 9 and values["grid"]
  assert values["dice"] == pytest.approx(sum(values["scored"]) / 9)
  assert values["logits"] == [3, *values["window"]]
  assert values["asked"] == ["pancreas"]
  assert values["pictures"] == 2


@pytest.mark.slow
def test_checkpoint_analysis(tmp_path):
  """Trained on two devices, read on one. The encoder of cond_dec does not depend on the class."""
  values = run("checkpoint_analysis", tmp_path, """{
      "wrote": run["devices"]["devices"], "here": jax.device_count(), "step": predictor.step,
      "counted": sum(sizes.values()), "points": len(lines),
      "parameters": sum(x.size for x in jax.tree.leaves(predictor.variables["params"])),
      "layers": [layer["name"] for layer in network["layers"]], "share": share,
      "order": order.tolist(), "plane": plane.tolist(), "vectors": vectors.tolist(),
      "maps": len(network["maps"]["layers"])}""")
  assert (values["wrote"], values["here"], values["step"], values["points"]) == (2, 1, 4, 4)
  assert values["counted"] == values["parameters"] > 10_000
  for layer, share in zip(values["layers"], values["share"], strict=True):
    # The coarsest upsampling precedes the first conditioned block.
    conditioned = layer.startswith(("merge", "head", "up_0"))
    assert share > 0 if conditioned else share == 0, layer
  assert values["share"][values["order"][0]] == max(values["share"])
  # Three points lie in a plane: their distances there are those of the vectors.
  (a, b, c), (x, y, z) = values["plane"], values["vectors"]
  for p, q, u, v in ((a, b, x, y), (b, c, y, z), (a, c, x, z)):
    assert distance(p, q) == pytest.approx(distance(u, v))
  assert values["maps"] > 4 and values["pictures"] == 7


@pytest.mark.slow
def test_your_dataset(tmp_path):
  values = run("your_dataset", tmp_path, """{
      "status": status, "classes": list(predictor.table.names), "cases": count, "split": split,
      "errors": len(errors), "scored": [(row.case, row.class_name) for row in rows],
      "sides": [list(c.no_mirror) for c in predictor.table.classes],
      "found": sorted(prediction.masks)}""")
  assert values["status"] == "finished" and values["errors"] == 0 and values["cases"] == 4
  assert values["classes"] == ["left kidney", "liver"] == values["found"]
  assert values["sides"] == [["W"], []]
  assert values["split"] == "val" and values["scored"] == [["p00", "left kidney"]]
  assert values["pictures"] == 2


@pytest.mark.slow
def test_reading_the_study(tmp_path):
  values = run("reading_the_study", tmp_path, """{
      "records": len(rows), "rows": len(lines), "columns": shown, "labels": list(found.first),
      "table": [row[0] for row in scores.rows], "compared": [row[0] for row in others[0].rows],
      "waiting": waiting, "failures": failures, "own": [r["label"] for r in own.rows],
      "scores": [r["scores"]["dice"] for r in own.rows],
      "written": sorted(p.suffix for p in places.out.glob("mine.*"))}""")
  assert values["records"] == values["rows"] > 1
  assert {"variant", "seed", "mean_dice", "dice anterior"} <= set(values["columns"])
  assert values["table"] == values["labels"]
  assert set(values["compared"]) == set(values["labels"]) - {"cond_dec"}
  assert values["waiting"] == ["cond_2nd-s0"] and not values["failures"]
  assert values["own"] == ["cond_dec", "cond_2nd"] and values["scores"][0] != values["scores"][1]
  assert values["written"] == [".csv", ".md", ".tex"]
  assert values["pictures"] == 2


@pytest.mark.slow
def test_grow(tmp_path):
  values = run("grow", tmp_path, """{
      "known": growth.old, "new": growth.new, "levels": growth.levels, "taken": outcome.taken,
      "change": change, "before": list(summaries["before"]["classes"]),
      "after": list(summaries["after"]["classes"]), "rows": [r.name for r in outcome.rows]}""")
  assert values["known"] == ["liver", "spleen"] and values["new"] == ["pancreas"]
  assert values["levels"] == [0, 1, 2] and values["taken"] == 1
  assert set(values["change"]) == {"liver", "spleen"} and max(values["change"].values()) < 1e-4
  assert values["before"] == ["liver", "spleen"]
  assert values["after"] == ["liver", "spleen", "pancreas"]
  assert set(values["rows"]) == {"liver", "spleen", "pancreas"} and values["pictures"] == 1


@pytest.mark.slow
def test_trust(tmp_path):
  values = run("trust", tmp_path, """{
      "members": run.count, "scored": list(run.scores["classes"]), "cases": len(ranking),
      "kinds": [row.kind for row in ranking], "quality": [list(q) for q in found.values()],
      "calibration": {k: sorted(v) for k, v in run.calibration.items()},
      "moved": float((mask != np.roll(mask, 1)).mean()), "rows": len(rows)}""")
  assert values["members"] == 2 and values["scored"] == ["liver", "spleen"]
  assert values["cases"] == len(values["kinds"]) == 12  # six of each organ, one class each
  assert values["rows"] == 4 and len(values["quality"]) == 2
  assert set(values["calibration"]) == {"liver", "spleen"} and values["pictures"] >= 1


def distance(a, b) -> float:
  return sum((p - q) ** 2 for p, q in zip(a, b, strict=True)) ** 0.5
