"""Lets orbax keep its arrays at `s3://`, as it does at `gs://`.

orbax writes the other files of a checkpoint with epath, which knows both. For the arrays it makes
TensorStore's address of a folder itself, in two functions that know `gs://` alone, although
TensorStore has drivers for both. They are replaced by ones that ask `system.buckets`. The layout
of a checkpoint is orbax's own, so one that is copied from a bucket to a disk is read there.
"""

import functools
from typing import Any

from condseg_jax.errors import InputError
from condseg_jax.system import buckets

_BEGIN = "s3:/"  # orbax normalises addresses as if they were paths


@functools.cache
def enable() -> None:
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
