"""Mutations of inputs, as operations that can be recorded, dropped and applied again.

An input is a dict of files, relative name → content. An operation is a plain dict

    {"file": NAME, "through": [VIEW, …], "do": NAME, "args": [...]}

that changes one file. Views lead inside: `gzip` to what is compressed, `zip/NAME` and `bundle/NAME`
to a member; checksums, digests and lengths outside of it are computed anew, so that a change
inside is not found by them. Random operations are drawn per kind of content, see `KINDS`.
"""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import gzip
import hashlib
import io
import json
import math
import random
import re
import struct
from typing import NamedTuple
import warnings
import zipfile
import zlib

import nibabel
import numpy as np
import yaml

from condseg_jax.model_io import archive

Files = Mapping[str, bytes]

# Values at the edges of what a reader expects, by name, since not all of them survive JSON.
EDGES = {
    "null": None, "true": True, "false": False, "zero": 0, "one": 1, "two": 2, "minus": -1,
    "half": 0.5, "nan": math.nan, "inf": math.inf, "-inf": -math.inf, "huge": 1e300,
    "tiny": 1e-300, "2**31": 2**31, "2**63": 2**63, "10**20": 10**20, "empty": "", "text": "x",
    "digits": "7", "long": "x" * 5000, "surrogate": "a\udce9", "control": "a\r\n\0b",
    "markup": '"><b>', "up": "../../up", "absolute": "/nowhere/x", "dollar": "a$\\frac{x$",
    "list": [], "lists": [[[]]], "numbers": [1, -1, 0], "nans": [math.nan] * 3, "dict": {},
    "pair": {"x": "y"}, "number for text": {"1": 1},
}
DEEP = "deep"  # nested too deeply for a parser that recurses
NESTED = 100_000
FILE = "file"
_MARK = "@@nested@@"


class Place(NamedTuple):
  """A part of an input that can be mutated.

  Attributes:
    file: name of the file.
    kind: of its content, a key of `KINDS`; or `FILE`, which is deleted, emptied or swapped.
    through: views that lead to the part, outermost first.
    weight: how often it is chosen, relative to the others.
  """

  file: str
  kind: str = "bytes"
  through: tuple[str, ...] = ()
  weight: int = 1


class Impossible(Exception):
  """An operation does not apply to this content, for example after other operations."""


def draw(rng: random.Random, places: Sequence[Place], files: Files) -> dict:
  """Draws an operation."""
  for _ in range(100 if places else 0):
    place = rng.choices(places, [p.weight for p in places])[0]
    if place.file in files and place.kind == FILE:
      do = rng.choice(("delete", "empty", "swap"))
      other = rng.choice(sorted(files))
      return {"file": place.file, "through": [], "do": do, "args": [other] * (do == "swap")}
    if place.file in files:
      try:
        content = _inside(files[place.file], place.through)
        do, *arguments = KINDS[place.kind](rng, content)
      except Impossible:
        continue
      return {"file": place.file, "through": list(place.through), "do": do, "args": arguments}
  raise Impossible("no place is left to mutate")


def apply(files: Files, operation: Mapping) -> dict[str, bytes]:
  """Returns the files after an operation.

  Raises:
    Impossible: the operation does not apply to these files.
  """
  files, name = dict(files), operation["file"]
  if name not in files:
    raise Impossible(name)
  do, arguments = operation["do"], operation["args"]
  if do == "delete":
    del files[name]
  elif do == "swap":
    if arguments[0] not in files:
      raise Impossible(arguments[0])
    files[name], files[arguments[0]] = files[arguments[0]], files[name]
  else:
    files[name] = _changed(files[name], operation["through"], lambda content: OPERATIONS[do](
        content, *arguments))
  return files


def apply_all(files: Files, operations: Sequence[Mapping]) -> dict[str, bytes]:
  """Returns the files after all operations; those that do not apply are passed over."""
  for operation in operations:
    try:
      files = apply(files, operation)
    except Impossible:
      continue
  return dict(files)


