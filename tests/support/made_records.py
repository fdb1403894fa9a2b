"""Records as a study leaves them, with scores of one's own."""

import numpy as np

MACHINE = {"cpus": 2, "system": "Linux x86_64", "platform": "cpu", "device": "cpu", "devices": 1,
           "jax": "0.10.2", "convolution": "xla"}


def record(variant, seed, dice, *, axes=3, groups=(), counts=None, level=None, order=0,
           against="cond_dec", classes=("anterior", "posterior"), **more):
  """A record; `dice` is [cases, classes], nan where there is none, `counts` are (tp, fp, fn)."""
  dice = np.asarray(dice, float)
  tp, fp, fn = (np.ones_like(dice),) * 3 if counts is None else counts
  groups = list(groups) or [""] * len(dice)
  table = np.arange((len(classes) + 1) ** 2).reshape((len(classes) + 1,) * 2) * 10
  label = variant if level is None else f"{variant} {level:g}"
  return {
      "study": "made", "label": label, "variant": variant, "mechanism": "channel embedding",
      "level": level, "seed": seed, "against": against, "order": order, "level_name": "cases",
      "dataset": "made", "steps": [40], "fusion": "argmax", "parameters": 1234,
      "scores": {"cases": [f"case_{i}" for i in range(len(dice))], "classes": list(classes),
                 "groups": groups, "axes": axes,
                 "dice": [[None if np.isnan(d) else d for d in row] for row in dice.tolist()],
                 "iou": [[None if np.isnan(d) else d / (2 - d) for d in row]
                         for row in dice.tolist()],
                 **{name: np.asarray(c).tolist() for name, c in (("tp", tp), ("fp", fp),
                                                                  ("fn", fn))},
                 "confusion": {group: table.tolist() for group in dict.fromkeys(groups)}},
      "curves": [{"step": [10, 20, 30, 40], "dice": {
          name: [0.1, 0.3, None, 0.5 + 0.1 * k] for k, name in enumerate(classes)}}],
      "configs": [{}], "key": f"{order}{seed}" * 32, "members": ["0" * 64], "data": "0" * 64,
      "truth": "0" * 64, "source": "a" * 64, "git": "unknown", "machine": MACHINE,
      "seconds": {"training": 120.0, "scoring": 6.0}, **more}
