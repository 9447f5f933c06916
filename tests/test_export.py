# SPDX-License-Identifier: Apache-2.0
"""The command export: four formats from a bundle, integers that read back, and everything it refuses."""

import json
import re
import sys

import numpy as np
import onnx
import pytest
from bundle_samples import digits, sample
from onnx_runs import session
from test_fqvit_block import network as fqvit_network

from golden.bundle import pack_node
from golden.node import IMAGE
from golden.vit import VitModel
from qvit_hw import cli
from qvit_hw.bundle import load_bundle
from qvit_hw.errors import MissingTool, UserError
from qvit_hw.export import integer_onnx, qdq_onnx
from qvit_hw.integer_files import INDEX, read_hex, write_hex, write_tensors
from qvit_hw.models import load_model
from qvit_hw.models.digits import digits_images
from qvit_hw.onnx_graph import Graph

PIXELS = digits_images("test")[0][:3]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return digits(tmp_path_factory.mktemp("digits") / "bundle")


def exported(bundle, out, kind):
    given = ["--bundle", str(bundle), "--format", kind, "--out", str(out)]
    return cli.invoke(["export", *given])


@pytest.fixture
def refused(capsys, tmp_path):
    """A function: export must exit with a status, say this sentence, and leave nothing behind."""

    def check(bundle, out, kind, sentence, status=cli.BAD_INPUT):
        before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
        assert exported(bundle, out, kind) == status
        last = capsys.readouterr().err.strip().splitlines()[-1]
        assert re.fullmatch(f"error: {sentence}", last), last
        after = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
        assert after == before

    return check


# ---------------------------------------------------------------------------------------- ONNX


def test_the_integer_file_is_the_bundle_s_golden_model(bundle, tmp_path):
    out = tmp_path / "new" / "digits.onnx"
    assert exported(bundle, out, "onnx-integer") == 0
    (got,) = session(out.read_bytes())({IMAGE: PIXELS})
    np.testing.assert_array_equal(got, VitModel.from_bundle(bundle)(PIXELS))
    notes = {each.key: each.value for each in onnx.load(out).metadata_props}
    loaded = load_bundle(bundle)
    assert notes["qvit-hw.format"] == "onnx-integer"
    assert (notes["qvit-hw.model"], notes["qvit-hw.preset"]) == ("digits", "w8a8p5")
    assert notes["qvit-hw.bundle"] == loaded.sha256
    scale = np.array(json.loads(notes["qvit-hw.scale"]))
    np.testing.assert_array_equal(scale, loaded.scales[loaded.plan["grids"]["head"]["scale"]])


def test_the_qdq_file_agrees_and_is_the_same_every_time(bundle, tmp_path, capsys):
    out = tmp_path / "digits.onnx"
    assert exported(bundle, out, "onnx") == 0
    assert re.search(
        r"digits\.onnx: [\d,]+ bytes, input 'image', uint8 \[batch, C, H, W\]",
        capsys.readouterr().err,
    )
    content = out.read_bytes()
    (got,) = session(content)({IMAGE: PIXELS})
    assert (got.argmax(axis=1) == VitModel.from_bundle(bundle)(PIXELS).argmax(axis=1)).all()
    assert exported(bundle, out, "onnx") == 0
    assert out.read_bytes() == content
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.parametrize("kind", ["onnx", "onnx-integer"])
def test_without_the_package_onnx(kind, bundle, tmp_path, monkeypatch, refused):
    monkeypatch.setitem(sys.modules, "onnx", None)
    sentence = r"Writing ONNX needs the package onnx: run `pip install 'qvit-hw\[onnx\]'`\."
    refused(bundle, tmp_path / "x.onnx", kind, sentence, status=cli.MISSING_TOOL)
    with pytest.raises(MissingTool, match=f"^{sentence}$"):
        Graph().model("x", [], [], {})
    assert exported(bundle, tmp_path / "x", "npy") == 0


# --------------------------------------------------------------------------------------- files


def read(folder, entry):
    """The integers of an index's entry, from its file."""
    path = folder / entry["file"]
    if path.suffix == ".hex":
        return read_hex(path)
    return np.load(path, allow_pickle=False)


