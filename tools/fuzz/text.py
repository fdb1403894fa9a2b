"""Mutations of texts: headers in lines, trees of JSON and YAML, heads of HTTP requests."""

from collections.abc import Callable
from collections.abc import Sequence
import json
import math
import random
import re

import yaml

from tools.fuzz.packing import Impossible

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
_MARK = "@@nested@@"


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


def draw_line(rng: random.Random, content: bytes) -> tuple:
  """Draws a change of the header of a MetaImage or NRRD file."""
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


def line(content: bytes, do: str, number: int, *arguments) -> bytes:
  """Changes, removes, doubles, renames or adds a line of a header."""
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


def _drawer(load: Callable, do: str) -> Callable:
  def draw(rng: random.Random, content: bytes) -> tuple:
    try:
      tree = load(content)
    except (ValueError, RecursionError, yaml.YAMLError) as error:
      raise Impossible(do) from error
    path = list(rng.choice(_paths(tree)))
    how = rng.choice(("set",) * 6 + ("remove", "rename", "number"))
    return do, how, path, rng.choice([*EDGES, DEEP])
  return draw


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
        elif how == "rename" and isinstance(parent, dict) and edge != DEEP:
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


# Draw, and make, a change of a value of a JSON or YAML text: set to an edge, removed, renamed.
draw_json, draw_yaml = _drawer(json.loads, "json"), _drawer(yaml.safe_load, "yaml")
json_tree = _tree_operation(json.loads, json.dumps)
yaml_tree = _tree_operation(yaml.safe_load, lambda tree: yaml.safe_dump(tree, sort_keys=False))


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
                 "CONNECT a:1 HTTP/1.1", "GET http://evil.example/health HTTP/1.1",
                 "POST /infer/x HTTP/1.1", "POST /infer/%2e%2e%2fx HTTP/1.1",
                 "DELETE /session/.. HTTP/1.1", "GET /datastore/image?image=../x HTTP/1.1",
                 "PUT /datastore/label?image=a&tag=../x HTTP/1.1",
                 "GET /datastore/?output=x HTTP/1.1", "POST /activelearning/x HTTP/1.1",
                 "GET /auth/token/valid HTTP/1.1")
QUERIES = ("classes=x", "classes=ball,ball", "classes=,", "classes=%00", "preset=x", "fusion=x",
           "fusion=independent", "threshold=nan", "threshold=2", "threshold=1e-300", "threshold=",
           "series=1.2.3", "series=../../x", "force=1", "force=2", "output=x", "output=zip",
           "output=page", "output=label", "x=1", "classes=a&classes=b", "&&&=", "%ff=%fe",
           "threshold=0.5&threshold=0.5", "classes=" + "a," * 2000, "image=a", "image=../x",
           "image=%00", "image=a&tag=../x", "image=.a", "image=" + "a" * 300, "session_id=../x",
           "expiry=-1", "expiry=99999999999999999999", "output=json&image=a", "image=a.nii")


def draw_head(rng: random.Random, content: bytes) -> tuple:
  """Draws a change of the head of an HTTP request."""
  count = content.partition(b"\r\n\r\n")[0].count(b"\r\n") + 1
  do = rng.choice(("query", "query", "request", "add", "replace", "remove"))
  values = {"query": QUERIES, "request": REQUEST_LINES, "add": HEAD_LINES,
            "replace": HEAD_LINES, "remove": ("",)}[do]
  return "head", do, rng.randrange(count), rng.choice(values)


def head(content: bytes, do: str, number: int, text: str) -> bytes:
  """Changes the query, the first line or another line of the head of a request."""
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
