# SPDX-License-Identifier: Apache-2.0
"""Bundles: what is written is read back, and every fault gets its own sentence."""

import errno
import hashlib
import json
import os
import re

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from golden.layernorm import LayerNormParams, LayerNormSpec, layernorm
from golden.softmax import SoftmaxParams, SoftmaxSpec, softmax
from qvit_hw.bundle import LayerData, check_target, load_bundle, write_bundle
from qvit_hw.errors import UserError

ROWS, CHANNELS, TOKENS = 6, 12, 5


def sample(out, *, in_bits=8, out_bits=8, seed=0):
    rng = np.random.default_rng(seed)
    specs = {
        "layernorm": LayerNormSpec(max_channels=64, in_bits=in_bits, out_bits=out_bits),
        "softmax": SoftmaxSpec(max_tokens=64),
    }
    params = LayerNormParams(
        zero_point=3,
        eps=70,
        point=12,
        shift=rng.integers(0, 4, CHANNELS),
        gain=rng.integers(-(1 << 15), 1 << 15, CHANNELS),
        offset=rng.integers(-(1 << 20), 1 << 20, CHANNELS),
    )
    codes = rng.integers(-100, 100, (ROWS, CHANNELS))
    scores = rng.integers(-2048, 2048, (2 * TOKENS, TOKENS))
    layers = [
        LayerData(
            name="a.norm",
            op="layernorm",
            params=params,
            input=codes,
            golden=layernorm(codes, specs["layernorm"], params),
            reference=rng.normal(size=codes.shape),
            scale={"input": 0.25, "output": 0.5},
            metrics={"equal": 1.0, "max_difference": 0},
            folded={"scale": np.ones(CHANNELS), "rest": np.zeros(CHANNELS)},
        ),
        LayerData(
            name="a.attn",
            op="softmax",
            params=SoftmaxParams(frac=3),
            input=scores,
            golden=softmax(scores, specs["softmax"], SoftmaxParams(frac=3)),
            reference=rng.random(scores.shape),
            scale={"input": 0.125},
            metrics={"equal": 1.0},
            extra={"heads": 1, "tokens": TOKENS},
        ),
    ]
    write_bundle(
        out,
        model={"name": "sample", "source": "none", "input_size": [1, 8, 8]},
        preset="w8a8p4",
        observers={"activations": "minmax"},
        images={"source": "none", "calibration": 1, "vectors": 1},
        specs=specs,
        layers=layers,
    )
    return specs, layers


@pytest.mark.parametrize(("in_bits", "out_bits"), [(8, 8), (10, 12)])
def test_round_trip(tmp_path, in_bits, out_bits):
    specs, layers = sample(tmp_path / "b", in_bits=in_bits, out_bits=out_bits)
    bundle = load_bundle(tmp_path / "b")
    assert bundle.specs == specs
    assert [(layer.name, layer.op) for layer in bundle.layers] == [
        ("a.norm", "layernorm"),
        ("a.attn", "softmax"),
    ]
    for read, written in zip(bundle.layers, layers, strict=True):
        assert np.array_equal(read.input(), written.input)
        assert np.array_equal(read.golden(), written.golden)
        assert np.array_equal(read.float(), written.reference.astype(np.float32))
        assert read.params.words(read.spec) == written.params.words(specs[read.op])
        assert read.entry["metrics"] == written.metrics
    norm, attention = bundle.layers
    assert norm.input().dtype == (np.int8 if in_bits == 8 else np.int16)
    assert norm.golden().dtype == (np.int8 if out_bits == 8 else np.int16)
    assert attention.input().dtype == np.int16
    assert attention.golden().dtype == np.uint8
    assert (attention.entry["heads"], attention.entry["tokens"]) == (1, TOKENS)
    assert bundle.layer("a.attn") is attention
    with pytest.raises(UserError, match=r"^Bundle 'b' has no layer 'c'\.$"):
        bundle.layer("c")
    assert np.array_equal(layernorm(norm.input(), norm.spec, norm.params), norm.golden())


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

    monkeypatch.setattr("qvit_hw.bundle.save", full)
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


@pytest.mark.parametrize("version", [2, 0, "1", None, True])
def test_version(folder, version):
    edit(folder, lambda manifest: manifest.update(version=version))
    fails(folder, rf"must have version 1, not {version!r}")