# --- views --------------------------------------------------------------------------------------
def _inside(content: bytes, through: Sequence[str]) -> bytes:
  found = [b""]

  def look(inner: bytes) -> bytes:
    found[0] = inner
    return inner
  _changed(content, through, look)
  return found[0]


def _changed(content: bytes, through: Sequence[str], change: Callable[[bytes], bytes]) -> bytes:
  if not through:
    return change(content)
  view, _, member = through[0].partition("/")
  further = lambda inner: _changed(inner, through[1:], change)
  try:
    return VIEWS[view](content, member, further)
  # What earlier operations left behind may not be readable any more.
  except (OSError, EOFError, zlib.error, zipfile.BadZipFile, KeyError, ValueError,
          NotImplementedError, RuntimeError, struct.error) as error:
    raise Impossible(view) from error


def _in_gzip(content: bytes, _member: str, change: Callable[[bytes], bytes]) -> bytes:
  return gzip.compress(change(gzip.decompress(content)), mtime=0)


def _in_packed(content: bytes, _member: str, change: Callable[[bytes], bytes]) -> bytes:
  """The compressed voxels behind the header of a MetaImage or NRRD file."""
  meta = b"ElementDataFile" in content[:4096]
  end = (content.index(b"\n", content.index(b"ElementDataFile")) + 1 if meta
         else content.index(b"\n\n") + 2)
  voxels = change(zlib.decompress(content[end:], zlib.MAX_WBITS | 32))
  packed = zlib.compress(voxels) if meta else gzip.compress(voxels, mtime=0)
  head = re.sub(rb"(?m)^CompressedDataSize = \d+", b"CompressedDataSize = %d" % len(packed),
                content[:end])
  return head + packed


def _in_zip(content: bytes, member: str, change: Callable[[bytes], bytes]) -> bytes:
  members = _members(content)
  index = next((i for i, (info, _) in enumerate(members) if info.filename == member), None)
  if index is None:
    raise Impossible(member)
  info, inner = members[index]
  members[index] = info, change(inner)
  return _zipped(members)


def _in_bundle(content: bytes, member: str, change: Callable[[bytes], bytes]) -> bytes:
  """A member of a model bundle, whose manifest gets the digest of the changed member."""
  members = {info.filename: inner for info, inner in _members(content)}
  if member not in members:
    raise Impossible(member)
  members[member] = change(members[member])
  if member != archive.MANIFEST:
    manifest = json.loads(members[archive.MANIFEST])
    manifest["sha256"][member] = hashlib.sha256(members[member]).hexdigest()
    members[archive.MANIFEST] = json.dumps(manifest, indent=1).encode()
  return _zipped([(zipfile.ZipInfo(name), inner) for name, inner in members.items()])


def _in_body(content: bytes, _member: str, change: Callable[[bytes], bytes]) -> bytes:
  """The body of an HTTP request, whose Content-Length is set to that of the changed body."""
  head, blank, body = content.partition(b"\r\n\r\n")
  if not blank:
    raise Impossible("body")
  body = change(body)
  head = re.sub(rb"(?im)^(content-length: )\d+", rb"\g<1>%d" % len(body), head)
  return head + blank + body


VIEWS = {"gzip": _in_gzip, "packed": _in_packed, "zip": _in_zip, "bundle": _in_bundle,
         "body": _in_body}


def _members(content: bytes) -> list[tuple[zipfile.ZipInfo, bytes]]:
  with zipfile.ZipFile(io.BytesIO(content)) as opened:
    return [(info, opened.read(info)) for info in opened.infolist()]


def _zipped(members: Sequence[tuple[zipfile.ZipInfo, bytes]]) -> bytes:
  stream = io.BytesIO()
  with warnings.catch_warnings(), zipfile.ZipFile(stream, "w") as opened:
    warnings.simplefilter("ignore")  # duplicate names are intended
    for info, content in members:
      new = zipfile.ZipInfo(info.filename, (1980, 1, 1, 0, 0, 0))
      new.compress_type, new.external_attr = info.compress_type, info.external_attr
      opened.writestr(new, content)
  return stream.getvalue()