def readmemh(path, bits, signed):
    """What Verilog would see: words, comments and white space left out; independent of read_hex."""
    words = re.sub(r"//.*", "", path.read_text()).split()
    assert {len(word) for word in words} == {(bits + 3) // 4}
    values = [int(word, 16) for word in words]
    assert max(values) < 1 << bits
    return [value - (1 << bits) if signed and value >> (bits - 1) else value for value in values]


@pytest.mark.parametrize("kind", ["npy", "hex"])
def test_every_integer_reads_back(kind, bundle, tmp_path):
    out = tmp_path / "integers"
    assert exported(bundle, out, kind) == 0
    index = json.loads((out / INDEX).read_text())
    loaded = load_bundle(bundle)
    assert (index["schema"], index["version"], index["format"]) == ("qvit-hw/integers", 1, kind)
    assert (index["model"], index["preset"]) == ("digits", "w8a8p5")
    assert (index["input_size"], index["output"]) == ([1, 8, 8], "head")
    files = {entry["file"] for entry in index["tensors"]}
    assert {path.name for path in out.iterdir()} == files | {INDEX}
    assert len(files) == len(index["tensors"])
    entries = {(entry["node"], entry["tensor"]): entry for entry in index["tensors"]}
    for node in loaded.network.nodes:
        for name, array in pack_node(node)[1].items():
            path = name.removeprefix(f"{node.name}/").removeprefix("requant.")
            entry = entries.pop((node.name, path))
            got = read(out, entry)
            np.testing.assert_array_equal(got, array, name)
            assert list(got.shape) == entry["shape"]
            if kind == "hex":
                flat = readmemh(out / entry["file"], entry["bits"], entry["signed"])
                assert flat == array.ravel().tolist()
    assert {tensor for _, tensor in entries} == {"exp2", "log2", "rsqrt"}
    spec = loaded.network["norm"].spec
    np.testing.assert_array_equal(read(out, entries["norm", "rsqrt"]), spec.rsqrt)


def test_the_index_says_how_wide_things_are_and_what_they_mean(bundle, tmp_path):
    out = tmp_path / "integers"
    assert exported(bundle, out, "hex") == 0
    index = json.loads((out / INDEX).read_text())
    entries = {(entry["node"], entry["tensor"]): entry for entry in index["tensors"]}

    def width(node, tensor):
        return entries[node, tensor]["bits"], entries[node, tensor]["signed"]

    assert width("blocks.0.mlp.fc1", "weight") == (8, True)
    assert width("blocks.0.mlp.fc1", "multiplier") == (16, False)
    assert width("blocks.0.residual1", "multiplier") == (24, False)
    assert width("blocks.0.residual1", "out_shift") == (2, False)
    assert width("embed", "positions") == (16, True)
    assert width("blocks.0.mlp.act", "table") == (8, True)
    assert entries["blocks.0.mlp.act", "table"]["shape"] == [1024]
    assert entries["blocks.0.residual1", "multiplier"]["scale"] is None
    nodes = {node["name"]: node for node in index["nodes"]}
    model = load_bundle(bundle).network
    for node in model.nodes:
        flow, output = model.flows[node.name], nodes[node.name]["output"]
        assert (output["bits"], output["shape"]) == (flow.range.bits, list(flow.shape))
    assert nodes["blocks.0.residual1"]["params"]["gain"] == model["blocks.0.residual1"].params.gain
    assert nodes["pool"]["layout"] == {"tokens": [0]}
    assert nodes["blocks.0.attn"]["output"]["base"] == "sqrt2"
    # Weights mean the float network's; positions, the float positions.
    network = load_model("digits").network
    for node in network.of("linear", "patch_embed"):
        entry = entries[node.name, "weight"]
        scale = np.array(entry["scale"])
        meant = read(out, entry) * np.broadcast_to(scale, len(node.weight))[:, None]
        assert np.abs(meant - node.weight.numpy()).max() <= 0.51 * scale.max()
    entry, positions = entries["embed", "positions"], network["embed"].positions.numpy()
    meant = (read(out, entry) - entry["zero_point"]) * np.array(entry["scale"])
    assert np.abs(meant - positions).max() <= 0.51 * np.max(entry["scale"])


def test_an_older_folder_is_replaced_and_nothing_else(bundle, tmp_path, refused):
    out = tmp_path / "integers"
    assert exported(bundle, out, "npy") == 0
    assert exported(bundle, out, "hex") == 0
    assert not list(out.glob("*.npy"))
    (out / INDEX).write_text("{}")
    sentence = r"Output '.*integers' holds other files: it is left alone\."
    refused(bundle, out, "npy", sentence)
    (out / INDEX).unlink()
    refused(bundle, out, "npy", sentence)
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.parametrize("bits", [1, 3, 4, 5, 8, 13, 16, 32, 40])
@pytest.mark.parametrize("signed", [True, False])
def test_words_of_any_width(bits, signed, tmp_path):
    low, high = (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if signed else (0, (1 << bits) - 1)
    values = np.random.default_rng(bits).integers(low, high, (3, 5), endpoint=True)
    values[0, :2] = low, high
    path = tmp_path / "x.hex"
    write_hex(path, values, bits, signed)
    np.testing.assert_array_equal(read_hex(path), values)
    assert readmemh(path, bits, signed) == values.ravel().tolist()
    sign = "signed" if signed else "unsigned"
    assert path.read_text().splitlines()[0] == f"// shape 3x5, {bits} bits, {sign}"
    for beyond in (low - 1, high + 1):
        with pytest.raises(ValueError, match="Word"):
            write_hex(path, np.array([beyond]), bits, signed)


def test_an_empty_tensor_and_a_single_number(tmp_path):
    for values in (np.zeros((0, 4), np.int64), np.array(7)):
        write_hex(tmp_path / "x.hex", values, 4, False)
        np.testing.assert_array_equal(read_hex(tmp_path / "x.hex").ravel(), values.ravel())


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("ff\n", "its first line is no header"),
        ("// shape 1, 8 bits, odd\nff\n", "its header is not one of ours"),
        ("// shape 1, 63 bits, signed\nff\n", "its header is not one of ours"),
        ("// shape 1x?, 8 bits, signed\nff\n", "invalid literal.*"),
        ("// shape 1, 8 bits, signed\nfff\n", "its words are not of 8 bits"),
        ("// shape 1, 7 bits, signed\nff\n", "its words are not of 7 bits"),
        ("// shape 1, 8 bits, signed\nxx\n", "invalid literal.*"),
        ("// shape 2x2, 8 bits, signed\nff\n", "it has 1 words, not 4"),
    ],
)
def test_files_that_are_not_ours(text, reason, tmp_path):
    (tmp_path / "x.hex").write_text(text)
    with pytest.raises(UserError, match=rf"^'.*x\.hex' is not a hex file of integers: {reason}\.$"):
        read_hex(tmp_path / "x.hex")
    with pytest.raises(UserError, match=r"is not a hex file of integers: .*No such file"):
        read_hex(tmp_path / "gone.hex")


