# SPDX-License-Identifier: Apache-2.0
"""Bundles without torch: nodes survive the way into a file and back, and every fault has its sentence."""

import hashlib
import json
import re
from dataclasses import fields, is_dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from bundles import described, written
from networks import images, tiny_swin, tiny_vit

from golden.bounds import Interval
from golden.bundle import (
    BundleError,
    pack_node,
    read_bundle,
    smallest_dtype,
    unpack_network,
    unpack_node,
)
from golden.node import Node
from golden.vit import VitModel

MODELS = {"vit": tiny_vit(), "swin": tiny_swin()}


@pytest.fixture
def folder(tmp_path):
    return written(tmp_path / "b", *described(MODELS["vit"]))


def alike(a, b):
    """Whether two values of a node are equal, arrays by value, whatever their types."""
    if is_dataclass(a):
        names = [field.name for field in fields(a)]
        return type(a) is type(b) and all(alike(getattr(a, n), getattr(b, n)) for n in names)
    if isinstance(a, np.ndarray):
        return np.array_equal(a, b)
    return type(a) is type(b) and a == b


# --------------------------------------------------------------------------------------- there and back


@pytest.mark.parametrize("name", MODELS)
def test_a_node_survives(name):
    for node in MODELS[name].nodes:
        entry, tensors = pack_node(node)
        back = unpack_node(json.loads(json.dumps(entry)), tensors)
        assert (back.name, back.op, back.inputs) == (node.name, node.op, node.inputs)
        assert alike(node.spec, back.spec)
        assert alike(node.params, back.params)
        assert set(back.layout) == {key for key, value in node.layout.items() if value is not None}
        assert all(alike(node.layout[key], value) for key, value in back.layout.items())
        again, same = pack_node(back)
        assert again == entry
        assert {key: (a.dtype, a.tobytes()) for key, a in same.items()} == {
            key: (a.dtype, a.tobytes()) for key, a in tensors.items()
        }


@pytest.mark.parametrize("name", MODELS)
def test_a_network_survives(name, tmp_path):
    model = MODELS[name]
    read = VitModel.from_bundle(written(tmp_path / "b", *described(model)))
    assert read.input_size == model.input_size
    assert read.flows == model.flows
    expected, found = model.trace(images(model)), read.trace(images(model))
    assert list(found) == list(expected)
    assert all(np.array_equal(found[key], expected[key]) for key in expected)


def test_the_types_in_a_file_follow_from_the_spec_alone():
    _, tensors = described(MODELS["vit"])
    kinds = {name: str(array.dtype) for name, array in tensors.items()}
    assert kinds["patch_embed/weight"] == "int8"
    assert kinds["patch_embed/bias"] == "int32"
    assert kinds["embed/positions"] == kinds["embed/prefix"] == "int16"
    assert kinds["embed/multiplier"] == "uint32"  # 24 bits
    assert kinds["norm/gain"] == "int16"
    assert kinds["norm/shift"] == kinds["head/weight"].replace("int", "uint") == "uint8"
    assert kinds["blocks.0.attn.qkv/requant.multiplier"] == "uint16"
    assert kinds["blocks.1.mlp.act/table"] == "int8"
    _, tensors = described(MODELS["swin"])
    kinds = {name: str(array.dtype) for name, array in tensors.items()}
    assert kinds["norm/gain"] == "uint8"  # shifts
    assert kinds["layers.0.blocks.1.attn/mask"] == "bool"
    assert kinds["layers.0.blocks.1.attn.scores/bias"] == "int16"
    assert kinds["layers.1.merge/index"] == "int32"


@pytest.mark.parametrize(
    ("low", "high", "kind"),
    [
        (0, 255, "uint8"),
        (0, 256, "uint16"),
        (-128, 127, "int8"),
        (-129, 0, "int16"),
        (-1, 128, "int16"),
        (0, (1 << 64) - 1, "uint64"),
        (-(1 << 63), 0, "int64"),
    ],
)
def test_smallest_type(low, high, kind):
    assert smallest_dtype(Interval(low, high)) == np.dtype(kind)