@pytest.mark.parametrize(
    "key", ["model", "preset", "observers", "images", "files", "tensors", "specs", "layers"]
)
def test_manifest_lacks_an_entry(folder, key):
    edit(folder, lambda manifest: manifest.pop(key))
    fails(folder, rf"has no valid '{key}' in its manifest")


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "a\\b", "..", "", "C:x"])
def test_path_traversal(folder, name):
    edit(folder, lambda manifest: manifest["files"].update({name: "0"}))
    fails(folder, rf"names a file outside its folder: {re.escape(repr(name))}")


def test_files(tmp_path, folder):
    name = "vectors.safetensors"
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    fails(folder, rf"has a wrong hash: '{name}' is not the file that was written")
    (folder / name).unlink()
    fails(folder, rf"lacks the file '{name}'")
    (tmp_path / "elsewhere").write_bytes(content)
    (folder / name).symlink_to(tmp_path / "elsewhere")
    fails(folder, rf"lacks the file '{name}'")
    (folder / name).unlink()
    (folder / name).write_bytes(b"junk")
    digest = hashlib.sha256(b"junk").hexdigest()
    edit(folder, lambda manifest: manifest["files"].update({name: digest}))
    fails(folder, rf"has a damaged file '{name}': it is not safetensors")


def test_tensors(folder):
    name = "a.norm/shift"
    edit(folder, lambda manifest: manifest["tensors"][name].update(sha256="0"))
    fails(folder, rf"has a wrong hash: tensor '{name}' is not the one that was written")
    edit(folder, lambda manifest: manifest["tensors"][name].update(shape=[1, CHANNELS]))
    fails(folder, rf"has a wrong shape: tensor '{name}' is \[{CHANNELS}\]")
    edit(folder, lambda manifest: manifest["tensors"][name].update(dtype="int64"))
    fails(folder, rf"has a wrong dtype: tensor '{name}' is uint8")
    edit(folder, lambda manifest: manifest["tensors"].pop(name))
    fails(folder, rf"holds a tensor that its manifest does not name: '{name}'")
    edit(folder, lambda manifest: manifest["tensors"].update({"ghost": {}}))
    fails(folder, r"lacks the tensor 'ghost'")


def test_a_tensor_in_two_files(folder):
    rewrite(folder, "tensors.safetensors", lambda t: t.update({"a.attn/input": np.zeros(1)}))
    fails(folder, r"holds the tensor 'a\.attn/input' twice")


@pytest.mark.parametrize("name", ["a.norm/gain", "a.norm/golden"])
def test_missing_tensor(folder, name):
    file = "tensors.safetensors" if name.endswith("gain") else "vectors.safetensors"
    rewrite(folder, file, lambda tensors: tensors.pop(name))
    fails(folder, rf"lacks the tensor '{name}'")


@pytest.mark.parametrize("name", ["a.norm/offset", "a.attn/input", "a.attn/float"])
def test_wrong_dtype_with_right_hashes(folder, name):
    file = "tensors.safetensors" if name.endswith("offset") else "vectors.safetensors"
    was = {"offset": "int32", "input": "int16", "float": "float32"}[name.split("/")[1]]
    rewrite(folder, file, lambda tensors: tensors.update({name: tensors[name].astype(np.float64)}))
    fails(folder, rf"has a wrong dtype: tensor '{name}' must be {was}, not float64")


def put(name, index, value):
    def change(tensors):
        tensors[name] = tensors[name].copy()
        tensors[name][index] = value

    return change


def test_shift_out_of_range(folder):
    rewrite(folder, "tensors.safetensors", put("a.norm/shift", 4, 4))
    fails(
        folder,
        r"has invalid parameters in its layer 'a\.norm': PTF shift must be from 0 to 3, not 4",
    )


def test_parameter_of_another_length(folder):
    rewrite(
        folder,
        "tensors.safetensors",
        lambda tensors: tensors.update({"a.norm/gain": tensors["a.norm/gain"][:-1]}),
    )
    fails(
        folder,
        r"has invalid parameters in its layer 'a\.norm': Gain must have shape \(12,\), not \(11,\)",
    )


