"""The flag --config: a config file by path, or a packaged config by name.

    --config=base                     experiments/configs/base.py, as packaged
    --config=my/own.py                any file with get_config()
    --config=encoders:residual        with an argument to get_config()
    --config.train.steps=100          overrides one setting
"""

from collections.abc import Sequence
from pathlib import Path
import traceback
from typing import Any

from absl import flags

from condseg_jax import settings
from condseg_jax.config import Config
from condseg_jax.config import unknown_setting
from condseg_jax.errors import InputError

PACKAGED = Path(__file__).parent.parent / "configs"


def define(values: flags.FlagValues) -> None:
  """Defines --config and its overrides."""
  from ml_collections import config_flags

  config_flags.DEFINE_config_file(
      "config", None, "Config: the name of a packaged one "
      f"({', '.join(names())}) or a file with get_config(); --config.SECTION.SETTING=VALUE sets "
      "a setting.", flag_values=values)


def names() -> list[str]:
  """Returns the names of the packaged configs."""
  return sorted(path.stem for path in PACKAGED.glob("*.py") if path.stem != "__init__")


def resolved(argv: Sequence[str]) -> list[str]:
  """Returns the arguments with --config resolved to a file, after checking all overrides.

  Raises:
    InputError: unknown config or setting.
  """
  out = list(argv)
  for i, argument in enumerate(out):
    flag, equals, value = argument.partition("=")
    if flag.lstrip("-") == "config" and equals:
      out[i] = f"{flag}={_file(value)}"
    elif flag.lstrip("-") == "config" and i + 1 < len(out):
      out[i + 1] = _file(out[i + 1])
    elif flag.startswith(("--config.", "-config.")):
      check_name(flag.partition(".")[2])
  return out


def check_name(name: str) -> None:
  """Raises InputError if a dotted name is not a setting."""
  for known, default, _ in settings.walk(Config):
    if name == known or (default == {} and name.startswith(f"{known}.")):
      return
  raise unknown_setting(name)


def load(config: Any) -> Config:
  """Returns the validated config of a parsed flag."""
  return Config.from_dict(config.copy_and_resolve_references().to_dict())


def config_error(error: Exception, argv: Sequence[str]) -> InputError:
  """Converts an exception from a config file to one line that names the setting or the file."""
  path = next((a.partition("=")[2] for a in argv if a.startswith(("--config=", "-config="))),
              "--config")
  name = _assigned(error)
  if name:
    try:
      check_name(name)
    except InputError as unknown:
      return InputError(f"{path}: {name}", unknown.reason, unknown.cure, usage=True)
  lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [repr(error)]
  if name and isinstance(error, TypeError):
    return InputError(f"{path}: {name}", lines[0].partition("(reference). ")[2] or lines[0],
                      "give a value of that type", usage=True)
  cure = "correct the config file or its path"
  if isinstance(error, ModuleNotFoundError) and (error.name or "").partition(".")[0] == "configs":
    cure = "import the packaged configs: from condseg_jax.configs import base"
  return InputError(path, f"cannot be loaded: {type(error).__name__}: {lines[0][:200]}", cure,
                    usage=True)


def _file(value: str) -> str:
  """Resolves `NAME` or `FILE.py`, either with `:ARGUMENT`, to FILE.py[:ARGUMENT]."""
  name, colon, argument = value.partition(":")
  path = Path(name)
  if not path.is_file() and path.name == name:
    packaged = PACKAGED / f"{name.removesuffix('.py')}.py"
    path = packaged if packaged.is_file() and packaged.stem in names() else path
  if not path.is_file():
    raise InputError(name, "does not exist", "name a file with get_config(), or one of: "
                     f"{', '.join(names())}", usage=True)
  return f"{path}{colon}{argument}"


def _assigned(error: Exception) -> str:
  """Returns the dotted name of the setting that a config file failed to set or read, or ""."""
  for frame, _ in reversed(list(traceback.walk_tb(error.__traceback__))):
    tree = frame.f_locals.get("self")
    key = frame.f_locals.get("key", frame.f_locals.get("attribute"))
    if type(tree).__name__ == "ConfigDict" and isinstance(key, str):
      # A ConfigDict does not know its own name; its keys identify the section.
      fields = {name: set(cls.__dataclass_fields__)
                for name, cls in {"": Config, **settings.sections(Config)}.items()}
      section = next((name for name, known in fields.items() if known == set(tree.keys())), None)
      if section is not None:
        return f"{section}.{key}".lstrip(".")
  return ""
