# SPDX-License-Identifier: Apache-2.0
"""Edits that make a valid file into one that nobody wrote: of bytes, of JSON, and inside containers.

Every edit draws its choices from a :class:`Choices`, a list of numbers that Hypothesis makes and shrinks. The
containers (a header of tensors, a zip archive, a PNG) are put together again with lengths and checksums that
hold, so that an edit reaches what lies behind them.
"""

from __future__ import annotations

import io
import json
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from itertools import cycle
from typing import Any

DEEP = 200_000
"""Brackets inside each other: more than any parser's stack."""
NUMBERS = (0, -1, 1, 2, 255, 256, 65536, (1 << 31) - 1, 1 << 31, 1 << 53, (1 << 63) - 1, 1 << 64, 10**30)
STRINGS = (
    *("", ".", "..", "../x", "/etc/passwd", "a/b", "C:\\x", "\0", "x" * 300, "\ud800", "\u202e", "<b>", "'"),
    *("manifest.json", "softmax", "layernorm", "linear", "sqrt2", "branch", "2", "0", "-1", "1e9", "None"),
)
JUNK: tuple[Any, ...] = (
    *(None, True, False, [], {}, [[]], [0], [1, 2, 3], [-1, 1 << 40], {"a": 1}, {"": None}, ["a", "b"]),
    *(0.5, -0.0, 1e308, -1e-308, float("nan"), float("inf")),
    *NUMBERS,
    *STRINGS,
)


class Choices:
    """Numbers from 0 to 2**32 - 1, used one after the other, and again from the first."""

    def __init__(self, numbers: Sequence[int]) -> None:
        self._numbers = cycle(numbers)
        self._used = 0

    def below(self, limit: int) -> int:
        """A number from 0 to limit - 1 (0 where there is none)."""
        # Used a second time, a number chooses something else.
        self._used += 1
        return (next(self._numbers) + self._used * 0x9E3779B1) % max(limit, 1)

    def of(self, values: Sequence[Any]) -> Any:
        """One of the values."""
        return values[self.below(len(values))]


# ---------------------------------------------------------------------------------------------- bytes


def edit_bytes(content: bytes, choose: Choices) -> bytes:
    """Flip a bit, overwrite, cut, repeat, splice, or empty."""
    kind, place = choose.below(10), choose.below(len(content))
    if kind < 3:  # a bit
        changed = bytearray(content or b"\0")
        changed[place % len(changed)] ^= 1 << choose.below(8)
        return bytes(changed)
    if kind == 3:
        return content[:place]
    if kind == 4:  # a number at some place
        size = choose.of((1, 2, 4, 8))
        number = choose.of(NUMBERS) % (1 << 8 * size)
        order = choose.of(("little", "big"))
        return content[:place] + number.to_bytes(size, order) + content[place + size :]
    length = choose.below(64)
    if kind == 5:
        return content[:place] + content[place + length :]
    if kind == 6:
        return content[:place] + content[place : place + length] * 2 + content[place + length :]
    if kind == 7:
        other = choose.below(len(content))
        return content[:place] + content[other : other + length] + content[place + length :]
    if kind == 8:
        return content[:place] + bytes(choose.below(256) for _ in range(length)) + content[place:]
    return content + content if choose.below(2) else b""


# ----------------------------------------------------------------------------------------------- JSON


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths of everything inside a JSON value."""
    for key in value if isinstance(value, dict) else range(len(value)):
        yield (*path, key)
        if isinstance(value[key], dict | list):
            yield from places(value[key], (*path, key))


def edit_json(content: bytes, choose: Choices) -> bytes:
    """Change a value, a name or the nesting of a JSON text; a text that is no JSON is edited as bytes."""
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        return edit_bytes(content, choose)
    paths = list(places(value)) if isinstance(value, dict | list) else []
    kind = choose.below(16)
    if not paths or kind == 0:
        return edit_bytes(content, choose)
    if kind == 1:  # nested too deeply
        opening = choose.of(("[", '{"a":'))
        return content[: choose.below(len(content))] + opening.encode() * DEEP
    if kind == 2:  # a name that occurs twice
        path = choose.of([path for path in paths if isinstance(path[-1], str)] or [("a",)])
        name = json.dumps(path[-1]).encode()
        return content.replace(name + b":", name + b": 0, " + name + b":", 1)
    if kind == 3:  # a number of very many digits
        return content.replace(b": ", b": " + choose.of((b"9" * 5000, b"1e999", b"-0", b"01")) + b", ", 1)
    *above, last = choose.of(paths)
    inside = value
    for key in above:
        inside = inside[key]
    if kind == 4:
        del inside[last]
    elif kind == 5:
        other: Any = value
        for key in choose.of(paths):
            other = other[key]
        inside[last] = json.loads(json.dumps(other))
    elif kind == 6 and isinstance(inside, dict):
        inside[choose.of(STRINGS)] = inside.pop(last)
    elif kind == 7 and isinstance(inside, list):
        inside.append(inside[last])
    elif kind < 11 and isinstance(inside[last], int):
        inside[last] += choose.of((1, -1, 7, -inside[last], 1 << choose.below(70)))
    elif kind == 11:
        inside[last] = [inside[last]]
    else:
        inside[last] = choose.of(JUNK)
    return json.dumps(value).encode()


# ----------------------------------------------------------------------------------------- containers


def edit_tensors(content: bytes, choose: Choices) -> bytes:
    """Edit a file of tensors: as bytes, or its header as JSON, with the header's length put right."""
    length = int.from_bytes(content[:8], "little")
    if choose.below(3) == 0 or length > len(content):
        return edit_bytes(content, choose)
    header = edit_json(content[8 : 8 + length], choose)
    data = content[8 + length :]
    if choose.below(4) == 0:
        data = edit_bytes(data, choose)
    return len(header).to_bytes(8, "little") + header + data


