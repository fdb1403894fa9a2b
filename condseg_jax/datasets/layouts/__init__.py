"""The layouts of raw datasets; one more is a module here and a line in `FORMATS`.

Their modules are imported on use, so that commands can list the names without delay.
"""

from collections.abc import Callable
import importlib
from pathlib import Path
from typing import Any
from typing import NamedTuple
from typing import TYPE_CHECKING

from condseg_jax.datasets.layouts.known import KNOWN

if TYPE_CHECKING:
  from condseg_jax.datasets.raw import RawFolder


class Layout(NamedTuple):
  """A layout of raw datasets.

  Attributes:
    reader: MODULE.FUNCTION of this package, folder (or description file) → `RawFolder`.
    detector: MODULE.FUNCTION, folder → whether it has this layout; empty if the layout cannot be
      detected and has to be named.
    frames: whether it contains fully labelled frames, which training uses as partial labels.
    arguments: of the reader, before the folder.
  """

  reader: str
  detector: str = ""
  frames: bool = False
  arguments: tuple = ()

  def read(self, root: Path, **options: Any) -> "RawFolder":
    """Reads a folder; see the module of the reader for `options` and errors."""
    return _function(self.reader)(*self.arguments, root, **options)

  def matches(self, root: Path) -> bool:
    """Returns whether a folder is detected as having this layout."""
    return bool(self.detector) and _function(self.detector)(root)


FORMATS = {
    "msd": Layout("msd.read_msd", "msd.matches"),
    "nnunet": Layout("nnunet.read_nnunet", "nnunet.matches"),
    "totalsegmentator": Layout("totalsegmentator.read_totalsegmentator",
                               "totalsegmentator.matches"),
    "camvid": Layout("camvid.read_camvid", "camvid.matches", frames=True),
    "cityscapes": Layout("cityscapes.read_cityscapes", "cityscapes.matches", frames=True),
    "folder": Layout("folder.read_folder"),
    "description": Layout("description.read_description"),
    **{name: Layout("description.read_known", arguments=(name,)) for name in KNOWN},
}


def _function(name: str) -> Callable:
  module, _, attribute = name.partition(".")
  return getattr(importlib.import_module(f"{__name__}.{module}"), attribute)
