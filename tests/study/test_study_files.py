"""Every committed study loads, compares what it has, and its configs build networks."""

from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from condseg_jax.config import Config
from condseg_jax.errors import InputError
from condseg_jax.models.build import build_model
from condseg_jax.study import configs
from condseg_jax.study import declare

EXPERIMENTS = Path(__file__).parent.parent.parent / "experiments"
NAMES = declare.names(EXPERIMENTS)


BUILT = set()  # networks are few, and shared by the studies


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_study_builds(name):
  study, = declare.load(name, EXPERIMENTS)
  path = EXPERIMENTS / "studies" / f"{name}.py"
  assert study.name == name and f"condseg-study {name} " in path.read_text(encoding="utf-8")
  for variant in study.variants:
    for member in variant.members:
      config = configs.member_config(member, EXPERIMENTS, seed=0, root="r", cache="c")
      # Nothing is chosen by held-out cases, but levels of growth are judged by them.
      assert bool(config.data.hold_out) == (name == "growth") and config.train.steps > 0
      network = repr((config.model, config.conditioning))
      if network in BUILT:
        continue
      BUILT.add(network)
      model = build_model(config.model, config.conditioning, (0.1, -0.4))
      image = jax.ShapeDtypeStruct((1, *config.data.subvolume, 3 if model.ndim == 2 else 1),
                                   jnp.float32)
      jax.eval_shape(model.init, jax.random.key(0), image, jax.ShapeDtypeStruct((1,), jnp.int32))


def test_equal_compute_is_equal_compute():
  for name in ("hippocampus", "camvid", "phantom"):
    study, = declare.load(name, EXPERIMENTS)
    steps = {v.name: sum(m.overrides["train.steps"] for m in v.members) for v in study.variants}
    classes = max(len(v.members) for v in study.variants)
    assert steps["cond_dec"] - classes < steps["indivs"] <= steps["cond_dec"]
    assert steps.get("indivs_long", classes * steps["cond_dec"]) == classes * steps["cond_dec"]
    assert {steps[n] for n in set(steps) - {"indivs", "indivs_long"}} == {steps["cond_dec"]}


@pytest.mark.parametrize("name", ["hippocampus", "camvid", "phantom"])
def test_the_variants_are_what_they_are_called(name):
  """What sets each of them apart from `cond_dec`, and nothing else does."""
  study, = declare.load(name, EXPERIMENTS)
  variants = {v.name: v for v in study.variants}
  assert set(variants) >= {"cond_2nd", "cond_enc", "cond_dec", "full", "indivs", "no_cond",
                           "single_map", "multi_channel", "heads"}

  def settings(variant):
    config = configs.member_config(variant.members[0], EXPERIMENTS, seed=0, root="r",
                                   cache="c").to_dict()
    return {f"{part}.{key}": value for part, tree in config.items() if isinstance(tree, dict)
            for key, value in tree.items()}

  def apart(other):
    base, found = settings(variants["cond_dec"]), settings(variants[other])
    return {key: value for key, value in found.items() if value != base[key]}

  whole = {} if name == "camvid" else {"data.classes_per_image": 0}  # one class of a street scene
  every = {"data.classes_per_image": 0, "data.unannotated": "background"}
  output = {"conditioning.position": "output_head", "conditioning.mechanism": "output"}
  assert apart("cond_2nd") == {"conditioning.position": "input"}
  assert apart("cond_enc") == {"conditioning.position": "encoder"}
  assert apart("heads") == {"conditioning.position": "per_class_decoders"}
  assert apart("single_map") == {"conditioning.position": "none"}
  assert apart("multi_channel") == output
  assert apart("no_cond") == output | every
  assert apart("full") == whole and variants["full"].dataset == f"{name}_full"
  needed = {"data.include_classes", "train.steps"}
  assert needed <= set(apart("indivs")) <= needed | {"data.classes", "data.lateral_axes",
                                                      "data.presets"}
  kept = [m.overrides["data.include_classes"] for m in variants["indivs"].members]
  assert len(set(kept)) == len(kept) > 1 and all(len(names) == 1 for names in kept)
  assert {v.dataset for v in study.variants if v.name != "full"} == {name}
  assert {v.name for v in study.variants if v.fusion != "argmax"} == {"single_map"}


@pytest.mark.parametrize("name", ["hippocampus", "phantom"])
def test_asked_alone_are_the_same_trainings(name):
  (together,), (alone,) = (declare.load(n, EXPERIMENTS) for n in (name, f"{name}_alone"))
  assert [v.members for v in alone.variants] == [v.members for v in together.variants]
  assert {v.fusion for v in alone.variants} == {"independent"} and alone.seeds == together.seeds


def test_what_studies_have_in_common_is_one_training():
  """cond_dec of the comparison is that of the studies of noise, cases and positions, too."""
  found = [v for name in ("hippocampus", "noise", "cases", "position_hippocampus")
           for v in declare.load(name, EXPERIMENTS)[0].variants
           if v.label in ("cond_dec", "cond_dec parts 0", "cond_dec 80", "cond_dec 3")]
  made = [Config().override(v.members[0].overrides) for v in found]
  assert len(made) == 4 and all(m == made[0] for m in made)


def test_a_study_is_called_as_its_file(tmp_path):
  path = tmp_path / "mine.py"
  path.write_text((EXPERIMENTS / "studies" / "hippocampus.py").read_text(encoding="utf-8"))
  with pytest.raises(InputError, match="declares a study 'hippocampus'"):
    declare.load(str(path), EXPERIMENTS)


def test_two_variants_of_one_name_are_refused():
  one = declare.Variant("cond_dec", (), "tiny")
  with pytest.raises(InputError, match="two variants"):
    declare.Study("x", (one, one))
  with pytest.raises(InputError, match="compares with 'nobody'"):
    declare.Study("x", (one,), reference="nobody")
