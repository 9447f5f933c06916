# SPDX-License-Identifier: Apache-2.0
"""What generate writes: all of it or nothing, and all of it true."""

import hashlib
import json
import re
from dataclasses import asdict

import pytest
from report_samples import LAYERNORM, SOFTMAX, make_bundle

from golden.gelu import GeluSpec
from golden.layernorm import LayerNormSpec, layernorm_pipeline
from golden.requant import RequantSpec
from golden.residual import ResidualSpec
from golden.softmax import SoftmaxSpec, softmax_pipeline
from qvit_hw import generate
from qvit_hw.errors import UserError

FILES = {
    "manifest.json",
    "qvit_layernorm.core",
    "qvit_layernorm.v",
    "qvit_softmax.core",
    "qvit_softmax.v",
    "registers.md",
    "waivers.vlt",
}


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    folder = tmp_path_factory.mktemp("generate") / "new" / "rtl"
    assert generate.run(out=folder) == 0
    return folder


@pytest.fixture(scope="module")
def units(out):
    manifest = json.loads((out / "manifest.json").read_text())
    assert (manifest["schema"], manifest["version"]) == ("qvit-hw/rtl", 1)
    assert set(manifest["generator"]) == {"qvit_hw", "amaranth", "yosys"}
    return {unit["op"]: unit for unit in manifest["units"]}


def test_the_files(out, units):
    assert {path.name for path in out.iterdir()} == FILES
    for op, unit in units.items():
        assert (unit["top"], unit["file"], unit["lanes"]) == (f"qvit_{op}", f"qvit_{op}.v", 8)
        assert unit["sha256"] == hashlib.sha256((out / unit["file"]).read_bytes()).hexdigest()


def test_again_gives_the_same_bytes(out, tmp_path):
    assert generate.run(out=tmp_path) == 0
    for name in FILES:
        assert (tmp_path / name).read_bytes() == (out / name).read_bytes(), name


@pytest.mark.parametrize("op", ["softmax", "layernorm"])
def test_ports_are_those_of_the_verilog(op, out, units):
    text = (out / f"qvit_{op}.v").read_text()
    top = text[text.index(f"module qvit_{op}(") :].partition("endmodule")[0]
    found = {}
    for direction, span, name in re.findall(r"(?m)^  (input|output) (?:\[(\d+):0\] )?(\w+);", top):
        found[name] = (direction, int(span or 0) + 1)
    assert found == {p["name"]: (p["direction"], p["width"]) for p in units[op]["ports"]}


def test_specs_cycles_and_widths(units):
    for op, spec, pipeline in (
        ("softmax", SoftmaxSpec(), softmax_pipeline(SoftmaxSpec(), 8)),
        ("layernorm", LayerNormSpec(), layernorm_pipeline(LayerNormSpec(), 8)),
    ):
        unit = units[op]
        assert unit["spec"] == asdict(spec)
        assert (unit["cycles"]["waits"], unit["cycles"]["drain"]) == (
            list(pipeline.waits),
            pipeline.drain,
        )
        assert unit["latency"]["197"] == pipeline.latency(197) + unit["cycles"]["adapter"]
        assert set(unit["widths"]) == set(spec.bounds)
        for name, interval in spec.bounds.items():
            assert unit["widths"][name]["bits"] == interval.bits
        offsets = [register["offset"] for register in unit["registers"]]
        assert len(set(offsets)) == len(offsets)


def test_pages(out, units):
    page = (out / "registers.md").read_text()
    for unit in units.values():
        core = (out / f"{unit['top']}.core").read_text()
        assert core.startswith("CAPI=2:\n")
        for part in (unit["file"], "waivers.vlt", f"toplevel: {unit['top']}", "mode: lint-only"):
            assert part in core
        for register in unit["registers"]:
            assert f"| 0x{register['offset']:04X}" in page
            assert f"| {register['name']} |" in page


def test_widths_of_the_parameters(out, units):
    """Wide enough for every legal value and no wider: the true ones, not the word's."""
    widths = {
        register["name"]: register["width"]
        for unit in units.values()
        for register in unit["registers"]
        if register["access"] == "WO"
    }
    spec = LayerNormSpec()
    assert widths == {
        "frac": SoftmaxSpec().frac_bits.bit_length(),
        "zero_point": spec.in_bits,
        "point": spec.max_point.bit_length(),
        "eps_low": 32,
        "eps_high": spec.eps_bits - 32,
        "commit": 0,
        "shift": spec.max_shift.bit_length(),
        "gain": spec.gain_range.bits,
        "offset": spec.bounds["offset"].bits,
    }
    page = (out / "registers.md").read_text()
    assert "| gain | WO | 16 |" in page
    assert "| commit | WO | none |" in page


