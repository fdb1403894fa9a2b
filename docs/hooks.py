"""Adds to the site the pages that live elsewhere in the repository, with the pictures they show."""

from pathlib import Path
import posixpath
import re
import sys

from mkdocs.structure.files import File

# Page of the site → file of the repository.
PAGES = {
    "results.md": "RESULTS.md",
    "benchmarks/index.md": "benchmarks/README.md",
    "contributing.md": "CONTRIBUTING.md",
    "changelog.md": "CHANGELOG.md",
}
SETTINGS = "<!-- settings -->"
PICTURES = ("results/phantom.png", "results/report.png")  # shown on pages of docs/


def on_files(files, config):
  root = Path(config.config_file_path).parent
  added = {name: root / name for name in PICTURES}
  for page, source in PAGES.items():
    source = root / source
    added[page] = source
    for picture in re.findall(r"!\[[^]]*\]\(([^)]+)\)", source.read_text(encoding="utf-8")):
      added[posixpath.join(posixpath.dirname(page), picture)] = source.parent / picture
  for name, path in added.items():
    files.append(File.generated(config, name, abs_src_path=str(path)))
  return files


def on_page_markdown(markdown, page, config, **_):
  """Fills in the settings; points links between files of the repository to pages of the site."""
  if SETTINGS in markdown:
    markdown = markdown.replace(SETTINGS, settings_tables(Path(config.config_file_path).parent))
  if page.file.src_uri in PAGES:
    folder = posixpath.dirname(page.file.src_uri)
    for name, source in PAGES.items():
      target = posixpath.relpath(name, folder or ".")
      markdown = re.sub(rf"\]\((?:\.\./)?{re.escape(source)}(#[^)]*)?\)",
                        rf"]({target}\1)", markdown)
    markdown = re.sub(r"\]\((?:\.\./)?docs/", "](" + "../" * bool(folder), markdown)
  return markdown


def settings_tables(root: Path) -> str:
  """Returns a table for every section of the config of this checkout."""
  sys.path.insert(0, str(root))
  try:
    from condseg_jax.config import Config
    from condseg_jax.settings import markdown
  finally:
    sys.path.remove(str(root))
  return markdown(Config)
