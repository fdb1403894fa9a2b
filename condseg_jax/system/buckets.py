"""Object storage at `s3://` and `gs://`: access by TensorStore and epath, and its errors as a line.

Credentials and endpoints come from the environment alone, by the names that the makers of the
protocols gave them; see docs/buckets.md.
"""

import importlib.util
import os
import re
from typing import Any

from condseg_jax.errors import InputError

# Scheme → package that reads and writes files there, all of the extra `buckets`.
PACKAGES = {"s3": "obstore", "gs": "gcsfs"}
REGION = "us-east-1"  # where none is given: servers other than Amazon's ignore it
ATTEMPTS = 8  # of a request; together they wait for about a minute
FIRST_DELAY, LAST_DELAY = "500ms", "16s"
_S3_IDENTITIES = ("AWS_ACCESS_KEY_ID", "AWS_WEB_IDENTITY_TOKEN_FILE",
                  "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "AWS_CONTAINER_CREDENTIALS_FULL_URI")
# What the libraries call an error → what it means. The first that occurs in the text counts.
_MEANINGS = (
    (r"NoSuchBucket|bucket does not exist|/b/[^/]+/o$", "the bucket does not exist",
     "create it, or correct the address"),
    (r"InvalidAccessKeyId|SignatureDoesNotMatch|AccessDenied|PERMISSION_DENIED|\b403\b|Forbidden"
     r"|\b401\b|Unauthorized|InvalidToken|ExpiredToken", "access is refused",
     "check the credentials in the environment, and what they permit"),
    (r"169\.254\.169\.254|metadata\.google|InstanceMetadata|credentials",
     "no credentials are found",
     "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or GOOGLE_APPLICATION_CREDENTIALS"),
    (r"Connect|connect|UNAVAILABLE|DEADLINE|timed? ?out|HTTP error|retry attempts|\b5\d\d\b",
     "the server does not answer",
     "run the same command again once it does; what is written remains"),
)


def is_bucket(path: object) -> bool:
  """Returns whether a path is an address with a scheme, rather than of the local file system."""
  return "://" in str(path)


def connect(*paths: object) -> None:
  """Lets epath open addresses of object storage; local paths among the arguments are ignored.

  Raises:
    InputError: an address of unknown scheme or without a bucket, a missing package or missing
      credentials.
  """
  for path in filter(is_bucket, map(str, paths)):
    scheme, _, rest = path.partition("://")
    if scheme not in PACKAGES:
      raise InputError(path, f"has the unknown scheme {scheme}://",
                       "use s3:// or gs://, or a local folder", usage=True)
    if not rest.strip("/") or rest.startswith("/"):
      raise InputError(path, "names no bucket", f"e.g. {scheme}://BUCKET/FOLDER", usage=True)
    if importlib.util.find_spec(PACKAGES[scheme]) is None:
      raise InputError(path, f"needs {PACKAGES[scheme]}, which is not installed",
                       'pip install "condseg-jax[buckets]"')
    if scheme == "s3":
      _connect_s3(path)
    else:
      _connect_gs()


def reach(*paths: object) -> None:
  """Connects, and asks each bucket once, so that what is wrong with it is told before the work.

  Raises:
    InputError: as `connect`; the bucket does not exist, refuses access or does not answer.
  """
  connect(*paths)
  for path in dict.fromkeys(filter(is_bucket, map(str, paths))):
    from etils import epath
    try:
      known = epath.Path(path).exists()
      if not known and path.startswith("gs://"):  # gcsfs takes a missing bucket for an empty one
        import gcsfs
        gcsfs.GCSFileSystem.current().info(path.removeprefix("gs://").partition("/")[0])
    except FileNotFoundError as error:
      raise InputError(path, *_MEANINGS[0][1:]) from error
    except Exception as error:  # each library has exceptions of its own
      raise explained(path, error) from error


def explained(path: object, error: BaseException) -> InputError:
  """Returns what an error of a storage library means, as one line about an address."""
  causes = [error, error.__cause__] if error.__cause__ else [error]
  text = "\n".join(f"{type(one).__name__}: {one}" for one in causes)
  for name in str(path).partition("://")[2].split("/"):  # which may look like a status
    text = text.replace(name, "") if len(name) > 2 else text
  for pattern, reason, cure in _MEANINGS:
    if re.search(pattern, text, re.MULTILINE):
      return InputError(path, reason, cure)
  return InputError(path, f"storage fails ({text.splitlines()[0][:160]})",
                    "check the address and the server")


def is_storage_error(error: BaseException) -> bool:
  """Returns whether an exception comes from an object-storage library."""
  if type(error).__module__.partition(".")[0] in ("obstore", "gcsfs", "aiohttp", "google"):
    return True
  # TensorStore raises ValueError of whatever happened; these words are of its network drivers.
  return isinstance(error, ValueError) and any(
      word in str(error) for word in ("http_response", "retry attempts", "curl_code", "CURL"))


def attempts() -> int:
  """Returns how often a request is tried: AWS_MAX_ATTEMPTS, or `ATTEMPTS`."""
  text = os.environ.get("AWS_MAX_ATTEMPTS", "")
  return max(1, int(text)) if text.isdigit() else ATTEMPTS


def s3_endpoint() -> str:
  """Returns the address of the S3 server; "" for Amazon's."""
  return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""


def s3_region() -> str:
  """Returns the region; "" where Amazon is to be asked for that of the bucket."""
  given = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
  return given or (REGION if s3_endpoint() else "")


def is_anonymous() -> bool:
  """Returns whether AWS_SKIP_SIGNATURE asks for requests without credentials."""
  return os.environ.get("AWS_SKIP_SIGNATURE", "").lower() in ("1", "true")


def kvstore(address: str) -> dict[str, Any]:
  """Returns TensorStore's spec of a folder in a bucket; its path ends with a slash.

  Raises:
    InputError: see `connect`.
  """
  connect(address)
  scheme, _, rest = address.partition("://")
  bucket, _, path = rest.partition("/")
  path = f"{path.strip('/')}/".lstrip("/")
  retries = {"max_retries": attempts(),  # of which the first is one
             "initial_delay": FIRST_DELAY, "max_delay": LAST_DELAY}
  if scheme == "gs":
    return {"driver": "gcs", "bucket": bucket, "path": path,
            "context": {"gcs_request_retries": retries}}
  spec: dict[str, Any] = {"driver": "s3", "bucket": bucket, "path": path,
                          "context": {"s3_request_retries": retries}}
  if s3_endpoint():
    spec["endpoint"] = s3_endpoint().rstrip("/")
  if s3_region():
    spec["aws_region"] = s3_region()
  if is_anonymous():
    spec["aws_credentials"] = {"type": "anonymous"}
  elif os.environ.get("AWS_ACCESS_KEY_ID"):
    spec["aws_credentials"] = {"type": "environment"}
  return spec


def _connect_s3(path: str) -> None:
  away = os.environ.get("AWS_EC2_METADATA_DISABLED", "").lower() == "true"
  if away and not is_anonymous() and not any(os.environ.get(name) for name in _S3_IDENTITIES):
    raise InputError(path, *_MEANINGS[2][1:])
  import fsspec
  fsspec.register_implementation("s3", "condseg_jax.system.s3_files.S3Files", clobber=True)


def _connect_gs() -> None:
  host = os.environ.get("STORAGE_EMULATOR_HOST")
  if host:  # TensorStore has a name of its own for it; other kinds of buckets are not emulated
    url = host if "://" in host else f"http://{host}"
    os.environ.setdefault("TENSORSTORE_GCS_HTTP_URL", url)
    os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