def test_a_bundle_gives_its_specs(tmp_path):
    bundle = make_bundle(tmp_path / "bundle")
    assert generate.run(out=tmp_path / "rtl", bundle=bundle, lanes=3) == 0
    units = json.loads((tmp_path / "rtl" / "manifest.json").read_text())["units"]
    assert {unit["op"]: unit["spec"] for unit in units} == {
        "layernorm": asdict(LAYERNORM),
        "softmax": asdict(SOFTMAX),
    }
    assert {unit["lanes"] for unit in units} == {3}


def test_one_operator_leaves_other_files_alone(tmp_path):
    (tmp_path / "mine.v").write_text("module mine; endmodule")
    assert generate.run(out=tmp_path, op="softmax", lanes=1) == 0
    assert {path.name for path in tmp_path.iterdir()} == {
        name for name in FILES if "layernorm" not in name
    } | {"mine.v"}
    assert (tmp_path / "mine.v").read_text() == "module mine; endmodule"


def test_units_without_vectors_in_a_bundle(tmp_path):
    for op, spec, registers in (
        ("gelu", GeluSpec(), {"table": (0x4000, 8, 256)}),
        ("requant", RequantSpec(), {"zero_point": (0, 8, 1), "shift": (0x8000, 6, 4096)}),
        ("residual", ResidualSpec(), {"gain": (8, 24, 1), "out_shift": (0xC000, 2, 4096)}),
    ):
        assert generate.run(out=tmp_path / op, op=op, lanes=2) == 0
        (unit,) = json.loads((tmp_path / op / "manifest.json").read_text())["units"]
        assert (unit["op"], unit["spec"]) == (op, asdict(spec))
        told = {r["name"]: (r["offset"], r["width"], r["words"]) for r in unit["registers"]}
        assert registers.items() <= told.items()
    bundle = make_bundle(tmp_path / "bundle")
    with pytest.raises(UserError, match=r"^Operator 'gelu' is not there: found layernorm, softmax\.$"):
        generate.run(out=tmp_path / "rtl", bundle=bundle, op="gelu")


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"lanes": 0}, r"^Lanes must be from 1 to 32, not 0\.$"),
        ({"lanes": 33}, r"^Lanes must be from 1 to 32, not 33\.$"),
        ({"lanes": True}, r"^Lanes must be from 1 to 32, not True\.$"),
        (
            {"op": "mean"},
            r"^Operator must be layernorm, softmax, gelu, requant, residual or all, not 'mean'\.$",
        ),
    ],
)
def test_bad_options(options, part, tmp_path):
    with pytest.raises(UserError, match=part):
        generate.run(out=tmp_path / "rtl", **options)
    assert not (tmp_path / "rtl").exists()


def test_nothing_is_half_written(tmp_path, monkeypatch):
    done = generate.build_unit

    def fails(op, *more):
        if op == "softmax":
            raise RuntimeError("on purpose")
        return done(op, *more)

    monkeypatch.setattr(generate, "build_unit", fails)
    with pytest.raises(RuntimeError, match="on purpose"):
        generate.run(out=tmp_path / "rtl", lanes=1)
    assert not (tmp_path / "rtl").exists()


@pytest.mark.parametrize("content", ['{"mine": 1}', "[]", "{bad", ""])
def test_a_manifest_of_something_else_is_left_alone(tmp_path, content):
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(UserError, match=r"^Output '.*' holds another manifest\.json: it is left alone\.$"):
        generate.run(out=tmp_path, op="softmax", lanes=1)
    assert [path.name for path in tmp_path.iterdir()] == ["manifest.json"]
    assert (tmp_path / "manifest.json").read_text() == content


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot be made: .* is not a folder\.$"):
        generate.run(out=tmp_path / "file" / "rtl", op="softmax", lanes=1)
    with pytest.raises(UserError, match=r"must be a folder, not a file\.$"):
        generate.run(out=tmp_path / "file", op="softmax", lanes=1)
