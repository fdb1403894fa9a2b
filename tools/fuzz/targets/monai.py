"""The routes of MONAI Label: forms to a running condseg-serve with tokens and a folder of images.

Besides what holds for every request (see `service`), the folder of images may only gain files whose
names are ids with a suffix of the protocol.
"""

import hashlib
import json
from pathlib import Path
import re
import shutil

from tools.fuzz import content as standard
from tools.fuzz.mutate import Files
from tools.fuzz.mutate import Place
from tools.fuzz.targets import images
from tools.fuzz.targets.service import request
from tools.fuzz.targets.service import Service

TOKEN = "fuzz" * 10  # always the same, so that finds can be attempted again
KIND = "Content-Type: multipart/form-data; boundary=frontier"
STORED = re.compile(r"(labels/[a-z0-9_-]+/)?[A-Za-z0-9][A-Za-z0-9._ -]*\.(nii|nii\.gz|zip)")
# Of answers: what differs between equal requests.
CHANGING = ("session_id", "session_info", "seconds")


class Monai(Service):
  """Requests to the routes of MONAI Label, raw: head and body."""

  name = "monai"

  def variants(self) -> dict[str, dict[str, bytes]]:
    """Returns the requests."""
    params = json.dumps({"classes": ["ball"], "threshold": 0.4, "client_id": "x"}).encode()
    plain, word = _plain(self.home), f"Authorization: Bearer {TOKEN}"
    told, image = _part('name="params"', params), _part('name="file"; filename="a.nii"', plain)
    made = {"infer": ("POST /infer/segmentation?output=json", told + image),
            "by id": ("POST /infer/segmentation?output=json&image=a", told),
            "session": ("PUT /session/?expiry=60", told + image),
            "label": ("PUT /datastore/label?image=a&tag=final", told + image),
            "add": ("PUT /datastore/image?image=b", image),
            "next": ("POST /activelearning/first", told)}
    requests = {name: request(body + b"--frontier--\r\n", KIND, word, to=to)
                for name, (to, body) in made.items()}
    form = f"username=fuzz&password={TOKEN}&grant_type=password".encode()
    requests["log in"] = request(form, "Content-Type: application/x-www-form-urlencoded",
                                 to="POST /auth/token")
    return {name: {"request": content} for name, content in requests.items()}

  def places(self, files: Files) -> list[Place]:
    """Returns the head, the bytes of all, the body, and the parts of a form."""
    body = files["request"].partition(b"\r\n\r\n")[2]
    places = [Place("request", "head", (), 3), Place("request"),
              Place("request", "bytes", ("body",), 3)]
    for number, part in enumerate(body.split(b"--frontier")[1:-1]):
      json_like = b'name="params"' in part
      places.append(Place("request", "json" if json_like else "nifti", ("body", f"form/{number}"),
                          3))
    return places

  def flags(self) -> list[str]:
    """Returns the flags for tokens and images."""
    digest = hashlib.sha256(TOKEN.encode()).hexdigest()
    (self.home / "tokens").write_text(f"fuzz sha256:{digest}\n")
    return [f"--tokens={self.home / 'tokens'}", f"--datastore={self._images()}",
            f"--audit={self.home / 'audit.jsonl'}"]

  def door(self, variant: str, folder: Path, out: Path) -> tuple[int, dict]:
    """Sends the request to a service whose folder of images is as it was in the beginning."""
    self._images()
    return super().door(variant, folder, out)

  def explain(self, variant: str, intact: Files, files: Files, content: dict) -> str:
    """Accepts answers to other valid requests, and for other valid volumes."""
    head, _, body = files["request"].partition(b"\r\n\r\n")
    before, _, former = intact["request"].partition(b"\r\n\r\n")
    answer = content["answer"]
    if variant != "infer" or head != before or body == former or not isinstance(answer, dict):
      return "another request"
    if body.count(b"--frontier") != 3:
      raise standard.Damaged("the form is no longer of two parts")
    volume = body.split(b"--frontier")[2].partition(b"\r\n\r\n")[2].removesuffix(b"\r\n")
    if answer["statistics"]["shape"] != standard.nifti(volume, False)["shape"]:
      raise standard.Damaged("the image has another shape")
    return images.VALID

  def answer(self, headers: dict[str, str], body: bytes) -> object:
    """Returns of an answer what equal requests have in common."""
    found = super().answer(headers, body)
    if isinstance(found, dict):
      for key in CHANGING:
        found.pop(key, None)
        if isinstance(found.get("statistics"), dict):
          found["statistics"].pop(key, None)
    return found

  def left(self) -> list[Path]:
    """Returns files of requests, but for those of sessions."""
    return [path for path in super().left() if path.name != "sessions"]

  def trouble(self) -> str:
    """Returns what is wrong with the service or the folder of images now, "" for nothing."""
    folder = self.home / "images"
    for path in sorted(folder.rglob("*")):
      name = path.relative_to(folder).as_posix()
      if path.is_file() and not STORED.fullmatch(name):
        return f"stored {name!r}"
    if TOKEN.encode() in (self.home / "audit.jsonl").read_bytes():
      return "the audit log contains the token"
    return super().trouble()

  def _images(self) -> Path:
    folder = self.home / "images"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    (folder / "a.nii").write_bytes(_plain(self.home))
    return folder


def _plain(home: Path) -> bytes:
  return next(iter(images.Nifti(home).variants()["plain"].values()))


def _part(disposition: str, content: bytes) -> bytes:
  head = f"--frontier\r\nContent-Disposition: form-data; {disposition}\r\n\r\n"
  return head.encode() + content + b"\r\n"