def member_names(content: bytes) -> list[str]:
  """Returns the names of the members of a zip archive; none if it cannot be read."""
  try:
    with _opened(content) as opened:
      return opened.namelist()
  except Impossible:
    return []


def member_digests(content: bytes) -> dict[str, str] | None:
  """Returns name → digest of the members of a zip archive; None if it cannot be read."""
  try:
    return {info.filename: hashlib.sha256(inner).hexdigest()
            for info, inner in _members(content)}
  except (zipfile.BadZipFile, zlib.error, OSError, EOFError, ValueError, RuntimeError,
          NotImplementedError, struct.error, KeyError):
    return None


# --- bytes --------------------------------------------------------------------------------------
def _draw_bytes(rng: random.Random, content: bytes) -> tuple:
  size = len(content)
  if not size:
    raise Impossible("empty")
  # Headers are small beside the voxels, and matter more.
  near = min(size, 600) if rng.random() < 0.5 else size
  start = rng.randrange(near)
  length = min(size - start, rng.choice((1, 2, 4, 8, 64, 1000)))
  do = rng.choice(("flip",) * 4 + ("cut",) * 2 + ("drop", "repeat", "put", "zero", "insert",
                                                  "grow"))
  if do == "flip":
    return do, start, rng.randrange(8)
  if do == "cut":
    return do, rng.choice((0, 1, start, size - 1 - rng.randrange(min(size, 32))))
  if do in ("put", "insert"):
    return do, start, rng.randbytes(rng.choice((1, 2, 4, 8))).hex()
  if do == "grow":
    return do, rng.randbytes(rng.choice((1, 16, 1000))).hex()
  return do, start, length


def _flip(content: bytes, place: int, bit: int) -> bytes:
  if place >= len(content):
    raise Impossible("flip")
  return content[:place] + bytes([content[place] ^ 1 << bit]) + content[place + 1:]


def _put(content: bytes, start: int, text: str) -> bytes:
  new = bytes.fromhex(text)
  return content[:start] + new + content[start + len(new):]


# --- header of NIfTI ----------------------------------------------------------------------------
def _header_type(content: bytes) -> np.dtype:
  for order in "<>":
    for dtype in (nibabel.nifti1.header_dtype, nibabel.nifti2.header_dtype):
      dtype = dtype.newbyteorder(order)
      size = np.array(dtype.itemsize, f"{order}i4").tobytes()
      if len(content) >= dtype.itemsize and content[:4] == size:
        return dtype
  raise Impossible("header")


def _draw_field(rng: random.Random, content: bytes) -> tuple:
  dtype = _header_type(content)
  name = rng.choice([n for n in dtype.names if dtype[n].base.kind in "iuf"])
  base, shape = dtype[name].base, dtype[name].shape
  index = rng.randrange(shape[0]) if shape else 0
  header = np.frombuffer(content[:dtype.itemsize], dtype)[0]
  now = header[name][index] if shape else header[name]
  if base.kind == "f":
    value = rng.choice(("nan", "inf", "-inf", "0", "-1", "1e30", "1e-30", "77", repr(
        float(now) * 1.01), repr(-float(now)), repr(float(now) + 0.5), repr(float(now) - 16)))
  else:
    info = np.iinfo(base)
    value = str(rng.choice((0, 1, 2, 3, 4, 5, 77, info.min, info.max, int(now) ^ 1 << rng.randrange(
        info.bits - 1), max(int(now) - 1, info.min), min(int(now) + 1, info.max))))
    value = str(min(max(int(value), info.min), info.max))
  return "field", name, index, value


def _field(content: bytes, name: str, index: int, value: str) -> bytes:
  dtype = _header_type(content)
  if name not in dtype.names:
    raise Impossible(name)
  header = np.frombuffer(content[:dtype.itemsize], dtype).copy()
  number = float(value) if dtype[name].base.kind == "f" else int(value)
  with np.errstate(over="ignore"):
    if dtype[name].shape:
      header[name][0, index] = number
    else:
      header[name] = number
  return header.tobytes() + content[dtype.itemsize:]


