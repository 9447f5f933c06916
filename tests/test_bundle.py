# SPDX-License-Identifier: Apache-2.0
"""Bundles: what is written is read back, and every fault gets its own sentence."""

import errno
import hashlib
import json
import os
import re

import numpy as np
import pytest
from bundle_samples import LAYERS, MAKE, sample
from networks import images, tiny_vit
from safetensors.numpy import load_file, save_file

from golden.layernorm import layernorm
from golden.vit import VitModel
from qvit_hw.bundle import load_bundle
from qvit_hw.bundle_writer import check_target
from qvit_hw.errors import UserError

NORM, ATTENTION = LAYERS["vit"]
NETWORK, VECTORS, SCALES = (f"{name}.safetensors" for name in ("network", "vectors", "scales"))


@pytest.mark.parametrize("which", MAKE)
def test_round_trip(tmp_path, which):
    model, layers = sample(tmp_path / "b", which)
    bundle = load_bundle(tmp_path / "b")
    assert [(layer.name, layer.op) for layer in bundle.layers] == [
        (LAYERS[which][0], "layernorm"),
        (LAYERS[which][1], "softmax"),
    ]
    for read, written in zip(bundle.layers, layers, strict=True):
        node = model[read.name]
        assert np.array_equal(read.input(), written.input)
        assert np.array_equal(read.golden(), written.golden)
        assert np.array_equal(read.float(), written.reference.astype(np.float32))
        assert read.spec == node.spec == bundle.specs[node.op]
        assert read.params.words(read.spec) == node.params.words(node.spec)
        assert read.entry["metrics"] == written.metrics
    norm, attention = bundle.layers
    assert norm.input().dtype == (np.int16 if which == "vit" else np.int8)
    assert norm.golden().dtype == np.int8
    assert attention.input().dtype == np.int16
    assert attention.golden().dtype == np.uint8
    heads, tokens = model.flows[attention.name].shape[-3:-1]
    assert (attention.entry["heads"], attention.entry["tokens"]) == (heads, tokens)
    assert bundle.layer(attention.name) is attention
    with pytest.raises(UserError, match=r"^Bundle 'b' has no layer 'c'\.$"):
        bundle.layer("c")
    assert np.array_equal(layernorm(norm.input(), norm.spec, norm.params), norm.golden())


@pytest.mark.parametrize("which", MAKE)
def test_network_and_plan(tmp_path, which):
    model, _ = sample(tmp_path / "b", which)
    bundle = load_bundle(tmp_path / "b")
    pixels = images(model)
    for read in (bundle.network, VitModel.from_bundle(tmp_path / "b")):
        assert read.input_size == model.input_size
        found, expected = read.trace(pixels), model.trace(pixels)
        assert list(found) == list(expected)
        assert all(np.array_equal(found[name], expected[name]) for name in expected)
    assert bundle.plan == {"grids": {"embed": {"scale": 0.125, "bits": 16}}}
    assert {name: array.tolist() for name, array in bundle.scales.items()} == {
        "head/scale": [0.5, 0.75, 1.0, 1.25, 1.5],
        "head/rest": 0.25,
    }


def test_a_writer_is_told_what_no_bundle_can_hold(tmp_path):
    nodes = tiny_vit().nodes
    with pytest.raises(ValueError, match=r"^Node 'head': Input must come before it, not 'pool'$"):
        sample(tmp_path / "b", nodes=[*nodes[:-2], nodes[-1]])
    with pytest.raises(ValueError, match=r"^Tensors must have .* names, not 'norm/gain' twice$"):
        sample(tmp_path / "b", scales={"norm/gain": 1.0})
    with pytest.raises(ValueError, match=r"^Out of range float values are not JSON compliant"):
        sample(tmp_path / "b", plan={"scale": float("nan")})
    assert list(tmp_path.iterdir()) == []


def contents(folder):
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


def test_same_content_same_bytes(tmp_path):
    sample(tmp_path / "one")
    sample(tmp_path / "two")
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert load_bundle(tmp_path / "one").sha256 == load_bundle(tmp_path / "two").sha256
    sample(tmp_path / "two", seed=1)
    assert load_bundle(tmp_path / "one").sha256 != load_bundle(tmp_path / "two").sha256