def test_no_type_is_large_enough():
    with pytest.raises(ValueError, match=r"^Values must fit in 64 bits, not be from -1 to 1844.*$"):
        smallest_dtype(Interval(-1, 1 << 64))


def test_numbers_of_numpy_and_nothing_at_all():
    node = MODELS["swin"]["pool"]
    given = replace(node, params=replace(node.params, in_zero_point=np.int64(2)))
    given = replace(given, layout={"first": np.int64(0)})
    assert json.dumps(pack_node(given)[0]) == json.dumps(pack_node(node)[0])
    plain = MODELS["vit"]["blocks.0.attn.scores"]
    absent = replace(plain, layout={**plain.layout, "windows": None})
    assert pack_node(absent)[0] == pack_node(plain)[0]


@pytest.mark.parametrize(
    ("name", "key", "value", "error", "message"),
    [
        (
            "layers.0.blocks.0.attn.scores",
            "windows",
            np.zeros((4, 4)),
            TypeError,
            "int32, not float64",
        ),
        ("layers.0.blocks.1.attn", "mask", np.zeros((4, 4, 4), int), TypeError, "bool, not int64"),
        (
            "layers.1.merge",
            "index",
            np.full((4, 4), 1 << 31),
            ValueError,
            "2147483647, not 2147483648",
        ),
    ],
)
def test_what_cannot_be_packed(name, key, value, error, message):
    node = MODELS["swin"][name]
    with pytest.raises(error, match=f"^{key} must be .*{message}$"):
        pack_node(replace(node, layout={**node.layout, key: value}))
    with pytest.raises(ValueError, match=r"^Operator must be one of"):
        pack_node(Node(name="x", op="dense", inputs=()))


# ---------------------------------------------------------------------------------------------- faults


def fails(folder, fault):
    for read in (read_bundle, VitModel.from_bundle):
        with pytest.raises(
            BundleError, match=rf"^Bundle {re.escape(repr(str(folder)))} {fault}\.$"
        ):
            read(folder)


def edit(folder, change):
    manifest = json.loads((folder / "manifest.json").read_text())
    change(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_folder(tmp_path, folder, monkeypatch):
    fails(tmp_path / "absent", r"is not a bundle: it has no manifest\.json")
    (folder / "manifest.json").rename(tmp_path / "elsewhere")
    (folder / "manifest.json").symlink_to(tmp_path / "elsewhere")
    fails(folder, r"is not a bundle: it has no manifest\.json")

    def denied(_path):
        raise PermissionError(13, "Permission denied")

    (tmp_path / "elsewhere").rename(folder / "manifest.json")
    monkeypatch.setattr(Path, "read_bytes", denied)
    fails(folder, r"cannot be read: 'manifest\.json': Permission denied")


def test_manifest(folder):
    text = (folder / "manifest.json").read_text()
    (folder / "manifest.json").write_text(
        text.replace('"version": 2', '"version": 2, "version": 2')
    )
    fails(folder, r"has a broken manifest\.json: it is not JSON")
    (folder / "manifest.json").write_text("[]")
    fails(folder, r"is not a bundle: its manifest\.json does not say 'qvit-hw/bundle'")


@pytest.mark.parametrize("version", [1, 3, "2", 2.0, None, True])
def test_version(folder, version):
    edit(folder, lambda manifest: manifest.update(version=version))
    fails(folder, rf"must have version 2, not {version!r}")


@pytest.mark.parametrize("key", ["files", "tensors"])
def test_manifest_lacks_an_entry(folder, key):
    edit(folder, lambda manifest: manifest.pop(key))
    fails(folder, rf"has no valid '{key}' in its manifest")


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "a\\b", "..", "", "C:x", "a\0"])
def test_path_traversal(folder, name):
    edit(folder, lambda manifest: manifest["files"].update({name: "0"}))
    fails(folder, rf"names a file outside its folder: {re.escape(repr(name))}")


