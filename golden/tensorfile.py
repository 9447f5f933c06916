# SPDX-License-Identifier: Apache-2.0
"""The safetensors format, read: arrays by name in a file that cannot execute anything.

    8 bytes     length n of the header, little endian
    n bytes     header: JSON, {name: {"dtype", "shape", "data_offsets": [begin, end]}, ...}
    the rest    data: the arrays one after the other, little endian, in C order, without a gap

Source: the format's own description (huggingface/safetensors, README, "Format"). This reader takes what the
format's library takes, or less, so that golden needs NumPy alone: no duplicate names, no types but those of
TYPES, and every byte of the data belongs to exactly one array.
"""

from __future__ import annotations

import json
import math
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

__all__ = ["TYPES", "read_json", "read_tensors"]

Arrays = dict[str, npt.NDArray[Any]]

TYPES = {
    "BOOL": "|b1",
    "I8": "|i1",
    "U8": "|u1",
    "I16": "<i2",
    "U16": "<u2",
    "I32": "<i4",
    "U32": "<u4",
    "I64": "<i8",
    "U64": "<u8",
    "F32": "<f4",
    "F64": "<f8",
}
"""Types that a file may hold, by the format's names: NumPy's."""
LARGEST_HEADER = 100_000_000


def read_json(content: bytes) -> Any:
    """Parse strict JSON: no NaN, no infinity, no name twice in an object. ValueError otherwise."""
    try:
        return json.loads(content.decode(), parse_constant=_refuse, object_pairs_hook=_unique)
    except RecursionError:
        raise ValueError("JSON must be nested less deeply") from None


def _refuse(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) != len(pairs):
        raise ValueError("Names must be unique within an object")
    return content


def read_tensors(content: bytes) -> Arrays:
    """Return the arrays of a file's content, read-only views into it; ValueError where it is not sound."""
    length = int.from_bytes(content[:8], "little")
    room = len(content) - 8
    if room < 0 or not 2 <= length <= min(room, LARGEST_HEADER):
        raise ValueError(
            f"Header must fit in the file's {len(content)} bytes, not be {length} long"
        )
    header = read_json(content[8 : 8 + length])
    if not isinstance(header, dict):
        raise ValueError("Header must be an object of names")
    notes = header.pop("__metadata__", {})
    if not isinstance(notes, dict) or not all(isinstance(note, str) for note in notes.values()):
        raise ValueError("Metadata must be an object of strings")
    data = memoryview(content)[8 + length :]
    arrays, ends = {}, []
    for name, entry in header.items():
        try:
            arrays[name], end = _array(entry, data)
        except ValueError as error:
            raise ValueError(f"Tensor {name!r}: {error}") from None
        ends.append(end)
    _cover(sorted(ends), len(data))
    return arrays


def _array(entry: Any, data: memoryview) -> tuple[npt.NDArray[Any], tuple[int, int]]:
    """An array and its bytes' (begin, end)."""
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise ValueError("Entry must have dtype, shape and data_offsets")
    kind, shape, place = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(kind, str) or kind not in TYPES:
        raise ValueError(f"Type must be one of {', '.join(TYPES)}, not {kind!r}")
    for name, numbers in (("Shape", shape), ("Offsets", place)):
        if not isinstance(numbers, list) or not all(type(n) is int and n >= 0 for n in numbers):
            raise ValueError(f"{name} must be a list of numbers from 0, not {numbers!r}")
    if any(
        length >= 1 << 40 for length in shape
    ):  # beside an axis of length 0 it could be anything
        raise ValueError(f"Shape must be one of an array, not {shape!r}")
    dtype = np.dtype(TYPES[kind])
    size = math.prod(shape) * dtype.itemsize
    if len(place) != 2 or place[1] - place[0] != size or place[1] > len(data):
        raise ValueError(f"Offsets must be {size} bytes apart and within the file, not {place!r}")
    flat = np.frombuffer(data[place[0] : place[1]], dtype)
    if kind == "BOOL" and size and int(flat.view(np.uint8).max()) > 1:
        raise ValueError("Booleans must be bytes 0 or 1")
    return flat.reshape(shape), (place[0], place[1])


def _cover(places: list[tuple[int, int]], size: int) -> None:
    """Raise ValueError unless the sorted places cover ``size`` bytes without a gap or an overlap."""
    reached = 0
    for begin, end in places:
        if begin != reached:
            raise ValueError(
                f"Tensors must follow each other, not begin at {begin} after {reached}"
            )
        reached = end
    if reached != size:
        raise ValueError(f"Tensors must cover {size} bytes of data, not {reached}")