def test_replaces_a_bundle_and_an_empty_folder_and_makes_parents(tmp_path):
    (tmp_path / "b").mkdir()
    sample(tmp_path / "b")
    sample(tmp_path / "b", seed=1)
    sample(tmp_path / "c" / "d" / "e")
    load_bundle(tmp_path / "b")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b", "c"]


def test_leaves_other_folders_alone(tmp_path):
    kept = tmp_path / "thesis"
    kept.mkdir()
    (kept / "chapter.tex").write_text("")
    message = rf"^Output {re.escape(repr(str(kept)))} holds other files and no bundle: it is left alone\.$"
    for manifest in (None, "[]", "{", '{"schema": "other"}'):
        if manifest is not None:
            (kept / "manifest.json").write_text(manifest)
        with pytest.raises(UserError, match=message):
            sample(kept)
    assert (kept / "chapter.tex").exists()
    file = kept / "chapter.tex"
    with pytest.raises(UserError, match=r"^Output '.*' must be a folder, not a file\.$"):
        check_target(file)
    with pytest.raises(UserError, match=r"^Output '.*' cannot be made: '.*' is not a folder\.$"):
        check_target(file / "b")


def test_failure_leaves_nothing_behind(tmp_path, monkeypatch):
    sample(tmp_path / "b")
    before = contents(tmp_path / "b")

    def full(*_args):
        raise OSError(errno.ENOSPC, "disk full")

    monkeypatch.setattr("qvit_hw.bundle_writer.save", full)
    for name in ("b", "c", "deep/d"):
        with pytest.raises(UserError, match=r"^Output '.*' cannot be written: disk full\.$"):
            sample(tmp_path / name, seed=1)
    assert [path.name for path in tmp_path.iterdir()] == ["b"]
    assert contents(tmp_path / "b") == before


def test_files_follow_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        sample(tmp_path / "b")
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "b").iterdir()}
    assert set(modes.values()) == {0o640}, modes


# ---------------------------------------------------------------------------------------- faults


def rewrite(folder, file, change):
    """Change a safetensors file and every hash that follows from it, as a forger would."""
    manifest = json.loads((folder / "manifest.json").read_text())
    tensors = load_file(folder / file)
    change(tensors)
    save_file(tensors, folder / file)
    for name in list(manifest["tensors"]):
        entry = manifest["tensors"][name]
        if entry["file"] != file:
            continue
        if name not in tensors:
            del manifest["tensors"][name]
            continue
        entry["dtype"], entry["shape"] = str(tensors[name].dtype), list(tensors[name].shape)
        entry["sha256"] = hashlib.sha256(tensors[name].tobytes()).hexdigest()
    manifest["files"][file] = hashlib.sha256((folder / file).read_bytes()).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(manifest))


def edit(folder, change):
    """Change the manifest."""
    manifest = json.loads((folder / "manifest.json").read_text())
    change(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))


def fails(folder, fault):
    message = rf"^Bundle {re.escape(repr(str(folder)))} {fault}\.$"
    with pytest.raises(UserError, match=message):
        load_bundle(folder)


@pytest.fixture
def folder(tmp_path):
    sample(tmp_path / "b")
    return tmp_path / "b"


def test_not_a_bundle(tmp_path, folder):
    fails(tmp_path / "absent", r"is not a bundle: it has no manifest\.json")
    fails(tmp_path, r"is not a bundle: it has no manifest\.json")
    edit(folder, lambda manifest: manifest.update(schema="qvit-hw/rtl"))
    fails(folder, r"is not a bundle: its manifest\.json does not say 'qvit-hw/bundle'")


@pytest.mark.parametrize("text", ["", "{", "\xff", '{"a": NaN}', "[" * 100_000])
def test_broken_json(folder, text):
    (folder / "manifest.json").write_text(text, encoding="latin-1")
    fails(folder, r"has a broken manifest\.json: it is not JSON")


@pytest.mark.parametrize("version", [1, 3, "2", None, True])
def test_version(folder, version):
    edit(folder, lambda manifest: manifest.update(version=version))
    fails(folder, rf"must have version 2, not {version!r}")


@pytest.mark.parametrize(
    "key", ["model", "preset", "observers", "images", "files", "tensors", "specs", "layers", "plan"]
)
def test_manifest_lacks_an_entry(folder, key):
    edit(folder, lambda manifest: manifest.pop(key))
    fails(folder, rf"has no valid '{key}' in its manifest")


