"""Configuration: TOML files and `key=value` overrides, read strictly into frozen dataclasses.

A field may be a bool, int, float, str or Path, a `Literal`, a tuple, a `dict[str, X]`, another dataclass, a union of
these with None, or a union of dataclasses that a field `kind: Literal["…"]` tells apart.
"""

import dataclasses
import difflib
import tomllib
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar, Union

T = TypeVar("T")


def load(cls: type[T], path: Path | None, overrides: Sequence[str] = ()) -> T:
    """Read a TOML file, apply overrides such as `"training.steps=500"`, and build `cls`; without a file, its defaults.

    Override values are TOML; a bare word is a string, and `none` stands for None. Raises FileNotFoundError, or a
    ValueError that names the file or override, the dotted key and what was expected.
    """
    data: dict[str, Any] = {}
    if path is not None:
        try:
            data = tomllib.loads(Path(path).read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise FileNotFoundError(f"{path}: no such configuration file") from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"{path}: not valid TOML: {error}") from None
    origins: dict[str, str] = {}
    for override in overrides:
        key, equals, text = override.partition("=")
        key = key.strip()
        if not (equals and all(key.split("."))):
            raise ValueError(f"override '{override}': expected KEY=VALUE, for example training.steps=500")
        origins[key] = f"override '{override}'"
        _assign(data, key, _parse(text.strip()), origins[key])
    return _Reader(str(path or "defaults"), origins).read(cls, data, key="")


def from_dict(cls: type[T], data: Mapping[str, Any], where: str) -> T:
    """Build `cls` from plain values such as `to_dict` gives; `where` names their origin in errors."""
    return _Reader(where, {}).read(cls, data, key="")


def to_dict(obj: Any) -> Any:
    """Reduce a dataclass to what JSON can hold; `from_dict` is the inverse."""
    if dataclasses.is_dataclass(obj) and not isinstance(obj, type):
        return {field.name: to_dict(getattr(obj, field.name)) for field in dataclasses.fields(obj)}
    if isinstance(obj, Mapping):
        return {key: to_dict(value) for key, value in obj.items()}
    if isinstance(obj, list | tuple):
        return [to_dict(value) for value in obj]
    return str(obj) if isinstance(obj, Path) else obj


class _Reader:
    """Turns plain values into typed ones; knows which came from an override and which from the file."""

    def __init__(self, where: str, overrides: Mapping[str, str]) -> None:
        self.where = where
        self.overrides = overrides

    def fail(self, key: str, message: str) -> NoReturn:
        origin = f"{self.where}: {key}" if key else self.where
        for overridden, text in self.overrides.items():
            if key == overridden or key.startswith((f"{overridden}.", f"{overridden}[")):
                origin = text
        raise ValueError(f"{origin}: {message}")

    def fail_unknown(self, cls: Any, name: str, key: str) -> NoReturn:
        unknown = _join(key, name)
        # `typo.steps=5` is at fault as a whole, though only its first part is unknown.
        blamed = next((overridden for overridden in self.overrides if overridden.startswith(f"{unknown}.")), unknown)
        self.fail(blamed, f"unknown key '{name}'; {_nearest(cls, name, key)}")

    def read(self, expected: Any, value: Any, key: str, default: Any = None) -> Any:
        """Read `value` as the type `expected`; `default` fills what a partial table leaves out."""
        origin, args = typing.get_origin(expected), typing.get_args(expected)
        if dataclasses.is_dataclass(expected):
            return self.read_dataclass(expected, value, key, default)
        if origin in (Union, types.UnionType):
            return self.read_union(args, value, key, default)
        if origin is Literal and any(value == arg and type(value) is type(arg) for arg in args):
            return value
        if origin is tuple and isinstance(value, list | tuple):
            members = args[:1] * len(value) if args[-1] is Ellipsis else args
            if len(members) != len(value):
                self.fail(key, f"got {len(value)} values, expected {len(members)}")
            return tuple(self.read(m, v, f"{key}[{i}]") for i, (m, v) in enumerate(zip(members, value, strict=True)))
        if origin is dict and isinstance(value, Mapping):
            return {name: self.read(args[1], item, _join(key, name)) for name, item in value.items()}
        if expected is float and type(value) is int:
            return float(value)
        if expected is Path and isinstance(value, str):
            return Path(value)
        if isinstance(expected, type) and type(value) is expected:
            return value
        self.fail(key, f"got {value!r}, expected {_describe(expected)}")

    def read_union(self, members: tuple[Any, ...], value: Any, key: str, default: Any) -> Any:
        if type(None) in members and (value is None or (value == "none" and str not in members)):
            return None
        members = tuple(member for member in members if member is not type(None))
        if len(members) == 1:
            return self.read(members[0], value, key, default)
        kinds = {_kind(member): member for member in members if dataclasses.is_dataclass(member)}
        if isinstance(value, Mapping) and kinds:
            kind = value.get("kind", getattr(default, "kind", next(iter(kinds)) if len(kinds) == 1 else None))
            if kind not in kinds:
                self.fail(_join(key, "kind"), f"got {kind!r}, expected {_either(map(repr, kinds))}")
            return self.read(kinds[kind], value, key, default)
        for member in members:
            try:
                return self.read(member, value, key)
            except ValueError:
                continue
        self.fail(key, f"got {value!r}, expected {_either(map(_describe, members))}")

    def read_dataclass(self, cls: Any, value: Any, key: str, default: Any) -> Any:
        if isinstance(value, cls):
            return value
        if not isinstance(value, Mapping):
            self.fail(key, f"got {value!r}, expected a table of {cls.__name__}")
        hints = typing.get_type_hints(cls)
        fields = {field.name: field for field in dataclasses.fields(cls) if field.init}
        for name in value:
            if name not in fields:
                self.fail_unknown(cls, name, key)
        values = {}
        for name, field in fields.items():
            fallback = getattr(default, name) if isinstance(default, cls) else _default(field)
            if name in value:
                values[name] = self.read(hints[name], value[name], _join(key, name), fallback)
            elif fallback is not dataclasses.MISSING:
                values[name] = fallback
            else:
                self.fail(_join(key, name), f"missing, expected {_describe(hints[name])}")
        try:
            return cls(**values)
        except ValueError as error:  # the class's own checks
            self.fail(key, str(error))


