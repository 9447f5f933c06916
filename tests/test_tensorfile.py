# SPDX-License-Identifier: Apache-2.0
"""The reader of safetensors: equal to the format's own library, or stricter; nothing but ValueError."""

import json
import re

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors import SafetensorError
from safetensors.numpy import load, save

from golden.tensorfile import TYPES, read_json, read_tensors


def packed(header, data=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def entry(dtype="I8", shape=(2,), begin=0, end=2, **more):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end], **more}


ARRAYS = st.dictionaries(
    st.text(max_size=5).filter(lambda name: name != "__metadata__"),
    hnp.arrays(
        st.sampled_from([np.dtype(code) for code in TYPES.values()]),
        hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4),
    ),
    max_size=4,
)


def same(found, wanted):
    assert set(found) == set(wanted)
    for name, array in found.items():
        assert array.dtype == wanted[name].dtype
        assert array.shape == wanted[name].shape
        assert array.tobytes() == wanted[name].tobytes()


@given(ARRAYS)
def test_what_the_library_writes_is_read(arrays):
    found = read_tensors(save(arrays, {"made": "by a test"}))
    same(found, arrays)
    assert not any(array.flags.writeable for array in found.values())


FILE = save({"a/b": np.arange(6, dtype=np.int16).reshape(2, 3), "c": np.zeros((0, 4), np.uint8)})


def taken(content):
    """Arrays, or None where the file is refused; the library must take what is taken here."""
    try:
        found = read_tensors(content)
    except ValueError:
        return None
    same(found, load(content))
    return found


@settings(max_examples=500)
@given(st.lists(st.tuples(st.integers(0, len(FILE) - 1), st.integers(0, 255)), max_size=4))
@example([])
def test_bytes_that_changed(changes):
    content = bytearray(FILE)
    for place, value in changes:
        content[place] = value
    taken(bytes(content))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=6,
)
NUMBERS = st.lists(st.integers(-1, 8) | st.just(1 << 64) | st.booleans(), max_size=3) | JSON
ENTRIES = st.fixed_dictionaries(
    {"dtype": st.sampled_from([*TYPES, "F16"]) | JSON, "shape": NUMBERS, "data_offsets": NUMBERS},
    optional={"more": JSON},
)
HEADERS = st.dictionaries(st.text(max_size=3) | st.just("__metadata__"), ENTRIES | JSON, max_size=3)


@settings(max_examples=500)
@given(HEADERS | JSON, st.binary(max_size=16), st.none() | st.integers(0, (1 << 64) - 1))
def test_headers_that_nobody_wrote(header, data, length):
    taken(packed(header, data, length))


@settings(max_examples=300)
@given(st.sampled_from(list(TYPES)), st.lists(st.integers(0, 3), max_size=3), st.integers(-1, 1))
def test_offsets_decide(kind, shape, off):
    size = int(np.prod(shape)) * np.dtype(TYPES[kind]).itemsize
    found = taken(
        packed({"a": entry(kind, shape, 0, max(size + off, 0))}, bytes(max(size + off, 0)))
    )
    assert (found is not None) == (max(size + off, 0) == size)


@given(st.binary(max_size=40))
def test_bytes_that_are_no_file(content):
    taken(content)


FAULTS = [
    (b"", "Header must fit in the file's 0 bytes, not be 0 long"),
    (b"1234567", "Header must fit in the file's 7 bytes, not be .* long"),
    (packed({}, length=3), "Header must fit in the file's 10 bytes, not be 3 long"),
    (packed({}, length=(1 << 64) - 1), "Header must fit in .*, not be 18446744073709551615 long"),
    (packed({}, length=1), "Header must fit in the file's 10 bytes, not be 1 long"),
    (packed(b"\xff\xff"), "'utf-8' codec can't decode byte 0xff .*"),
    (packed(b"{]"), "Expecting .*"),
    (packed(b'{"a": NaN}'), "NaN is not JSON"),
    (packed(b'{"a": {}, "a": {}}'), "Names must be unique within an object"),
    (packed(b"[" * 100_000), "JSON must be nested less deeply"),
    (packed([]), "Header must be an object of names"),
    (packed({"__metadata__": {"a": 1}}), "Metadata must be an object of strings"),
    (packed({"__metadata__": "a"}), "Metadata must be an object of strings"),
    (packed({"a": 1}), "Tensor 'a': Entry must have dtype, shape and data_offsets"),
    (packed({"a": entry(x=1)}, b"ab"), "Tensor 'a': Entry must have dtype, shape and data_offsets"),
    (packed({"a": entry("F16")}, b"ab"), "Tensor 'a': Type must be one of BOOL, .*, not 'F16'"),
    (packed({"a": entry(["I8"])}, b"ab"), r"Tensor 'a': Type must be one of .*, not \['I8'\]"),
    (packed({"a": entry(shape=[-2])}, b"ab"), r"Tensor 'a': Shape must be a list .*, not \[-2\]"),
    (packed({"a": entry(shape=[2.0])}, b"ab"), r"Tensor 'a': Shape must be .*, not \[2.0\]"),
    (
        packed({"a": entry(shape=[True, 2])}, b"ab"),
        r"Tensor 'a': Shape must be .*, not \[True, 2\]",
    ),
    (
        packed({"a": entry(shape=[0, 1 << 40], end=0)}),
        r"Tensor 'a': Shape must be one of an array, not \[0, 1099511627776\]",
    ),
    (packed({"a": entry(shape=[1] * 70, end=1)}, b"a"), "Tensor 'a': .*dimension.*"),
    (packed({"a": entry(end=3)}, b"abc"), "Tensor 'a': Offsets must be 2 bytes apart .*"),
    (packed({"a": entry(begin=1, end=3)}, b"ab"), "Tensor 'a': Offsets must be 2 bytes apart .*"),
    (packed({"a": entry(begin=2, end=0)}, b"ab"), "Tensor 'a': Offsets must be 2 bytes apart .*"),
    (packed({"a": entry(begin=-1, end=1)}, b"ab"), "Tensor 'a': Offsets must be a list .*"),
    (packed({"a": entry("BOOL")}, b"\0\2"), "Tensor 'a': Booleans must be bytes 0 or 1"),
    (packed({"a": entry(begin=1, end=3)}, b"abc"), "Tensors must follow .* begin at 1 after 0"),
    (
        packed({"a": entry(), "b": entry(begin=1, end=3)}, b"abc"),
        "Tensors must follow .* 1 after 2",
    ),
    (packed({"a": entry(), "b": entry()}, b"ab"), "Tensors must follow .* begin at 0 after 2"),
    (packed({"a": entry()}, b"abc"), "Tensors must cover 3 bytes of data, not 2"),
]


@pytest.mark.parametrize(("content", "fault"), FAULTS)
def test_faults(content, fault):
    with pytest.raises(ValueError, match=f"(?s)^{fault}$"):
        read_tensors(content)


def test_the_library_refuses_most_of_them_too():
    """What is refused here alone: names twice, types that no bundle has, and odd booleans."""

    def refuses(content):
        try:
            load(content)
        except (SafetensorError, ValueError, KeyError, TypeError, OverflowError):
            return True
        return False

    lenient = [fault for content, fault in FAULTS if not refuses(content)]
    assert len(lenient) < len(FAULTS) / 3, lenient


def test_json():
    assert read_json(b'{"a": [1, 2.5, null]}') == {"a": [1, 2.5, None]}
    with pytest.raises(ValueError, match=re.escape("-Infinity is not JSON")):
        read_json(b"[-Infinity]")