def test_files(tmp_path, folder):
    file = folder / "network.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    fails(folder, r"has a wrong hash: 'network\.safetensors' is not the file that was written")
    file.unlink()
    fails(folder, r"lacks the file 'network\.safetensors'")
    (tmp_path / "elsewhere").write_bytes(content)
    file.symlink_to(tmp_path / "elsewhere")
    fails(folder, r"lacks the file 'network\.safetensors'")
    file.unlink()
    file.write_bytes(b"junk")
    digest = hashlib.sha256(b"junk").hexdigest()
    edit(folder, lambda manifest: manifest["files"].update({file.name: digest}))
    fails(
        folder,
        r"has a damaged file 'network\.safetensors': it is not safetensors "
        r"\(Header must fit in the file's 4 bytes, not be \d+ long\)",
    )


def test_tensors(folder):
    name = "norm/gain"
    edit(folder, lambda manifest: manifest["tensors"][name].update(sha256="0"))
    fails(folder, rf"has a wrong hash: tensor '{name}' is not the one that was written")
    edit(folder, lambda manifest: manifest["tensors"][name].update(shape=[1, 12]))
    fails(folder, rf"has a wrong shape: tensor '{name}' is \[12\]")
    edit(folder, lambda manifest: manifest["tensors"][name].update(dtype="int8"))
    fails(folder, rf"has a wrong dtype: tensor '{name}' is int16")
    edit(folder, lambda manifest: manifest["tensors"][name].update(file="vectors.safetensors"))
    fails(folder, rf"has a wrong file: tensor '{name}' is in 'network\.safetensors'")
    edit(folder, lambda manifest: manifest["tensors"].pop(name))
    fails(folder, rf"holds a tensor that its manifest does not name: '{name}'")
    edit(folder, lambda manifest: manifest["tensors"].update({"ghost": {}}))
    fails(folder, r"lacks the tensor 'ghost'")


def test_a_tensor_in_two_files(folder):
    content = (folder / "network.safetensors").read_bytes()
    (folder / "more.safetensors").write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    edit(folder, lambda manifest: manifest["files"].update({"more.safetensors": digest}))
    fails(folder, r"holds the tensor '.*' twice")


def node_of(network, name):
    return next(node for node in network["nodes"] if node["name"] == name)


B0 = "blocks.0.attn"
ENTRY_FAULTS = [
    # (node, place in its entry, value, message)
    ("head", ("op",), "dense", r"Operator must be one of \[.*\], not 'dense'"),
    ("head", ("op",), ["linear"], r"Operator must be one of \[.*\], not \['linear'\]"),
    ("head", ("inputs",), "pool", "Inputs must be a list of names, not 'pool'"),
    ("head", ("inputs",), ["pool", "pool"], "Inputs of linear must be 1, not 2"),
    ("head", ("layout",), [], r"Layout must be an object, not \[\]"),
    ("head", ("more",), 1, r"Entry must have name, op, .*, layout, not \[.*'more'.*\]"),
    ("head", ("spec",), None, "LinearSpec must have in_features, in_bits, .*, not None"),
    ("head", ("spec", "more"), 1, r"LinearSpec must have in_features, .*, not \[.*'more'.*\]"),
    ("head", ("spec", "in_features"), 24.0, "Maximum row length must be an integer, not 24.0"),
    ("head", ("spec", "weight_bits"), 9, "Weight width must be from 3 to 8, not 9"),
    ("head", ("params",), None, "LinearParams must have weight, bias, requant, not None"),
    ("head", ("params", "weight"), None, "weight must be the name of a tensor, not None"),
    ("head", ("params", "weight"), [[1]], r"weight must be the name of a tensor, not \[\[1\]\]"),
    ("head", ("params", "weight"), "x", "weight must be the name of a tensor, not 'x'"),
    ("head", ("params", "weight"), "head/bias", "weight must be of type int8, not int32"),
    ("head", ("params", "bias"), "embed/multiplier", "bias must be of type int32, not uint32"),
    ("head", ("params", "requant"), 1, "RequantParams must have multiplier, shift, .*, not 1"),
    (
        f"{B0}.qkv",
        ("params", "requant"),
        None,
        "Requantiser must be given for 8 output bits, not None",
    ),
    (
        f"{B0}.qkv",
        ("params", "requant", "shift"),
        "x",
        "requant.shift must be the name of a tensor, not 'x'",
    ),
    (f"{B0}.scores", ("params", "requant"), None, "RequantParams must have .*, not None"),
    (
        f"{B0}.scores",
        ("params", "requant", "zero_point"),
        1,
        "Zero point of scores must be 0, not 1",
    ),
    (f"{B0}.scores", ("layout", "windows"), "x", "windows must be the name of a tensor, not 'x'"),
    (
        f"{B0}.scores",
        ("layout", "mask"),
        1,
        r"Layout of scores must have \['heads', 'windows'\], not .*",
    ),
    (f"{B0}.attend", ("spec", "softmax"), None, "SoftmaxSpec must have max_tokens, .*, not None"),
    (f"{B0}.attend", ("spec", "softmax", "base"), "3", "Code base must be '2' or 'sqrt2', not '3'"),
    (B0, ("params", "frac"), True, "Score fraction bits must be an integer, not True"),
    (B0, ("params", "frac"), "3", "Score fraction bits must be an integer, not '3'"),
    (
        "norm",
        ("params", "zero_point"),
        1 << 15,
        "Zero point must be from -32768 to 32767, not 32768",
    ),
    ("norm", ("params", "gain"), f"{B0}.qkv/bias", "gain must be of type int16, not int32"),
]


