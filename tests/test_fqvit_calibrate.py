# SPDX-License-Identifier: Apache-2.0
"""``calibrate --preset fqvit``: its bundle, what reads it, and what it does not go with."""

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from golden.bundle import VERSION
from golden.vit import VitModel
from qvit_hw import calibrate, generate, simulate
from qvit_hw.bundle import Bundle, load_bundle
from qvit_hw.errors import UserError
from qvit_hw.fqvit_grids import LevelGrid, load_fqvit, pack_fqvit
from qvit_hw.fqvit_plan import calibrate_fqvit
from qvit_hw.models import LoadedModel, load_model
from qvit_hw.models.images import load_images
from qvit_hw.references import sqnr

COUNT = 16


@pytest.fixture(scope="module")
def model() -> LoadedModel:
    return load_model("digits")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("fqvit") / "b"
    assert calibrate.run(out=path, preset="fqvit", calibration=COUNT, vector_images=4) == 0
    return path


@pytest.fixture(scope="module")
def bundle(folder: Path) -> Bundle:
    return load_bundle(folder)


def test_a_bundle_of_nothing_for_hardware(folder: Path, bundle: Bundle) -> None:
    manifest = bundle.manifest
    assert (manifest["version"], manifest["preset"]) == (VERSION, "fqvit")
    assert (bundle.specs, bundle.layers) == ({}, [])
    assert manifest["images"] == {"source": "bundled", "calibration": COUNT, "vectors": 0}
    assert manifest["observers"] == {"activations": "minmax", "weights": "minmax"}
    assert [node.op for node in bundle.network.nodes].count("fqvit_softmax") == 4
    text = (folder / "manifest.json").read_text()
    assert str(folder.parent) not in text


def test_the_bundle_is_what_was_calibrated(bundle: Bundle, model: LoadedModel) -> None:
    seen = torch.tensor(load_images(None, model, COUNT, split="train")[0])
    pixels = load_images(None, model, 5, split="test")[0]
    made = calibrate_fqvit(model.network, seen, mean=model.mean)
    trace = VitModel(made.nodes, model.input_size).trace(pixels)
    again = load_fqvit(bundle.plan, bundle.scales, bundle.network)
    assert again.places == made.places
    found = bundle.network.trace(pixels)
    assert list(found) == list(trace) == list(made.grids)
    for name, codes in trace.items():
        assert np.array_equal(found[name], codes), name
        assert np.array_equal(again.values(name, codes), made.values(name, codes)), name
    assert isinstance(again.grids["blocks.0.attn"], LevelGrid)
    logits = again.values("head", bundle.network(pixels))
    assert sqnr(model.network.run(torch.tensor(pixels)), logits) > 10


def test_same_images_same_bytes(tmp_path: Path, folder: Path) -> None:
    calibrate.run(out=tmp_path / "b", preset="fqvit", calibration=COUNT, vector_images=1)
    for file in folder.iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes(), file.name


def test_it_says_how_far_it_is_from_float(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    calibrate.run(out=tmp_path / "b", preset="fqvit", calibration=4, vector_images=3)
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "b: 70 nodes for the golden model, none for hardware"
    assert said[1].startswith("output of 3 other images against float: ")
    assert float(said[1].split()[-2]) > 5


def test_there_is_nothing_to_generate_or_to_simulate(folder: Path, tmp_path: Path) -> None:
    sentence = (
        r"^Bundle 'b' has nothing for hardware: preset 'fqvit' is for the golden model alone\.$"
    )
    with pytest.raises(UserError, match=sentence):
        generate.run(bundle=folder, out=tmp_path / "o")
    with pytest.raises(UserError, match=sentence):
        simulate.run(bundle=folder, rtl=tmp_path, out=tmp_path / "o")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"affine": "shift"}, "--affine shift"),
        ({"budget": "size:6"}, "--budget"),
        ({"score": "error"}, "--score"),
        ({"weights": "gptq"}, "--weights"),
        ({"reparam": 0.5}, "--reparam"),
        ({"bias_correction": True}, "--bias-correction"),
        ({"refit": 1.0}, "--refit"),
    ],
)
def test_options_that_it_does_not_go_with(
    options: dict[str, Any], what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibrate, "load_model", lambda *_args, **_more: pytest.fail("loaded"))
    sentence = rf"^Preset 'fqvit' is FQ-ViT's own arithmetic: it does not go with {what}\.$"
    with pytest.raises(UserError, match=sentence):
        calibrate.run(out=tmp_path / "b", preset="fqvit", **options)
    assert list(tmp_path.iterdir()) == []


def test_swin_is_refused_before_any_image_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibrate, "load_images", lambda *_args, **_more: pytest.fail("read"))
    sentence = (
        r"^Preset 'fqvit' is for ViT, DeiT and DINOv2 with a class token, not for a network with "
        r"attention by windows \('layers\.0\.blocks\.0\.attn\.scores'\)\.$"
    )
    with pytest.raises(UserError, match=sentence):
        calibrate.run(out=tmp_path / "b", preset="fqvit", model="swin_s3_tiny_224")
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------------ a plan at fault


def spoil_levels(entry: dict[str, Any]) -> None:
    entry["grids"]["blocks.0.attn"]["levels"] = 16


def spoil_softmax(entry: dict[str, Any]) -> None:
    entry["grids"]["norm"] = {"levels": 17}


def spoil_names(entry: dict[str, Any]) -> None:
    del entry["grids"]["norm"]


def spoil_node(entry: dict[str, Any]) -> None:
    entry["grids"]["norn"] = entry["grids"]["norm"]


def spoil_place(entry: dict[str, Any]) -> None:
    entry["places"]["pool"] = "pond"


def spoil_scale(entry: dict[str, Any]) -> None:
    entry["grids"]["head"]["scale"] = "head/scales"


def spoil_number(entry: dict[str, Any]) -> None:
    entry["grids"]["norm"]["zero_point"] = None


def spoil_kind(entry: dict[str, Any]) -> None:
    entry["grids"] = []


@pytest.mark.parametrize(
    "spoil",
    [
        spoil_levels,
        spoil_softmax,
        spoil_names,
        spoil_node,
        spoil_place,
        spoil_scale,
        spoil_number,
        spoil_kind,
    ],
)
def test_parts_that_disagree(spoil: Any, bundle: Bundle) -> None:
    entry = copy.deepcopy(bundle.plan)
    load_fqvit(entry, bundle.scales, bundle.network)
    spoil(entry)
    with pytest.raises(UserError, match=r"^The bundle's plan is not of its network: .*\.$"):
        load_fqvit(entry, bundle.scales, bundle.network)


def test_a_plan_is_json_and_float64(bundle: Bundle) -> None:
    made = load_fqvit(bundle.plan, bundle.scales, bundle.network)
    entry, scales = pack_fqvit(made)
    assert json.loads(json.dumps(entry)) == bundle.plan
    assert {name: array.dtype for name, array in scales.items()} == dict.fromkeys(
        bundle.scales, np.dtype(np.float64)
    )