def _assign(data: dict[str, Any], key: str, value: Any, origin: str) -> None:
    *tables, leaf = key.split(".")
    for table in tables:
        data = data.setdefault(table, {})
        if not isinstance(data, dict):
            raise ValueError(f"{origin}: '{table}' is a value, not a table")
    data[leaf] = value


def _parse(text: str) -> Any:
    try:
        parsed = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    return parsed["value"]


def _default(field: dataclasses.Field) -> Any:
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def _kind(cls: Any) -> Any:
    return typing.get_args(typing.get_type_hints(cls).get("kind", Literal[None]))[0]


def _dataclasses_in(hint: Any) -> list[Any]:
    members = [hint, *typing.get_args(hint)]
    return [member for member in members if dataclasses.is_dataclass(member)]


def _dotted_keys(cls: Any, prefix: str = "") -> Iterator[str]:
    for name, hint in typing.get_type_hints(cls).items():
        yield _join(prefix, name)
        for member in _dataclasses_in(hint):
            yield from _dotted_keys(member, _join(prefix, name))


def _nearest(cls: Any, name: str, key: str) -> str:
    """Say which valid key was probably meant: a sibling, else one of that name in a table further down."""
    siblings = [field.name for field in dataclasses.fields(cls)]
    nearest = difflib.get_close_matches(name, siblings, n=1)
    if not nearest:
        deeper = {dotted.rpartition(".")[2]: dotted for dotted in _dotted_keys(cls)}
        nearest = [deeper[leaf] for leaf in difflib.get_close_matches(name, deeper, n=1)]
    if nearest:
        return f"did you mean '{_join(key, nearest[0])}'?"
    return f"expected {_either(siblings)}"


def _join(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name


def _either(options: Any) -> str:
    *rest, last = options
    return f"{', '.join(rest)} or {last}" if rest else last


def _describe(expected: Any) -> str:
    if typing.get_origin(expected) is Literal:
        return _either(map(repr, typing.get_args(expected)))
    if typing.get_origin(expected) in (Union, types.UnionType):
        return _either(_describe(member) for member in typing.get_args(expected))
    names = {float: "a number", int: "an integer", bool: "true or false", str: "a string", Path: "a path"}
    return names.get(expected, "none" if expected is type(None) else getattr(expected, "__name__", str(expected)))