@pytest.mark.parametrize(("name", "place", "value", "message"), ENTRY_FAULTS)
def test_an_entry_that_is_not_sound(name, place, value, message, tmp_path):
    network, tensors = described(MODELS["vit"])
    inside = node_of(network, name)
    for key in place[:-1]:
        inside = inside[key]
    inside[place[-1]] = value
    with pytest.raises(BundleError, match=f"^Node {re.escape(repr(name))}: {message}$"):
        unpack_node(node_of(network, name), tensors)
    folder = written(tmp_path / "b", network, tensors)
    sentence = rf"has an invalid network: Node {re.escape(repr(name))}: {message}\."
    with pytest.raises(BundleError, match=rf"^Bundle '.*/b' {sentence}$"):
        VitModel.from_bundle(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda network: network.clear(), "Network must have input_size, output and nodes"),
        (lambda network: network.update(more=1), "Network must have input_size, output and nodes"),
        (lambda network: network.update(nodes={}), "Nodes must be a list of at least one"),
        (lambda network: network.update(nodes=[]), "Nodes must be a list of at least one"),
        (lambda network: network.update(nodes=[1]), "Node must have a name"),
        (lambda network: network["nodes"][0].update(name=""), "Node must have a name"),
        (
            lambda network: network.update(output="norm"),
            "Output must be the last node, 'head', .*'norm'",
        ),
        (
            lambda network: network.update(input_size=[3, 8.0, 12]),
            r"Input size must be channels, height, width, not \[3, 8\.0, 12\]",
        ),
        (
            lambda network: network.update(input_size=[3, 8]),
            r"Input size must be channels, height, width, not \[3, 8\]",
        ),
    ],
)
def test_a_network_that_is_not_sound(change, message):
    network, tensors = described(MODELS["vit"])
    change(network)
    with pytest.raises(BundleError, match=f"^{message}$"):
        unpack_network({"network": network}, tensors)


def test_nodes_that_do_not_suit_each_other(folder):
    edit(folder, lambda manifest: manifest["network"].update(input_size=[3, 8, 8]))
    message = r"has an invalid network: Node 'embed': Positions must be 4, not 6\."
    with pytest.raises(BundleError, match=rf"^Bundle '.*/b' {message}$"):
        VitModel.from_bundle(folder)
    edit(folder, lambda manifest: manifest.pop("network"))
    message = r"has an invalid network: Network must have input_size, output and nodes\."
    with pytest.raises(BundleError, match=rf"^Bundle '.*/b' {message}$"):
        VitModel.from_bundle(folder)