# --- lines of a text header ---------------------------------------------------------------------
LINE_VALUES = ("", "0", "-1", "1", "2", "4", "nan", "inf", "1e300", "99999999999999999999", "True",
               "False", "true", "x", "none", "0 0 0", "1 1 1", "nan nan nan", "1 0 0 0 1 0 0 0 0",
               "30000 30000 30000", "12 10 7", "12 10 5", "6 20 6", "10 12 6", "1 2", "LIST",
               "LOCAL", "../v.raw", "/etc/passwd", "%d.raw", "MET_UCHAR", "MET_USHORT", "MET_FLOAT",
               "MET_SHORT", "ushort", "uint8", "double", "raw", "gzip", "bzip2", "ascii", "hex",
               "big", "little", "RAS", "scanner-xyz", "x" * 5000, "\0", "\xe9")
LINE_KEYS = ("ElementNumberOfChannels = 2", "HeaderSize = 8", "HeaderSize = -1",
             "ElementByteOrderMSB = True", "BinaryData = False", "CompressedData = False",
             "Position = 9 9 9", "ElementSize = 9 9 9", "DimSize = 10 12 6", "NDims = 2",
             "byte skip: 8", "line skip: 1", "byte skip: -1", "encoding: raw", "endian: big",
             "sizes: 10 12 6", "space origin: (9,9,9)", 'space units: "cm" "cm" "cm"',
             "measurement frame: (0,1,0) (1,0,0) (0,0,1)", "spacings: 1 1 1", "dimension: 2")
_LINE = re.compile(rb"^([A-Za-z][\w ]*?)( = |: ?)(.*)$")


def _header_lines(content: bytes) -> list[bytes]:
  """The lines of a MetaImage or NRRD header, each with its end."""
  lines = []
  for line in content[:4096].splitlines(keepends=True):
    if not line.strip():
      break
    lines.append(line)
    if line.startswith(b"ElementDataFile"):
      break
  return lines


def _draw_line(rng: random.Random, content: bytes) -> tuple:
  lines = _header_lines(content)
  if not lines:
    raise Impossible("lines")
  number = rng.randrange(len(lines))
  do = rng.choice(("value",) * 5 + ("number",) * 3 + ("remove", "twice", "add", "rename"))
  if do == "add":
    return "line", "add", number, rng.choice(LINE_KEYS)
  if do == "rename":
    return "line", do, number, rng.choice(("x", "elementspacing", "DimSize ", "Comment"))
  if do == "number":  # one of several numbers
    return "line", do, number, rng.randrange(9), rng.choice(
        ("0", "-1", "nan", "inf", "1e30", "1e-30", "0.5", "7", "99999999999"))
  return "line", do, number, rng.choice(LINE_VALUES)


def _line(content: bytes, do: str, number: int, *arguments) -> bytes:
  lines = _header_lines(content)
  if number >= len(lines):
    raise Impossible("line")
  rest = content[sum(map(len, lines)):]
  match = _LINE.match(lines[number].rstrip(b"\r\n"))
  if do == "remove":
    del lines[number]
  elif do == "add":
    lines.insert(number, arguments[0].encode() + b"\n")
  elif not match:
    raise Impossible("line")
  elif do == "rename":
    lines[number] = arguments[0].encode() + match[2] + match[3] + b"\n"
  elif do == "number":
    words = re.split(rb"([\s(),]+)", match[3])
    places = [i for i, word in enumerate(words) if word.strip(b" (),")]
    if not places:
      raise Impossible("number")
    words[places[arguments[0] % len(places)]] = arguments[1].encode()
    lines[number] = match[1] + match[2] + b"".join(words) + b"\n"
  else:
    new = match[1] + match[2] + arguments[0].encode("latin-1") + b"\n"
    lines[number:number + 1] = [lines[number], new] if do == "twice" else [new]
  return b"".join(lines) + rest


# --- trees: JSON and YAML -----------------------------------------------------------------------
def _paths(tree, path: tuple = ()) -> list[tuple]:
  items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(
      tree, list) else ()
  return [path, *(found for key, value in items for found in _paths(value, (*path, key)))]