def test_files(tmp_path, folder):
    """What tests/test_golden_bundle.py tries one by one comes as a UserError here."""
    content = (folder / VECTORS).read_bytes()
    (folder / VECTORS).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    fails(folder, rf"has a wrong hash: '{VECTORS}' is not the file that was written")
    (folder / VECTORS).unlink()
    fails(folder, rf"lacks the file '{VECTORS}'")
    edit(folder, lambda manifest: manifest["files"].update({"../secret": "0"}))
    edit(folder, lambda manifest: manifest["files"].pop(VECTORS))
    fails(folder, r"names a file outside its folder: '\.\./secret'")


def test_tensors(folder):
    edit(folder, lambda manifest: manifest["tensors"][f"{NORM}/shift"].update(sha256="0"))
    fails(folder, rf"has a wrong hash: tensor '{NORM}/shift' is not the one that was written")
    edit(folder, lambda manifest: manifest["tensors"].update({"ghost": {}}))
    edit(folder, lambda manifest: manifest["tensors"].pop(f"{NORM}/shift"))
    fails(folder, r"lacks the tensor 'ghost'")


def test_a_tensor_in_two_files(folder):
    rewrite(folder, NETWORK, lambda t: t.update({f"{ATTENTION}/input": np.zeros(1)}))
    fails(folder, rf"holds the tensor '{ATTENTION}/input' twice")


@pytest.mark.parametrize("name", [f"{NORM}/golden", f"{ATTENTION}/input"])
def test_missing_tensor(folder, name):
    rewrite(folder, VECTORS, lambda tensors: tensors.pop(name))
    fails(folder, rf"lacks the tensor '{name}'")


@pytest.mark.parametrize("role", ["input", "golden", "float"])
def test_wrong_dtype_with_right_hashes(folder, role):
    name, was = f"{ATTENTION}/{role}", {"input": "int16", "golden": "uint8", "float": "float32"}
    rewrite(folder, VECTORS, lambda t: t.update({name: t[name].astype(np.float64)}))
    fails(folder, rf"has a wrong dtype: tensor '{name}' must be {was[role]}, not float64")


def put(name, index, value):
    def change(tensors):
        tensors[name] = tensors[name].copy()
        tensors[name][index] = value

    return change


def test_network(folder):
    rewrite(folder, NETWORK, put(f"{NORM}/shift", 4, 4))
    sentence = rf"has an invalid network: Node '{NORM}': "
    fails(folder, sentence + "PTF shift must be from 0 to 3, not 4")
    rewrite(folder, NETWORK, lambda t: t.update({f"{NORM}/gain": t[f"{NORM}/gain"][:-1]}))
    rewrite(folder, NETWORK, put(f"{NORM}/shift", 4, 0))
    fails(folder, sentence + r"Gain must have shape \(12,\), not \(11,\)")
    rewrite(folder, NETWORK, lambda tensors: tensors.pop(f"{NORM}/gain"))
    fails(folder, sentence + f"gain must be the name of a tensor, not '{NORM}/gain'")
    edit(folder, lambda manifest: manifest.pop("network"))
    fails(folder, "has an invalid network: Network must have input_size, output and nodes")


def test_specs(folder):
    edit(folder, lambda manifest: manifest["specs"]["softmax"].update(score_bits=17))
    fails(folder, r"has an invalid spec of softmax: Score width must be from 8 to 16, not 17")
    edit(folder, lambda manifest: manifest["specs"]["softmax"].update(colour=1))
    fails(folder, r"has an invalid spec of softmax: SoftmaxSpec must have .*, not \[.*'colour'.*\]")
    edit(folder, lambda manifest: manifest["specs"].update(gelu={}))
    edit(folder, lambda manifest: manifest["specs"].pop("softmax"))
    fails(folder, r"has an unknown operator 'gelu'")


def test_a_unit_with_another_spec_than_the_nodes(folder):
    edit(folder, lambda manifest: manifest["specs"]["softmax"].update(max_tokens=64))
    sentence = rf"has parts that disagree: node '{ATTENTION}' has another spec of softmax"
    fails(folder, sentence)
    edit(folder, lambda manifest: manifest["specs"].pop("softmax"))
    fails(folder, sentence)


