# SPDX-License-Identifier: Apache-2.0
"""What calibrate, generate and simulate refuse: one sentence each, and nothing half-written."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from report_samples import make_results
from safetensors.numpy import load_file, save_file

from qvit_hw import cli

# -------------------------------------------------------------------------------------- calibrate


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (["--model", "resnet50"], "resnet50"),
        (["--model", "no_such_model"], "Unknown model 'no_such_model'"),
        (["--preset", "w1a1"], "Preset must be one of"),
        (["--observer", "guess"], "Observer must be one of"),
        (["--affine", "float"], "Affine must be one of"),
        (["--score", "error"], "Score chooses widths under a budget: give a --budget, too."),
        (["--score", "luck", "--budget", "size:6"], "Score must be one of error, "),
        (["--calibration", "0"], "at least 1, not 0"),
        (["--vector-images", "0"], "at least 1, not 0"),
        (["--checkpoint", "no/such.safetensors"], "does not exist"),
        (["--images", "no/such/folder"], "no/such/folder"),
    ],
)
def test_calibrate_refuses(options, part, refused, tmp_path):
    refused("calibrate", *options, "--out", tmp_path / "bundle", part=part)


def test_calibrate_refuses_a_checkpoint_that_does_not_fit(refused, tmp_path):
    save_file({"other.weight": np.zeros((2, 2), np.float32)}, tmp_path / "odd.safetensors")
    given = ["--checkpoint", tmp_path / "odd.safetensors", "--out", tmp_path / "bundle"]
    refused("calibrate", *given, part="The checkpoint does not fit 'digits'")


def test_calibrate_refuses_a_checkpoint_of_nan(refused, tmp_path):
    weights = load_file(Path(cli.__file__).parent / "models" / "digits.safetensors")
    weights["blocks.0.norm1.weight"] = np.full_like(weights["blocks.0.norm1.weight"], np.nan)
    save_file(weights, tmp_path / "nan.safetensors")
    given = ["--checkpoint", tmp_path / "nan.safetensors", "--out", tmp_path / "bundle"]
    refused("calibrate", *given, part="NaN")


def test_calibrate_refuses_a_folder_without_images(refused, tmp_path):
    (tmp_path / "photos").mkdir()
    refused(
        "calibrate", "--images", tmp_path / "photos", "--out", tmp_path / "bundle", part="photos"
    )


def test_calibrate_refuses_a_file_that_is_no_image(refused, tmp_path):
    (tmp_path / "photos").mkdir()
    Image.new("L", (8, 8)).save(tmp_path / "photos" / "a.png")
    (tmp_path / "photos" / "b.png").write_bytes(b"not a picture")
    refused(
        "calibrate", "--images", tmp_path / "photos", "--out", tmp_path / "bundle", part="b.png"
    )


def test_calibrate_leaves_a_folder_with_other_files_alone(refused, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    refused("calibrate", "--out", tmp_path / "mine", part="is left alone")


# --------------------------------------------------------------------------- generate and simulate


@pytest.mark.parametrize("lanes", ["0", "-1", "33"])
def test_generate_refuses_lanes(lanes, refused, tmp_path):
    refused("generate", "--lanes", lanes, "--out", tmp_path / "rtl", part=f"1 to 32, not {lanes}")


def test_generate_refuses_an_unknown_operator(refused, tmp_path):
    refused("generate", "--op", "mean", "--out", tmp_path / "rtl", part="mean")


def test_generate_refuses_a_file_in_the_way(refused, tmp_path):
    (tmp_path / "rtl").write_text("")
    refused("generate", "--out", tmp_path / "rtl", part="rtl")


def test_generate_refuses_a_bundle_that_is_none(refused, tmp_path):
    refused(
        "generate", "--bundle", tmp_path / "no", "--out", tmp_path / "rtl", part="is not a bundle"
    )


def spoiled(bundle: Path, out: Path, change) -> Path:
    """A copy of the bundle whose tensors or manifest were changed, its hashes put right or not."""
    out.mkdir()
    for path in bundle.iterdir():
        (out / path.name).write_bytes(path.read_bytes())
    change(out)
    return out


def drop_file(out: Path) -> None:
    (out / "network.safetensors").unlink()


def flip_byte(out: Path) -> None:
    path = out / "network.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def rename_tensor(out: Path) -> None:
    edit_manifest(out, lambda m: m["layers"][0]["vectors"].update(input="nowhere"))


def widen_dtype(out: Path) -> None:
    edit_manifest(out, lambda m: m["tensors"]["blocks.0.norm1/shift"].update(dtype="int64"))


def shift_too_far(out: Path) -> None:
    edit_manifest(out, lambda m: spec_of(m, "blocks.0.norm1").update(max_shift=1))


def row_too_long(out: Path) -> None:
    edit_manifest(out, lambda m: spec_of(m, "blocks.0.attn").update(max_tokens=8))


def other_unit(out: Path) -> None:
    edit_manifest(out, lambda m: m["specs"]["softmax"].update(max_tokens=128))


def spec_of(manifest, name: str):
    return next(node for node in manifest["network"]["nodes"] if node["name"] == name)["spec"]


def edit_manifest(out: Path, change) -> None:
    path = out / "manifest.json"
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


FAULTS = [
    (drop_file, "lacks the file 'network.safetensors'"),
    (flip_byte, "has a wrong hash"),
    (rename_tensor, "lacks the tensor 'nowhere'"),
    (widen_dtype, "has a wrong dtype"),
    (shift_too_far, "PTF shift must be from 0 to 1"),
    (row_too_long, "Row length must be at most 8, not 17"),
    (other_unit, "has parts that disagree: node 'blocks.0.attn' has another spec of softmax"),
]


@pytest.mark.parametrize(("change", "part"), FAULTS)
@pytest.mark.parametrize("command", ["generate", "simulate", "report"])
def test_a_bad_bundle_is_refused_by_every_command(
    command, change, part, bundle, rtl, refused, tmp_path
):
    bad = spoiled(bundle, tmp_path / "bad", change)
    more = {
        "generate": ["--out", tmp_path / "out"],
        "simulate": ["--rtl", rtl, "--out", tmp_path / "out"],
        "report": ["--out", tmp_path / "report.html"],
    }[command]
    if command == "report":
        more += ["--results", make_results(tmp_path / "results", bundle)]
    refused(command, "--bundle", bad, *more, part=part)


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (["--op", "gelu"], "gelu"),
        (["--simulator", "spice"], "spice"),
        (["--rows", "0"], "0"),
        (["--rows", "-3"], "-3"),
        (["--rows", "some"], "some"),
    ],
)
def test_simulate_refuses(options, part, bundle, rtl, refused, tmp_path):
    given = ["--bundle", bundle, "--rtl", rtl, "--out", tmp_path / "out"]
    refused("simulate", *given, *options, part=part)


def test_simulate_refuses_rtl_that_is_not_there(bundle, refused, tmp_path):
    given = ["--bundle", bundle, "--rtl", tmp_path / "no", "--out", tmp_path / "out"]
    refused("simulate", *given, part="no")


@pytest.mark.parametrize("simulator", ["verilator", "icarus"])
def test_without_its_tools_simulate_says_what_is_missing(
    simulator, bundle, rtl, refused, tmp_path, monkeypatch
):
    """No compiler for Verilator, no Icarus at all: neither is on an empty PATH."""
    (tmp_path / "empty").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    monkeypatch.delenv("CXX", raising=False)
    given = ["--bundle", bundle, "--rtl", rtl, "--simulator", simulator, "--out", tmp_path / "out"]
    refused("simulate", *given, part="", status=cli.MISSING_TOOL)


def test_broken_verilog_is_told_by_file_and_line(bundle, rtl, refused, tmp_path):
    edited = tmp_path / "rtl"
    shutil.copytree(rtl, edited)
    text = (edited / "qvit_softmax.v").read_text()
    (edited / "qvit_softmax.v").write_text("\nmodule oops;\n  wire = ;\nendmodule\n" + text)
    options = ["--bundle", bundle, "--rtl", edited, "--op", "softmax", "--allow-modified"]
    part = "error: qvit_softmax.v does not compile: line 3: "
    refused("simulate", *options, "--out", tmp_path / "deep" / "out", part=part)
