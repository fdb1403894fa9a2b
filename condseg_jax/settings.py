"""Settings as dataclasses: documented fields with allowed values, validated from a dict.

The generic machinery behind `config`; it defines no settings itself.
"""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
import dataclasses
import difflib
import sys
import types
import typing
from typing import Any

from condseg_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Setting:
  """Metadata of a setting besides its type and default.

  Attributes:
    doc: its meaning and unit.
    choices: allowed values; any when empty.
    low, high: inclusive bounds of every number in the value.
    above, below: exclusive bounds of every number in the value.
    least: smallest number of entries of a tuple.
  """

  doc: str
  choices: tuple = ()
  low: float | None = None
  high: float | None = None
  above: float | None = None
  below: float | None = None
  least: int = 0

  @property
  def allowed(self) -> str:
    """Describes the allowed values; "" if the type says it all."""
    if self.choices:
      return "one of " + ", ".join(map(repr, self.choices))
    smallest = self.low if self.above is None else self.above
    largest = self.high if self.below is None else self.below
    if smallest is None:
      return ""
    if largest is None:
      return f"≥ {smallest:g}" if self.above is None else f"> {smallest:g}"
    return (f"in {'[' if self.above is None else '('}{smallest:g}, {largest:.10g}"
            f"{']' if self.below is None else ')'}")


class FrozenDict(dict):
  """A hashable, immutable dict, usable as a static argument of `jax.jit`."""

  def __hash__(self) -> int:  # type: ignore[override]
    return hash(frozenset(self.items()))


def setting(default, doc: str, **bounds) -> Any:
  """Returns a field of a settings dataclass; `bounds` are fields of `Setting`."""
  metadata = {"setting": Setting(doc, **bounds)}
  if isinstance(default, Mapping):
    return dataclasses.field(default_factory=lambda: FrozenDict(default), metadata=metadata)
  return dataclasses.field(default=default, metadata=metadata)


def build(cls, tree: Any, renamed: Mapping[str, str] = types.MappingProxyType({})):
  """Builds a dataclass from a nested dict, validating every value.

  Args:
    cls: a dataclass whose fields are made by `setting`, or are such dataclasses.
    tree: missing fields get their defaults; lists are accepted for tuples, whole numbers for
      floats.
    renamed: former dotted name → current name, for the error about an unknown name.

  Raises:
    InputError: an unknown name, a value of the wrong type or out of range.
  """
  return _build(cls, tree, "", lambda name: unknown(name, cls, renamed))


def _build(cls, tree: Any, prefix: str, error: Callable[[str], InputError]):
  if not isinstance(tree, Mapping):
    raise InputError(prefix.rstrip(".") or "config", f"must be a dict, got {tree!r}",
                     "correct the config", usage=True)
  hints, fields = typing.get_type_hints(cls), {f.name: f for f in dataclasses.fields(cls)}
  values = {}
  for key, value in tree.items():
    name = f"{prefix}{key}"
    if key not in fields:
      raise error(name)
    if dataclasses.is_dataclass(hints[key]):
      values[key] = _build(hints[key], value, f"{name}.", error)
    else:
      values[key] = _value(value, hints[key], name, (value, hints[key]))
      _check_range(values[key], fields[key].metadata["setting"], name)
  return cls(**values)


def walk(cls, prefix: str = "") -> Iterator[tuple[str, Any, Setting]]:
  """Yields dotted name, default and `Setting` of every setting of a dataclass."""
  for field in dataclasses.fields(cls):
    if "setting" in field.metadata:
      default = getattr(cls(), field.name)
      yield f"{prefix}{field.name}", default, field.metadata["setting"]
    else:
      yield from walk(type(getattr(cls(), field.name)), f"{prefix}{field.name}.")


def sections(cls) -> dict[str, type]:
  """Returns the fields of a dataclass that are themselves settings dataclasses."""
  hints = typing.get_type_hints(cls)
  return {name: hint for name, hint in hints.items()
          if isinstance(hint, type) and dataclasses.is_dataclass(hint)}


def unknown(name: str, cls, renamed: Mapping[str, str] = types.MappingProxyType({})) -> InputError:
  """Returns the error for an unknown setting, suggesting the closest known one.

  Args:
    name: dotted name.
    cls: the dataclass of all settings.
    renamed: former name → current name.
  """
  known = [*(known for known, _, _ in walk(cls)), *sections(cls)]
  if name in renamed:
    return InputError(name, "unknown setting", f"renamed to {renamed[name]}", usage=True)
  section, _, key = name.rpartition(".")
  inside = {k.rpartition(".")[2]: k for k in known if k.rpartition(".")[0] == section}
  near = [inside[m] for m in difflib.get_close_matches(key, inside, 1, 0.6)]
  near += [k for k in known if k.rpartition(".")[2] == key]
  if section not in ("", *sections(cls)):  # a misspelt section
    near += difflib.get_close_matches(name, known, 1, 0.7)
  if near:
    return InputError(name, "unknown setting", f"did you mean {near[0]}?", usage=True)
  return InputError(name, "unknown setting", f"settings of {section or 'a config'}: "
                    f"{', '.join(inside or sections(cls))}", usage=True)