# ------------------------------------------------------------------------------------- refusals


def test_what_cannot_be_written(bundle, tmp_path, refused):
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder.onnx").mkdir()
    formats = "Format must be one of onnx, onnx-integer, npy, hex, not 'bin'"
    refused(bundle, tmp_path / "x", "bin", rf"{formats}\.")
    refused(bundle, tmp_path / "x", "onnx", r"An ONNX file must be named \*\.onnx, not 'x'\.")
    a_file = "must be a file, not a folder"
    refused(bundle, tmp_path / "folder.onnx", "onnx", rf"Output '.*folder\.onnx' {a_file}\.")
    in_file = tmp_path / "file" / "x.onnx"
    refused(bundle, in_file, "onnx", r"Output '.*file' must be a folder, not a file\.")
    for kind in ("npy", "hex"):
        a_folder = r"Output '.*file' must be a folder, not a file\."
        refused(bundle, tmp_path / "file", kind, a_folder)
    gone = r"Bundle '.*gone' is not a bundle: it has no manifest\.json\."
    refused(tmp_path / "gone", tmp_path / "x.onnx", "onnx", gone)


def test_a_bundle_whose_scales_are_not_its_network_s(tmp_path, refused):
    sample(tmp_path / "sample")
    for kind in ("onnx", "onnx-integer", "npy"):
        out = tmp_path / ("x.onnx" if "onnx" in kind else "x")
        refused(tmp_path / "sample", out, kind, r"Bundle '.*sample' has parts that disagree: .*\.")


@pytest.mark.parametrize("what", ["a grid that is gone", "a grid of another kind", "a shape"])
def test_a_plan_that_is_not_its_network_s(what, bundle, tmp_path, refused, monkeypatch):
    loaded = load_bundle(bundle)
    if what == "a shape":
        name = loaded.plan["streams"]["embed"]["shift"]
        loaded.scales[name] = loaded.scales[name][1:]
    else:
        grids = loaded.plan["grids"]
        gone = grids.pop("head" if what == "a grid that is gone" else "blocks.0.attn")
        if "kind" in what:
            grids["blocks.0.attn"] = grids["embed"]
        assert gone
    monkeypatch.setattr("qvit_hw.export.load_bundle", lambda path: loaded)
    kind = "onnx-integer" if "gone" in what else "onnx"
    sentence = r"Bundle '.*bundle' has parts that disagree: .*\."
    refused(bundle, tmp_path / "x.onnx", kind, sentence)


def test_names_that_no_file_can_have(tmp_path):
    model = fqvit_network()
    object.__setattr__(model.nodes[0], "name", "../patch_embed")
    sentence = r"^Node must have a name that can be a file's, not '\.\./patch_embed'\.$"
    with pytest.raises(UserError, match=sentence):
        write_tensors(tmp_path, model, None, "npy", {})


def test_fq_vit_s_operators_have_files_and_no_onnx(tmp_path):
    model = fqvit_network()
    assert write_tensors(tmp_path, model, None, "hex", {}) == len(list(tmp_path.glob("*.hex")))
    index = json.loads((tmp_path / INDEX).read_text())
    for entry in index["tensors"]:
        want = pack_node(model[entry["node"]])[1]
        found = next(a for n, a in want.items() if n.split("/")[-1].endswith(entry["tensor"]))
        np.testing.assert_array_equal(read_hex(tmp_path / entry["file"]), found)
    for make in (integer_onnx, lambda model: qdq_onnx(model, None)):
        with pytest.raises(UserError, match=r"^Node '.*' has no form in ONNX: 'fqvit_"):
            make(model)
