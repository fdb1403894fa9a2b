"""The page as text: external texts are escaped, no URL, no path, correct numbers."""

import base64
import getpass
import hashlib
import json
import math
from pathlib import Path
import re

import numpy as np
import pytest

from condseg_jax.classes import ClassTable
from condseg_jax.classes import SegClass
from condseg_jax.errors import InputError
from condseg_jax.evaluate.scores import summarise
from condseg_jax.geometry import Volume
from condseg_jax.report.page import viewer
from condseg_jax.report.page.case import Case
from condseg_jax.report.page.case import draw_case
from condseg_jax.report.page.write import write_page
from support.pages import Document
from support.pages import scored
from support.pages import segmented
from support.pages import TABLE
from support.pages import VALUES
from support.pages import volume

EVIL = "</script><script>alert(\"1\")</script><img src='x' onerror=alert(1)>&amp;"
CODE = "globalThis.niivue = {};  // </script><b>"


@pytest.fixture(autouse=True)
def no_bundle(monkeypatch):
  monkeypatch.setattr(viewer, "code", lambda: None)


@pytest.fixture
def bundle(monkeypatch):
  """A stub of the viewer's script."""
  monkeypatch.setattr(viewer, "code", lambda: CODE)


def page(tmp_path, cases, table=TABLE, **changes):
  settings = {"title": "a run", "facts": {"date": "2026-01-02"}} | changes
  note = write_page(tmp_path / "report.html", cases, table, **settings)
  text = (tmp_path / "report.html").read_text(encoding="utf-8")
  return Document(text), text, note


def policy(document):
  (content,) = [a["content"] for tag, a in document.elements
                if tag == "meta" and a.get("http-equiv") == "Content-Security-Policy"]
  return dict(part.strip().split(" ", 1) for part in content.split(";"))


def test_every_text_is_escaped(tmp_path, bundle):
  table = ClassTable((SegClass(EVIL.lower(), 0.5, (1, 2, 3)),))  # no importer lets it pass
  image, label = volume()
  label = Volume((label.array > 0).astype(np.uint8), label.affine)
  case = draw_case(EVIL, image, label, table, {EVIL.lower(): {EVIL: 1.5, "note": EVIL}},
                   modality="mr", warnings=[EVIL])
  document, text, _ = page(tmp_path, [case, Case(EVIL, failure=EVIL)], table, title=EVIL,
                           facts={EVIL: EVIL})
  assert not any("onerror" in attributes for _, attributes in document.elements)
  assert not any(tag == "img" for tag, _ in document.elements)
  run = [script for attributes, script in document.scripts if "type" not in attributes]
  assert len(run) == 1 and "alert" not in run[0]
  assert "".join(document.text).count(EVIL) > 8, "it is shown as it was given"
  about = json.loads(next(script for a, script in document.scripts if a.get("id") == "scan-1"))
  assert about["classes"] == [EVIL.lower()]


def test_the_worst_prediction_is_on_top(tmp_path):
  """Of the cases by their worst structure, of the structures by their own."""
  dices = ({"ball": 0.9, "box": 0.6}, {"ball": 0.85, "box": 0.3}, {"ball": None, "box": None})
  cases = [Case(f"c{n}", {name: {"volume_ml": 1.0} | ({} if d is None else {"predicted_dice": d})
                          for name, d in each.items()}) for n, each in enumerate(dices)]
  document, *_ = page(tmp_path, cases)
  rows = document.table("cases")
  assert [row[0][1] for row in rows] == ["c1", "c0", "c2"]
  assert [row[2][0] for row in rows] == ["0.3", "0.6", ""]
  assert [row[0][1] for row in document.table("structures")] == ["box", "ball"]
  lights = [a["aria-label"] for _, a in document.elements if "light" in a.get("class", "").split()]
  assert lights == ["poor", "doubtful", "doubtful", "good", "poor", "good"]
  document, *_ = page(tmp_path, cases[2:])
  assert "lowest predicted Dice" not in "".join(document.text)