def plain(tree: Any) -> Any:
  """Converts dataclasses, mappings and tuples to dicts and lists that survive a JSON round trip."""
  if dataclasses.is_dataclass(tree) and not isinstance(tree, type):
    return {field.name: plain(getattr(tree, field.name)) for field in dataclasses.fields(tree)}
  if isinstance(tree, Mapping):
    return {str(key): plain(value) for key, value in tree.items()}
  return [plain(value) for value in tree] if isinstance(tree, list | tuple) else tree


def optional_type(cls, name: str) -> type:
  """Returns T of a field `T | None` without arguments: `tuple` for `tuple[int, ...] | None`."""
  hint = _not_none(typing.get_type_hints(cls)[name])
  return typing.get_origin(hint) or hint


def markdown(cls, prefix: str = "config") -> str:
  """Returns all settings of a dataclass as Markdown tables, one per section."""
  tables: dict[str, list[str]] = {}
  for name, default, setting in walk(cls):
    section = name.rpartition(".")[0]
    if section not in tables:
      doc = (sections(cls)[section].__doc__ or "").partition("\n")[0] if section else ""
      tables[section] = [f"## `{prefix}.{section}`" if section else f"## `{prefix}`", "",
                         *([doc, ""] if doc else []),
                         "| setting | default | allowed | meaning |", "|---|---|---|---|"]
    value = float(f"{default:.4g}") if isinstance(default, float) else default
    tables[section].append(f"| `{name}` | `{value!r}` | {setting.allowed} | {setting.doc} |")
  return "\n\n".join("\n".join(lines) for lines in tables.values()) + "\n"


# --- one value ----------------------------------------------------------------------------------
def _value(value: Any, hint, name: str, whole: tuple) -> Any:
  """Converts a value to its type; `whole` is value and type of the enclosing setting."""
  origin, arguments = typing.get_origin(hint), typing.get_args(hint)
  if origin in (types.UnionType, typing.Union):
    return None if value is None else _value(value, _not_none(hint), name, whole)
  if origin is tuple and isinstance(value, list | tuple):
    return tuple(_value(v, arguments[0], name, whole) for v in value)
  if origin is not None and issubclass(origin, Mapping) and isinstance(value, Mapping):
    return FrozenDict((str(k), _value(v, arguments[1], f"{name}.{k}", (v, arguments[1])))
                      for k, v in value.items())
  number = isinstance(value, int | float) and not isinstance(value, bool)
  if hint is float and number and not -sys.float_info.max <= value <= sys.float_info.max:
    raise InputError(name, f"{value!r} is not a finite number", "correct the config", usage=True)
  if hint is float and number:
    return float(value)
  if hint is int and number and isinstance(value, int):
    return value
  if hint in (bool, str) and isinstance(value, hint):
    return value
  raise InputError(name, f"{whole[0]!r} is not {_words(whole[1])}", "correct the config",
                   usage=True)


def _check_range(value: Any, setting: Setting, name: str) -> None:
  if isinstance(value, tuple) and len(value) < setting.least:
    raise InputError(name, f"has {len(value)} entries, must have at least {setting.least}",
                     "correct the config", usage=True)
  for leaf in _leaves(value):
    wrong = bool(setting.choices) and leaf not in setting.choices
    if isinstance(leaf, int | float) and not isinstance(leaf, bool):
      wrong |= setting.low is not None and leaf < setting.low
      wrong |= setting.high is not None and leaf > setting.high
      wrong |= setting.above is not None and leaf <= setting.above
      wrong |= setting.below is not None and leaf >= setting.below
    if wrong:
      near = difflib.get_close_matches(str(leaf), [str(c) for c in setting.choices], 1)
      raise InputError(name, f"{leaf!r} is not allowed, must be {setting.allowed}",
                       f"did you mean {near[0]!r}?" if near else "correct the config", usage=True)


def _leaves(value: Any) -> Iterator[Any]:
  if isinstance(value, Mapping):
    value = tuple(value.values())
  if isinstance(value, tuple):
    for inner in value:
      yield from _leaves(inner)
  elif value is not None:
    yield value


def _not_none(hint):
  return next(a for a in typing.get_args(hint) if a is not type(None))


def _words(hint) -> str:
  """Describes a type in words, e.g. `a tuple of whole numbers`."""
  origin, arguments = typing.get_origin(hint), typing.get_args(hint)
  if origin in (types.UnionType, typing.Union):
    return f"{_words(_not_none(hint))} or None"
  if origin is None:
    return {int: "a whole number", float: "a number", str: "a string", bool: "True or False"}[hint]
  inner = _words(arguments[-1] if origin is not tuple else arguments[0]).removeprefix("a ")
  inner = inner.replace("tuple", "tuples") if inner.startswith("tuple") else f"{inner}s"
  return f"a tuple of {inner}" if origin is tuple else f"a dict of {inner}"
