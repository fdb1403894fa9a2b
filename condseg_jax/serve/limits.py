"""What one request may cost, and how many may wait."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Limits:
  """Limits of the service.

  Attributes:
    body: bytes of a body.
    waiting: requests that may wait, or still be sent, while one is predicted.
    job_seconds: time that reading, prediction and writing of one request may take.
    grace_seconds: time that a transfer has before its rate counts.
    bytes_per_second: the least rate of a transfer, in either direction, on average.
    members: files in a zip.
  """

  body: int = 512 << 20
  waiting: int = 8
  job_seconds: float = 1800.0
  grace_seconds: float = 20.0
  bytes_per_second: int = 64 << 10
  members: int = 5000

  @property
  def unpacked(self) -> int:
    """Bytes that a zip may unpack to: DICOM shrinks to a half, a third at best."""
    return 4 * self.body

  @property
  def voxels(self) -> int:
    """Voxels of a volume, as stored and at the network's spacing: those of the largest body with
    two bytes for each."""
    return self.body // 2

  def transfer_seconds(self, size: int) -> float:
    """Time within which so many bytes must have been transferred."""
    return self.grace_seconds + size / self.bytes_per_second
