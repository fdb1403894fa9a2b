"""The site builds without a warning and without a network, and loads nothing from elsewhere."""

from html.parser import HTMLParser
import importlib.util
import os
from pathlib import Path
import re
import subprocess
import sys

import pytest

from condseg_jax.data import store
from condseg_jax.datasets import case
from condseg_jax.export import graph
from condseg_jax.model_io import archive
from condseg_jax.model_io import fold_run

ROOT = Path(__file__).parent.parent.parent
NEEDED = ("mkdocs", "material", "mkdocstrings_handlers.python")
# Attributes that a browser loads without a click.
LOADED = {"script": "src", "link": "href", "img": "src", "iframe": "src", "source": "src",
          "object": "data"}
ELSEWHERE = re.compile(r"\s*(https?:)?//", re.IGNORECASE)


def installed(name: str) -> bool:
  try:
    return importlib.util.find_spec(name) is not None
  except ModuleNotFoundError:
    return False


class Loads(HTMLParser):
  """Collects what a page loads and the text of its style elements."""

  def __init__(self):
    super().__init__()
    self.found, self.styles, self._inside = [], [], ""

  def handle_starttag(self, tag, attrs):
    self._inside, values = tag, dict(attrs)
    if tag in LOADED:
      self.found.append(values.get(LOADED[tag]) or "")
    self.styles.append(values.get("style") or "")

  def handle_data(self, data):
    if self._inside == "style":
      self.styles.append(data)

  def handle_endtag(self, tag):  # noqa: ARG002
    self._inside = ""


def loaded_elsewhere(html: str) -> list[str]:
  page = Loads()
  page.feed(html)
  return [url for url in [*page.found, *imports(" ".join(page.styles))] if ELSEWHERE.match(url)]


def imports(css: str) -> list[str]:
  """Returns the URLs that a style sheet loads."""
  return re.findall(r"""(?:url\(\s*|@import\s+)["']?([^"')\s]+)""", css)


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
  missing = [name for name in NEEDED if not installed(name)]
  if missing:
    pytest.skip(f"{', '.join(missing)} not installed (extra `docs`)")
  out = tmp_path_factory.mktemp("site")
  # Nobody listens at that port: whoever asks the network fails.
  closed = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy",
                          "ALL_PROXY"), "http://127.0.0.1:9")
  env = {**os.environ, **closed, "PYTHONPATH": str(ROOT), "NO_MKDOCS_2_WARNING": "1",
         "PYTHONDONTWRITEBYTECODE": "1"}
  done = subprocess.run(
      [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(out),
       "--config-file", str(ROOT / "mkdocs.yml")],
      cwd=out, env=env, capture_output=True, encoding="utf-8", check=False, timeout=300)
  assert done.returncode == 0, done.stderr
  return out


def test_every_page_is_built(site):
  built = {path.relative_to(site).with_suffix("").as_posix() for path in site.rglob("*.html")}
  named = {path.relative_to(ROOT / "docs").with_suffix("").as_posix()
           for path in (ROOT / "docs").rglob("*.md")}
  assert named | {"results", "benchmarks/index", "contributing", "changelog"} <= built
  assert not (site / "hooks.py").exists()


def test_nothing_is_loaded_from_elsewhere(site):
  pages, sheets = list(site.rglob("*.html")), list(site.rglob("*.css"))
  assert len(pages) > 20 and sheets
  for path in pages:
    text = path.read_text(encoding="utf-8")
    assert loaded_elsewhere(text) == [], path
    assert 'class="mermaid"' not in text, f"{path}: diagrams of mermaid come from another server"
  for path in sheets:
    assert [u for u in imports(path.read_text(encoding="utf-8")) if ELSEWHERE.match(u)] == [], path


def test_pictures_and_links_are_there(site):
  for path in set(site.rglob("*.html")) - {site / "404.html"}:  # which a server shows at any path
    page = Loads()
    page.feed(path.read_text(encoding="utf-8"))
    for url in page.found:
      if url and not url.startswith(("data:", "#")):
        assert (path.parent / url.partition("?")[0].partition("#")[0]).exists(), (path, url)


def test_the_reference_has_the_docstrings(site):
  text = (site / "reference" / "predictor.html").read_text(encoding="utf-8")
  assert "Segments" in text and "two_pass" in text
  assert "terms" in (site / "reference" / "objective.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("html", [
    '<script src="https://a.example/x.js"></script>', '<link rel=stylesheet href="//a.example/x">',
    '<style>@import "http://a.example/x.css";</style>',
    '<p style="background: url(https://a.example/x.png)">x</p>'])
def test_what_is_elsewhere_is_found(html):
  assert len(loaded_elsewhere(html)) == 1
  assert loaded_elsewhere(html.replace("a.example", "b").replace("https:", "").replace(
      "http:", "").replace("//b", "b")) == []


def test_the_table_of_versions_is_that_of_the_code():
  text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
  rows = [[cell.strip(" `") for cell in line.split("|")[1:-1]] for line in text.splitlines()
          if line.startswith("| ") and "condseg_jax." in line]
  table = {row[3]: row[1] for row in rows}
  for module, name in ((store, "VERSION"), (case, "VERSION"), (case, "ALTERED"),
                       (archive, "VERSION"), (fold_run, "VERSION"), (graph, "IR_VERSION")):
    value = table[f"{module.__name__}.{name}"]
    assert value.removeprefix("IR ") == str(getattr(module, name)), name
