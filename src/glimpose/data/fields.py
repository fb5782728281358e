"""Checked fields of JSON and CSV files: ValueErrors that say where, which field, what it is and what was expected."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np


def mapping(value: Any, where: object) -> Mapping:
    """Require named fields."""
    if not isinstance(value, Mapping):
        raise ValueError(f"{where}: got {some(value)}, expected an object with named fields")
    return value


def number(entry: Any, key: str, where: object) -> float:
    """Take a finite number out of named fields."""
    fields = mapping(entry, where)
    if key not in fields:
        raise ValueError(f"{where}: no field {key}; it has {some(fields)}")
    return float(numbers([fields[key]], 1, where, key)[0])


def numbers(values: Any, num: int, where: object, field: str) -> np.ndarray:
    """Require so many finite numbers; a CSV's strings will do."""
    if not isinstance(values, Sequence) or isinstance(values, str):
        raise ValueError(f"{where}: {field} is {values!r}, expected {num} numbers")
    if len(values) != num:
        raise ValueError(f"{where}: {field} has {len(values)} numbers, expected {num}")
    try:
        array = np.array(values, dtype=np.float64)
    except (TypeError, ValueError):
        array = np.array(np.nan)
    if array.shape != (num,) or not np.isfinite(array).all():
        raise ValueError(f"{where}: {field} is {some(values)}, expected {num} finite number{'s' if num > 1 else ''}")
    return array


def integer(value: Any, where: object, field: str) -> int:
    """Require a whole number that isn't negative; a string of digits will do, as in JSON's keys."""
    if isinstance(value, str) and value.strip().isdecimal():
        return int(value)
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    raise ValueError(f"{where}: {field} is {value!r}, expected a whole number, 0 or above")


def some(values: Any, most: int = 8) -> str:
    """Shorten what an error message shows."""
    if not isinstance(values, Iterable) or isinstance(values, str):
        return repr(values)
    listed = [str(value) for value in values]
    return ", ".join(listed[:most]) + (f" … ({len(listed)} in all)" if len(listed) > most else "") if listed else "none"


def json_lines(content: Mapping | Sequence) -> str:
    """Write JSON with one line per top-level entry, as BOP's files have it."""
    if isinstance(content, Mapping):
        lines = [f"  {json.dumps(str(key))}: {json.dumps(value, allow_nan=False)}" for key, value in content.items()]
        return "{\n" + ",\n".join(lines) + "\n}\n"
    return "[\n" + ",\n".join(f"  {json.dumps(value, allow_nan=False)}" for value in content) + "\n]\n"