def test_scalars_out_of_range(folder):
    edit(folder, lambda manifest: manifest["layers"][1]["params"].update(frac=5))
    fails(
        folder,
        r"has invalid parameters in its layer 'a\.attn': "
        r"Score fraction bits must be from 1 to 4, not 5",
    )
    edit(folder, lambda manifest: manifest["layers"][1]["params"].update(frac=3.0))
    fails(folder, r"has no valid 'frac' in its layer 'a\.attn'")
    edit(folder, lambda manifest: manifest["layers"][0]["params"].update(zero_point=128))
    fails(
        folder,
        r"has invalid parameters in its layer 'a\.norm': "
        r"Zero point must be from -128 to 127, not 128",
    )


def test_specs(folder):
    edit(folder, lambda manifest: manifest["specs"]["softmax"].update(score_bits=17))
    fails(folder, r"has an invalid spec of softmax: Score width must be from 8 to 16, not 17")
    edit(folder, lambda manifest: manifest["specs"]["softmax"].update(colour=1))
    fails(folder, r"has an invalid spec of softmax: .*unexpected keyword argument 'colour'")
    edit(folder, lambda manifest: manifest["specs"].update(gelu={}))
    edit(folder, lambda manifest: manifest["specs"].pop("softmax"))
    fails(folder, r"has an unknown operator 'gelu'")


def test_layers(folder):
    edit(folder, lambda manifest: manifest["layers"].append(manifest["layers"][0]))
    fails(folder, r"names a layer twice")
    edit(folder, lambda manifest: manifest["layers"][0].update(op="gelu"))
    fails(folder, r"has an unknown operator 'gelu' in its layer 'a\.norm'")
    edit(folder, lambda manifest: manifest["layers"][0].pop("name"))
    fails(folder, r"has a layer without a name")


@pytest.mark.parametrize("key", ["metrics", "scale", "vectors", "params", "heads", "op"])
def test_layer_lacks_an_entry(folder, key):
    edit(folder, lambda manifest: manifest["layers"][1].pop(key))
    fails(folder, rf"has no valid '{key}' in its layer 'a\.attn'")


def test_rows_that_are_no_images(folder):
    edit(folder, lambda manifest: manifest["layers"][1].update(heads=4))
    fails(folder, r"has 10 rows in its layer 'a\.attn': not images of 4 x 5 rows")
    edit(folder, lambda manifest: manifest["layers"][1].update(heads=0))
    fails(folder, r"has 10 rows in its layer 'a\.attn': not images of 0 x 5 rows")


def test_folded_tensor_is_missing(folder):
    rewrite(folder, "vectors.safetensors", lambda tensors: tensors.pop("a.norm/folded_rest"))
    fails(folder, r"lacks the folded rest of its layer 'a\.norm'")


def nodes(value, path=()):
    """Paths of everything inside a JSON value."""
    for key in value if isinstance(value, dict) else range(len(value)):
        yield (*path, key)
        if isinstance(value[key], dict | list):
            yield from nodes(value[key], (*path, key))


@pytest.mark.parametrize("junk", [None, -1, 1e300, "", "a.norm/gain", [], [1], {}, {"a": 1}, True])
def test_no_manifest_raises_anything_but_user_error(folder, junk):
    text = (folder / "manifest.json").read_text()
    refused = 0
    paths = list(nodes(json.loads(text)))
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


def test_row_longer_than_the_spec(folder):
    edit(folder, lambda manifest: manifest["specs"]["softmax"].update(max_tokens=4))
    fails(folder, r"has rows of 5 in its layer 'a\.attn': the spec's maximum is 4")


def test_vectors(folder):
    file = "vectors.safetensors"
    rewrite(folder, file, put("a.attn/golden", (2, 2), 16))
    fails(folder, r"has golden vectors in its layer 'a\.attn' outside 0 to 15")
    rewrite(folder, file, put("a.attn/input", (2, 2), 2048))
    fails(folder, r"has input vectors in its layer 'a\.attn' outside -2048 to 2047")
    rewrite(folder, file, put("a.norm/float", (0, 0), np.nan))
    fails(folder, r"has float vectors in its layer 'a\.norm' that are not finite")
    rewrite(folder, file, lambda t: t.update({"a.norm/golden": t["a.norm/golden"][1:]}))
    fails(
        folder,
        r"has a wrong shape: golden vectors of layer 'a\.norm' must be \[6, 12\], not \[5, 12\]",
    )
    rewrite(folder, file, lambda t: t.update({"a.norm/input": t["a.norm/input"][0]}))
    fails(folder, r"has vectors of shape \[12\] in its layer 'a\.norm': they must be rows")