def edit_zip(content: bytes, choose: Choices) -> bytes:
    """Edit an archive: as bytes, or a file in it, with its checksum put right; perhaps compressed."""
    if choose.below(3) == 0:
        return edit_bytes(content, choose)
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            parts = [(name, archive.read(name)) for name in archive.namelist()]
    except Exception:  # edited before
        return edit_bytes(content, choose)
    if not parts:
        return edit_bytes(content, choose)
    pickles = [place for place, (name, _) in enumerate(parts) if name.endswith(".pkl")]
    place = choose.of(pickles) if pickles and choose.below(3) else choose.below(len(parts))
    name, part = parts[place]
    kind = choose.below(8)
    if kind == 0:
        name = choose.of((*STRINGS, *(name for name, _ in parts)))
    elif kind == 1:
        part = bytes(1 << 20)  # very much of nothing
    else:
        part = edit_bytes(part, choose)
    parts[place] = (name, part)
    if kind == 2:
        del parts[choose.below(len(parts))]
    packed = io.BytesIO()
    how = zipfile.ZIP_DEFLATED if kind == 1 or choose.below(8) == 0 else zipfile.ZIP_STORED
    try:
        with zipfile.ZipFile(packed, "w", how) as archive, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # names that occur twice are meant
            for name, part in parts:
                archive.writestr(zipfile.ZipInfo(name), part, how)
    except Exception:  # a name that no archive may have
        return edit_bytes(content, choose)
    return packed.getvalue()


def chunks(content: bytes) -> list[tuple[bytes, bytes]]:
    """Kinds and data of a PNG's chunks."""
    found, at = [], 8
    while at + 8 <= len(content):
        (length,) = struct.unpack(">I", content[at : at + 4])
        found.append((content[at + 4 : at + 8], content[at + 8 : at + 8 + length]))
        at += 12 + length
    return found


def png(parts: Sequence[tuple[bytes, bytes]]) -> bytes:
    """A PNG of these chunks, with checksums that hold."""
    whole = b"\x89PNG\r\n\x1a\n"
    for kind, data in parts:
        whole += struct.pack(">I", len(data)) + kind + data
        whole += struct.pack(">I", zlib.crc32(kind + data))
    return whole


def edit_png(content: bytes, choose: Choices) -> bytes:
    """Edit a PNG: as bytes, or a chunk of it, with its checksum put right."""
    if choose.below(3) == 0 or content[:4] != b"\x89PNG":
        return edit_bytes(content, choose)
    parts = chunks(content)
    if not parts:
        return edit_bytes(content, choose)
    place = choose.below(len(parts))
    kind, data = parts[place]
    which = choose.below(6)
    if which == 0:
        kind = choose.of((b"IDAT", b"PLTE", b"tRNS", b"iCCP", b"zTXt", b"iTXt", b"gAMA", b"acTL", b"fdAT"))
    elif which == 1:
        parts.append((choose.of((b"zTXt", b"iCCP")), b"x\0\0" + zlib.compress(bytes(1 << 20))))
    elif which == 2:
        parts.append(parts[choose.below(len(parts))])
    else:
        data = edit_bytes(data, choose)
    parts[place] = (kind, data)
    return png(parts)


Edit = Callable[[bytes, Choices], bytes]
BY_SUFFIX: dict[str, Edit] = {
    ".json": edit_json,
    ".safetensors": edit_tensors,
    ".pt": edit_zip,
    ".png": edit_png,
}


def edited(name: str, content: bytes, choose: Choices) -> bytes:
    """The content of a file after one to three edits that suit its kind."""
    edit = BY_SUFFIX.get(name[name.rfind(".") :], edit_bytes)
    for _ in range(choose.of((1, 1, 1, 2, 3))):
        content = edit(content, choose)
    return content