def test_nothing_is_asked_of_the_network(tmp_path, bundle):
  document, text, _ = page(tmp_path, [segmented()])
  links = [a[key] for _, a in document.elements
           for key in ("href", "src", "srcset", "action", "data") if key in a]
  assert links and all(link.startswith(("#", "data:image/")) for link in links)
  assert not re.search(r"https?:|@import|url\(", text)
  rules = policy(document)
  assert rules["default-src"] == "'none'" and rules["img-src"] == "data:"
  assert set(rules) == {"default-src", "img-src", "script-src", "style-src", "base-uri",
                        "form-action"}
  assert "unsafe" not in " ".join(rules.values())


def test_the_policy_trusts_exactly_what_is_there(tmp_path, bundle):
  def trusted(text):
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
  document, _, _ = page(tmp_path, [segmented()])
  rules = policy(document)
  run = [script for attributes, script in document.scripts if "type" not in attributes]
  assert rules["script-src"].split() == [*map(trusted, run), trusted(CODE)]
  assert rules["style-src"].split() == [trusted(style) for _, style in document.styles]
  assert not any("style" in a or any(key.startswith("on") for key in a)
                 for _, a in document.elements)


def test_nothing_of_the_machine_is_in_it(tmp_path, bundle):
  _, text, _ = page(tmp_path, [segmented(warnings=["low contrast"])])
  readable = re.sub(r"[A-Za-z0-9+/=]{200,}", "", text)
  for word in (str(tmp_path), str(Path.home()), str(Path(__file__).parent), "/tmp/", "\\Users\\"):
    assert word not in readable, word
  if len(getpass.getuser()) > 4:
    assert getpass.getuser() not in readable
  assert "low contrast" in readable


def test_numbers_of_a_segmentation_are_those_given(tmp_path):
  measures = {"ball": {"volume_ml": 12.345678, "voxels": 12, "mean": 40.04,
                       "touches_border": True, "centroid_mm": [1.0, 2.0, 3.0],
                       "own_measure": 1234.5678},
              "box": {"volume_ml": 0.0, "voxels": 0, "mean": None, "touches_border": False,
                      "centroid_mm": None, "own_measure": math.nan}}
  image, label = volume()
  case = draw_case("case 1", image, label, TABLE, measures, modality="mr")
  document, _, _ = page(tmp_path, [case])
  ball, box = document.table("structures")
  assert [text for _, text in ball] == ["ball", "12.3", "40.0", "yes", "1235"]
  assert [text for _, text in box] == ["box", "0.0", "–", "no", "–"]
  assert [value for value, _ in ball[1:]] == ["12.345678", "40.04", "1", "1234.5678"]
  assert [value for value, _ in box[1:]] == ["0.0", "", "0", ""]
  (row,) = document.table("cases")
  assert [text for _, text in row] == ["case 1", "", "12.3", "0.0"]
  assert "own measure" in document.text


def test_numbers_of_an_evaluation_are_those_given(tmp_path):
  cases, rows = [], []
  for number, shift in enumerate((0, 3, 1), 1):
    case, more = scored(f"case {number}", number, shift)
    cases.append(case)
    rows += more
  summary = summarise(rows, TABLE.names)
  document, text, _ = page(tmp_path, cases, summary=summary)
  given = {(row.case, row.class_name): row.metrics["dice"] for row in rows}
  for case, shown in zip(cases, document.table("cases"), strict=True):
    dices = [given[case.name, name] for name in TABLE.names]
    assert [float(value) for value, _ in shown[2:]] == [np.mean(dices), *dices]
    assert [text for _, text in shown[3:]] == [f"{dice:.3f}" for dice in dices]
  marks = [row[1][1] for row in document.table("cases")]
  assert marks == ["best", "worst", "median"]
  for name, shown in zip([*TABLE.names, "mean"], document.table("scores"), strict=True):
    mean = summary["mean_dice"] if name == "mean" else summary["classes"][name]["dice"]["mean"]
    assert shown[0][1] == name and shown[1][1].startswith(f"{mean:.3f}")
  # Each box plot has a linked dot for each case.
  links = [(a["href"], a["aria-label"]) for tag, a in document.elements
           if tag == "a" and "aria-label" in a]
  assert ("#case-2", f"case 2: {given['case 2', 'ball']:.3f}") in links and len(links) == 9
  anchors = {a["id"] for tag, a in document.elements if tag == "article"}
  assert {href for href, _ in links} == {f"#{anchor}" for anchor in anchors}