def _draw_tree(load: Callable, do: str) -> Callable:
  def draw_tree(rng: random.Random, content: bytes) -> tuple:
    try:
      tree = load(content)
    except (ValueError, RecursionError, yaml.YAMLError) as error:
      raise Impossible(do) from error
    path = list(rng.choice(_paths(tree)))
    how = rng.choice(("set",) * 6 + ("remove", "rename", "number"))
    return do, how, path, rng.choice([*EDGES, DEEP])
  return draw_tree


def _tree_operation(load: Callable, dump: Callable) -> Callable:
  def change(content: bytes, how: str, path: Sequence, edge: str) -> bytes:
    try:
      tree = load(content)
      value = _MARK if edge == DEEP else EDGES[edge]
      if not path:
        tree = value
      else:
        parent = tree
        for key in path[:-1]:
          parent = parent[key]
        key = path[-1]
        if how == "remove":
          del parent[key]
        elif how == "rename" and isinstance(parent, dict):
          parent[str(value)] = parent.pop(key)
        elif how == "number" and isinstance(parent[key], int | float):
          parent[key] = -parent[key] * 1.5
        else:
          parent[key]  # noqa: B018 - it has to be there
          parent[key] = value
      text = dump(tree)
    except (ValueError, KeyError, IndexError, TypeError, RecursionError, AttributeError,
            yaml.YAMLError) as error:
      raise Impossible("tree") from error
    if edge == DEEP:
      text = re.sub(f'["\']{_MARK}["\']', "[" * NESTED + "]" * NESTED, text)
    return text.encode("utf-8", "surrogatepass")
  return change


_json_tree = _tree_operation(json.loads, json.dumps)
_yaml_tree = _tree_operation(yaml.safe_load, lambda tree: yaml.safe_dump(tree, sort_keys=False))


# --- DICOM --------------------------------------------------------------------------------------
def _draw_element(rng: random.Random, content: bytes) -> tuple:
  dataset = _dataset(content)
  keywords = [e.keyword for e in dataset if e.keyword]
  keyword = rng.choice(keywords)
  if rng.random() < 0.15:
    return "element", keyword, "remove", ""
  return "element", keyword, "text", rng.choice((
      "", "0", "-1", "1", "2", "3", "7", "12", "13", "16", "255", "65535", "nan", "inf", "1e30",
      "-0.5", "0\\0", "0.7\\0.8", "-1\\1", "nan\\1", "9\\9\\9", "1e20\\0\\0", "0\\0\\0",
      "1\\0\\0\\0\\1\\0", "1\\0\\0\\1\\0\\0", "0\\0\\0\\0\\0\\0", "0\\1\\0\\1\\0\\0", "1.2.840.9",
      "x" * 70, "../../up", "MONOCHROME1", "RGB", "MR", "1.2.840.10008.1.2", "1.2.840.10008.1.2.2",
      "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.4.90"))


def _dataset(content: bytes):
  import pydicom
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    try:
      dataset = pydicom.dcmread(io.BytesIO(content))
      list(dataset)
      return dataset
    except Exception as error:  # pydicom raises many kinds on damaged files
      raise Impossible("dicom") from error


def _element(content: bytes, keyword: str, how: str, text: str) -> bytes:
  dataset = _dataset(content)
  if keyword not in dataset:
    raise Impossible(keyword)
  import pydicom
  element = dataset[keyword]
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    try:
      if how == "remove":
        del dataset[keyword]
      elif element.VR in ("US", "SS", "UL", "SL"):
        element.value = int(float(text)) & 0xFFFF
      elif element.VR in ("OW", "OB"):
        element.value = element.value[:-2] if text in ("", "0") else element.value + bytes(2)
      else:  # as it is, though the standard forbids it
        dataset[keyword] = pydicom.dataelem.RawDataElement(
            element.tag, element.VR, len(text), (text + " " * (len(text) % 2)).encode(), 0, False,
            True)
      stream = io.BytesIO()
      dataset.save_as(stream, enforce_file_format=False)
    except Exception as error:
      raise Impossible(keyword) from error
  return stream.getvalue()


