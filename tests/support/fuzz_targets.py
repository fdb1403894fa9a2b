"""A target whose readers have known holes, each under the name of its variant."""

import os
import sys
import time

from condseg_jax.errors import InputError
from tools.fuzz.content import Damaged
from tools.fuzz.mutate import Place
from tools.fuzz.target import Target

INTACT = b"10\n0123456789"


class Faulty(Target):
  """Text with its length in front; `sound` refuses what does not have it."""

  name = "faulty"
  seconds, memory, every = 1.0, 1 << 28, 0

  def variants(self):
    names = ("sound", "tail", "raises", "hangs", "outside", "inside", "dies", "grabs", "twice",
             "nothing", "unnamed", "code", "contradicts")
    return {name: {"a.txt": INTACT} for name in names}

  def places(self, files):
    return [Place("a.txt")]

  def door(self, variant, folder, out):
    head, _, text = (folder / "a.txt").read_bytes().partition(b"\n")
    if head != b"10" or len(text) != 10:
      getattr(self, f"_{variant}")(folder, out)
      if variant in ("code", "nothing"):
        return {"code": 3, "nothing": 1}[variant], {}
      if variant == "contradicts":
        return 0, {"text": "", "unsound": "it is and is not"}
    return 0, {"text": text.hex()}

  def explain(self, variant, intact, files, content):
    head, _, text = files["a.txt"].partition(b"\n")
    valid = head == b"10" and len(text) == 10 and content == {"text": text.hex()}
    if not valid:
      raise Damaged("its length shows it")
    return "ten other bytes"

  def _sound(self, folder, _out):
    raise InputError(folder / "a.txt", "has another length", "copy it again")

  def _tail(self, _folder, _out):
    pass  # what is missing is passed over

  def _raises(self, _folder, _out):
    print(1 / 0)

  def _hangs(self, _folder, _out):
    time.sleep(60)

  def _outside(self, folder, out):
    (out / ".." / "evil").write_text("x")
    self._sound(folder, out)

  def _inside(self, folder, _out):
    (folder / "a.txt").write_text("the input is changed")
    self._sound(folder, _out)

  def _dies(self, _folder, _out):
    os.abort()

  def _grabs(self, _folder, _out):
    print(len(bytes(1 << 30)))

  def _twice(self, folder, out):
    print("one line before it", file=sys.stderr)
    self._sound(folder, out)

  def _unnamed(self, _folder, _out):
    raise InputError("something", "is wrong", "guess what")

  def _nothing(self, _folder, _out):
    pass

  _code = _contradicts = _nothing


class Tired(Faulty):
  """Refuses what is damaged, until its process has seen too much of it."""

  seen = 0

  def variants(self):
    return {"tired": {"a.txt": INTACT}}

  def _tired(self, folder, out):
    self.seen += 1
    if self.seen > 5:
      os.abort()
    self._sound(folder, out)