def test_two_cases_have_no_best(tmp_path):
  found = [scored(f"case {n}", n, n) for n in (1, 2)]
  document, _, _ = page(tmp_path, [case for case, _ in found])
  assert [row[1][1] for row in document.table("cases")] == ["", ""]


def test_failures_and_warnings_are_seen_at_a_glance(tmp_path):
  cases = [segmented(warnings=["one", "two"]), Case("case 2", failure="has 4 axes")]
  document, _, _ = page(tmp_path, cases)
  assert [row[1][1] for row in document.table("cases")] == ["2 warnings", "failed"]
  assert {"one", "two", "Failed: has 4 axes"} <= set(document.text)
  assert [row[2][1] for row in document.table("cases")][1] == "–"


def test_without_its_viewer_the_page_is_whole_and_says_so(tmp_path):
  document, text, note = page(tmp_path, [segmented()])
  assert viewer.HOW in note and viewer.HOW in text
  assert document.table("structures") and text.count("<figure") == 3
  assert not {"open", "go"} & {a.get("class") for _, a in document.elements}
  assert [attributes for attributes, _ in document.scripts] == [{}]


def test_pictures_need_no_viewer(tmp_path):
  rng = np.random.default_rng(0)
  label = np.zeros((30, 40), np.uint8)
  label[5:20, 5:30] = 1
  for array in (rng.integers(0, 256, (30, 40, 3), np.uint8), rng.normal(size=(30, 40))):
    image = Volume(array, np.eye(3))
    case = draw_case("case 1", image, Volume(label, np.eye(3)), TABLE,
                     {"ball": {"area_px": 375.0}}, modality="rgb" if array.ndim == 3 else "mr")
    document, text, note = page(tmp_path, [case])
    assert not note and case.scan is None and text.count("<figure") == 2
    assert document.table("cases")[0][2] == ("375.0", "375")


def test_a_viewer_in_the_page_holds_its_data(tmp_path, bundle):
  case = segmented()
  document, text, note = page(tmp_path, [Case("case 1", failure="bad"), case])
  data = {a["id"]: script for a, script in document.scripts if "id" in a}
  assert not note and set(data) == {"viewer-code", "scan-2", "scan-2-image", "scan-2-prediction"}
  assert data["scan-2-image"] == case.scan.image
  about = json.loads(data["scan-2"])
  assert about["classes"] == list(VALUES) and about["colours"] == [[230, 40, 40], [40, 80, 230]]
  assert about["focus"] == pytest.approx(case.scan.focus)


def test_a_page_with_the_viewer_holds_its_licences(tmp_path, bundle):
  def words(document):
    return " ".join(" ".join(document.text).split())
  document, _, _ = page(tmp_path, [segmented()])
  for line in ("BSD 2-Clause License", "Copyright (c) 2021, Niivue", "MIT License",
               'THIS SOFTWARE IS PROVIDED BY THE COPYRIGHT HOLDERS AND CONTRIBUTORS "AS IS"'):
    assert line in words(document)


def test_a_page_without_the_viewer_has_no_licences(tmp_path):
  _, text, _ = page(tmp_path, [segmented()])
  assert "License" not in text


def test_a_failed_page_leaves_nothing(tmp_path, monkeypatch):
  def fail(*_):
    raise OSError("disk full")
  monkeypatch.setattr("os.replace", fail)
  with pytest.raises(InputError, match="disk full"):
    page(tmp_path, [segmented()])
  assert not list(tmp_path.iterdir())