# --- zip archives -------------------------------------------------------------------------------
def _draw_member(rng: random.Random, content: bytes) -> tuple:
  with _opened(content) as opened:
    count = len(opened.infolist())
  if not count:
    raise Impossible("zip")
  number = rng.randrange(count)
  do = rng.choice(("rename", "rename", "again", "link", "lie", "lie", "remove"))
  if do == "rename":
    return "member", do, number, rng.choice((
        "../up.txt", "../../up.txt", "/nowhere/up.txt", "c:\\up.txt", "..\\up.txt", "a/../../up",
        "x" * 300, "d/" * 200 + "x", "a\nb", "", ".", "caf\xe9", "data", "data/x", "__MACOSX/x",
        "con.", "a\0b"))
  if do == "lie":
    field = rng.choice(("crc", "compressed", "size", "offset", "method", "flags"))
    return "member", do, number, rng.choice(("central", "local")), field, rng.choice(
        (0, 1, 2, 7, 8, 99, 2**16 - 1, 2**31 - 1, 2**32 - 1))
  return "member", do, number


def _opened(content: bytes) -> zipfile.ZipFile:
  try:
    return zipfile.ZipFile(io.BytesIO(content))
  except (zipfile.BadZipFile, OSError, ValueError, struct.error, RuntimeError) as error:
    raise Impossible("zip") from error


# Offsets and formats of fields in the entry of the central directory, and in the local header.
_FIELDS = {"central": {"flags": (8, "<H"), "method": (10, "<H"), "crc": (16, "<I"),
                       "compressed": (20, "<I"), "size": (24, "<I"), "offset": (42, "<I")},
           "local": {"flags": (6, "<H"), "method": (8, "<H"), "crc": (14, "<I"),
                     "compressed": (18, "<I"), "size": (22, "<I"), "offset": (26, "<H")}}


def _member(content: bytes, do: str, number: int, *arguments) -> bytes:
  with _opened(content):
    pass
  if do == "lie":
    where, field, value = arguments
    signature = b"PK\x01\x02" if where == "central" else b"PK\x03\x04"
    starts = [match.start() for match in re.finditer(re.escape(signature), content)]
    if not starts:
      raise Impossible("lie")
    offset, form = _FIELDS[where][field]
    new = bytearray(content)
    limit = 2 ** (8 * struct.calcsize(form)) - 1
    try:
      struct.pack_into(form, new, starts[number % len(starts)] + offset, min(value, limit))
    except struct.error as error:
      raise Impossible("lie") from error
    return bytes(new)
  try:
    members = _members(content)
  except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, OSError,
          ValueError) as error:
    raise Impossible("zip") from error
  if number >= len(members):
    raise Impossible("zip")
  info, inner = members[number]
  if do == "remove":
    del members[number]
  elif do == "again":
    members.append((info, inner[::-1]))
  elif do == "link":
    info.external_attr = 0o120777 << 16
    members[number] = info, b"/etc/passwd"
  else:
    renamed = zipfile.ZipInfo("x")
    # `ZipInfo` would cut the name at a zero byte.
    renamed.filename, renamed.compress_type = arguments[0], info.compress_type
    members[number] = renamed, inner
  try:
    return _zipped(members)
  except (ValueError, struct.error, UnicodeEncodeError) as error:
    raise Impossible("zip") from error


# --- arrays of a bundle -------------------------------------------------------------------------
def _draw_array(rng: random.Random, content: bytes) -> tuple:
  if rng.random() < 0.4:
    return _draw_bytes(rng, content)
  return "number", rng.randrange(1000), rng.choice(("nan", "inf", "-inf", "1e38", "1", "0"))


def _number(content: bytes, index: int, value: str) -> bytes:
  start = content.find(b"}") + 1
  start += (-start) % 64
  count = (len(content) - start) // 4
  if start <= 0 or count < 1:
    raise Impossible("array")
  place = start + 4 * (index % count)
  return content[:place] + struct.pack("<f", float(value)) + content[place + 4:]