def test_layers(folder):
    def change(**entries):
        edit(folder, lambda manifest: manifest["layers"][0].update(entries))

    edit(folder, lambda manifest: manifest["layers"].append(manifest["layers"][0]))
    fails(folder, r"names a layer twice")
    change(op="gelu")
    fails(folder, rf"has an unknown operator 'gelu' in its layer '{NORM}'")
    change(op="softmax")
    fails(folder, rf"has parts that disagree: layer '{NORM}' is no softmax of its network")
    change(op="layernorm", name="neck")
    fails(folder, r"has parts that disagree: layer 'neck' is no layernorm of its network")
    edit(folder, lambda manifest: manifest["layers"][0].pop("name"))
    fails(folder, r"has a layer without a name")


@pytest.mark.parametrize("key", ["metrics", "scale", "vectors", "heads", "op"])
def test_layer_lacks_an_entry(folder, key):
    edit(folder, lambda manifest: manifest["layers"][1].pop(key))
    fails(folder, rf"has no valid '{key}' in its layer '{ATTENTION}'")


def test_rows_that_are_no_images(folder):
    def cut(tensors):
        for role in ("input", "golden", "float"):
            tensors[f"{ATTENTION}/{role}"] = tensors[f"{ATTENTION}/{role}"][1:]

    rewrite(folder, VECTORS, cut)
    fails(folder, rf"has 47 rows in its layer '{ATTENTION}': not images of 2 x 8 rows")
    edit(folder, lambda manifest: manifest["layers"][1].update(heads=4))
    fails(
        folder,
        rf"has parts that disagree: layer '{ATTENTION}' has 4 x 8 rows an image, its network 2 x 8",
    )


def test_folded_tensor_is_missing(folder):
    rewrite(folder, VECTORS, lambda tensors: tensors.pop(f"{NORM}/folded_rest"))
    fails(folder, rf"lacks the folded rest of its layer '{NORM}'")


@pytest.mark.parametrize("value", [np.ones(5, np.float32), np.array([1.0, np.nan])])
def test_scales(folder, value):
    rewrite(folder, SCALES, lambda tensors: tensors.update({"head/scale": value}))
    fails(folder, r"has scales that are not finite float64: 'head/scale'")


def nodes(value, path=()):
    """Paths of everything inside a JSON value."""
    for key in value if isinstance(value, dict) else range(len(value)):
        yield (*path, key)
        if isinstance(value[key], dict | list):
            yield from nodes(value[key], (*path, key))


@pytest.mark.parametrize("junk", [None, -1, 1e300, "", f"{NORM}/gain", [], [1], {}, {"a": 1}, True])
def test_no_manifest_raises_anything_but_user_error(folder, junk):
    """The network's and the files' entries: tests/test_bundle_fuzz.py."""
    text = (folder / "manifest.json").read_text()
    refused = 0
    done = ("network", "files", "tensors")
    paths = [path for path in nodes(json.loads(text)) if path[0] not in done or len(path) == 1]
    for path in paths:
        manifest = json.loads(text)
        place = manifest
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = junk
        (folder / "manifest.json").write_text(json.dumps(manifest))
        try:
            load_bundle(folder)
        except UserError:
            refused += 1
    assert refused > len(paths) / 2


def test_vectors(folder):
    rewrite(folder, VECTORS, put(f"{ATTENTION}/golden", (2, 2), 16))
    fails(folder, rf"has golden vectors in its layer '{ATTENTION}' outside 0 to 15")
    rewrite(folder, VECTORS, put(f"{ATTENTION}/input", (2, 2), 2048))
    fails(folder, rf"has input vectors in its layer '{ATTENTION}' outside -2048 to 2047")
    rewrite(folder, VECTORS, put(f"{NORM}/float", (0, 0), np.nan))
    fails(folder, rf"has float vectors in its layer '{NORM}' that are not finite")
    rewrite(folder, VECTORS, lambda t: t.update({f"{NORM}/golden": t[f"{NORM}/golden"][1:]}))
    fails(
        folder,
        rf"has a wrong shape: golden vectors of layer '{NORM}' must be \[24, 12\], not \[23, 12\]",
    )
    rewrite(
        folder, VECTORS, lambda t: t.update({f"{NORM}/input": t[f"{NORM}/input"][:, 1:].copy()})
    )
    fails(
        folder,
        rf"has a wrong shape: input vectors of layer '{NORM}' must be \[24, 12\], not \[24, 11\]",
    )
    rewrite(folder, VECTORS, lambda t: t.update({f"{NORM}/input": t[f"{NORM}/input"][0]}))
    fails(folder, rf"has vectors of shape \[11\] in its layer '{NORM}': they must be rows")
