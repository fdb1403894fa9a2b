"""What orbax lacks: arrays at `s3://`, and an end to the threads of a save that has failed.

orbax writes the other files of a checkpoint with epath, which knows both. For the arrays it makes
TensorStore's address of a folder itself, in two functions that know `gs://` alone, although
TensorStore has drivers for both. They are replaced by ones that ask `system.buckets`. The layout
of a checkpoint is orbax's own, so one that is copied from a bucket to a disk is read there.
"""

import contextlib
import functools
import threading
from typing import Any
import warnings

from condseg_jax.errors import InputError
from condseg_jax.system import buckets

_BEGIN = "s3:/"  # orbax normalises addresses as if they were paths


@functools.cache
def enable_s3() -> None:
  """Replaces the two functions, once in a process.

  Raises:
    InputError: this version of orbax has no such functions.
  """
  from orbax.checkpoint._src.path import gcs_utils
  from orbax.checkpoint._src.serialization import tensorstore_utils
  try:
    on_gs, of_gs = tensorstore_utils._use_gcs_driver, gcs_utils.get_kvstore_for_gcs
  except AttributeError as error:
    raise InputError("orbax-checkpoint", "this version cannot write to s3://",
                     "install 0.12.8, or use gs:// or a local workdir") from error

  def in_bucket(directory: str) -> bool:
    return directory.startswith(_BEGIN) or on_gs(directory)

  def kvstore(path: str) -> dict[str, Any]:
    if str(path).startswith(_BEGIN):
      spec = buckets.kvstore(f"s3://{str(path).removeprefix(_BEGIN).lstrip('/')}")
      return spec | {"path": spec["path"].rstrip("/")}  # the path may be that of one object
    return of_gs(path)

  tensorstore_utils._use_gcs_driver = in_bucket
  gcs_utils.get_kvstore_for_gcs = kvstore


def end_failed_save() -> None:
  """Ends the threads of a save of which one has failed.

  Each of the others waits five minutes for the one before it, and the process for all of them.
  """
  from orbax.checkpoint._src.futures import future
  with contextlib.suppress(AttributeError):  # another version of orbax: then they wait
    for thread in threading.enumerate():
      if isinstance(thread, future._SignalingThread):
        # What it would have awaited is nobody's any more.
        warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
        thread.cancel()
        future.set_signals(thread._receive_signals, operation_id=thread._operation_id)