# --- heads of HTTP requests ---------------------------------------------------------------------
HEAD_LINES = ("Content-Length: 0", "Content-Length: -1", "Content-Length: 99999999999999999999",
              "Content-Length: 10", "Transfer-Encoding: chunked", "Transfer-Encoding: x",
              "Content-Encoding: gzip", "Expect: 100-continue", "Host: ", "Host: evil.example",
              "Accept: x/y", "Accept: application/json", "Accept: ;q=nan", "Connection: close",
              "Content-Type: multipart/form-data", "Content-Type: multipart/form-data; boundary=x",
              "Content-Type: \xff", "X: " + "y" * 70000, "Upgrade: h2c", "Range: bytes=0-1",
              "Origin: http://evil.example", "no header", " folded", "A: a\0b")
REQUEST_LINES = ("GET / HTTP/1.1", "GET /predict HTTP/1.1", "PUT /predict HTTP/1.1",
                 "POST /health HTTP/1.1", "GET /../../etc/passwd HTTP/1.1", "GET //health HTTP/1.1",
                 "OPTIONS * HTTP/1.1", "POST /predict", "POST /predict HTTP/9.9", "x", "",
                 "GET /%00 HTTP/1.1", "GET /page.css/../page.js HTTP/1.1",
                 "CONNECT a:1 HTTP/1.1", "GET http://evil.example/health HTTP/1.1")
QUERIES = ("classes=x", "classes=ball,ball", "classes=,", "classes=%00", "preset=x", "fusion=x",
           "fusion=independent", "threshold=nan", "threshold=2", "threshold=1e-300", "threshold=",
           "series=1.2.3", "series=../../x", "force=1", "force=2", "output=x", "output=zip",
           "output=page", "output=label", "x=1", "classes=a&classes=b", "&&&=", "%ff=%fe",
           "threshold=0.5&threshold=0.5", "classes=" + "a," * 2000)


def _draw_head(rng: random.Random, content: bytes) -> tuple:
  count = content.partition(b"\r\n\r\n")[0].count(b"\r\n") + 1
  do = rng.choice(("query", "query", "request", "add", "replace", "remove"))
  values = {"query": QUERIES, "request": REQUEST_LINES, "add": HEAD_LINES,
            "replace": HEAD_LINES, "remove": ("",)}[do]
  return "head", do, rng.randrange(count), rng.choice(values)


def _head(content: bytes, do: str, number: int, text: str) -> bytes:
  head, blank, body = content.partition(b"\r\n\r\n")
  lines, new = head.split(b"\r\n"), text.encode("latin-1")
  if do == "query":
    lines[0] = re.sub(rb"(\?\S*)? HTTP", lambda _: b"?" + new + b" HTTP", lines[0], count=1)
  elif do == "request":
    lines[0] = new
  elif do == "add":
    lines.append(new)
  elif not 1 <= number < len(lines):
    raise Impossible("head")
  else:
    lines[number:number + 1] = [new] if do == "replace" else []
  return b"\r\n".join(lines) + blank + body


OPERATIONS = {
    "flip": _flip, "put": _put, "field": _field, "line": _line, "json": _json_tree,
    "yaml": _yaml_tree, "element": _element, "member": _member, "number": _number, "head": _head,
    "cut": lambda content, size: content[:size],
    "drop": lambda content, start, length: content[:start] + content[start + length:],
    "repeat": lambda content, start, length: content[:start + length] + content[start:],
    "zero": lambda content, start, length: content[:start] + bytes(
        len(content[start:start + length])) + content[start + length:],
    "insert": lambda content, start, text: content[:start] + bytes.fromhex(text) + content[start:],
    "empty": lambda _content: b"",
    "grow": lambda content, text: content + bytes.fromhex(text),
}
# Kind of content → function that draws an operation and its arguments.
KINDS: dict[str, Callable[[random.Random, bytes], tuple]] = {
    "bytes": _draw_bytes, "nifti": _draw_field, "lines": _draw_line, "dicom": _draw_element,
    "json": _draw_tree(json.loads, "json"), "yaml": _draw_tree(yaml.safe_load, "yaml"),
    "zip": _draw_member, "array": _draw_array, "head": _draw_head,
}
