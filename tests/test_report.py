# SPDX-License-Identifier: Apache-2.0
"""The report: green and red, page, JSON and JUnit, and what it refuses to report on."""

import json
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from report_samples import make_results
from safetensors.numpy import load_file, save_file

from qvit_hw.errors import UserError
from qvit_hw.report import run
from qvit_hw.report_page.pictures import attention_map, error_histogram, png
from qvit_hw.report_page.results import load_results

FLIPPED = "blocks.0.attn"


@pytest.fixture
def green(bundle: Path, tmp_path: Path) -> Path:
    (tmp_path / "bundle").symlink_to(bundle)
    return make_results(tmp_path / "results", bundle)


@pytest.fixture
def red(bundle: Path, tmp_path: Path) -> Path:
    (tmp_path / "bundle").symlink_to(bundle)
    return make_results(tmp_path / "results", bundle, flip=FLIPPED)


def edit(results: Path, change) -> None:
    """Apply ``change`` to the parsed results.json."""
    path = results / "results.json"
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def refused(results: Path, sentence: str, **options) -> None:
    """The report must be refused with a sentence that matches, and leave nothing behind."""
    out = results.parent / "page" / "report.html"
    with pytest.raises(UserError, match=f"^{sentence}$"):
        run(results=results, out=out, **options)
    assert not out.parent.exists() or not list(out.parent.iterdir())


class Page(HTMLParser):
    """What of a page matters here: its text, its links, and what it would load from elsewhere."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        if tag not in ("meta", "img", "input", "br", "rect", "line", "link"):
            self.open.append(tag)
        if tag == "a":
            self.links.append(attributes["href"])
        elif "src" in attributes or "href" in attributes:
            self.loaded.append(attributes.get("src") or attributes["href"])

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data):
        if "style" not in self.open and "script" not in self.open:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def test_a_green_run_says_so_everywhere(green, tmp_path):
    out = tmp_path / "page" / "report.html"
    assert run(results=green, out=out) == 0
    page = Page(out.read_text())
    assert re.search(r"\b0 mismatches in 1,559 elements\b", page.text)
    assert not page.open
    told = json.loads(out.with_suffix(".json").read_text())
    assert told["passed"] is True
    assert told["totals"]["elements"] == 2 * 17 * 24 + 2 * 17 * 17 + 5 * 33
    assert told["totals"]["mismatches"] == 0
    assert told["reasons"] == []
    assert told["notes"] == []
    suite = ET.parse(out.with_suffix(".junit.xml")).getroot()[0]
    assert suite.get("tests") == "5"
    assert suite.get("failures") == "0"
    assert not suite.findall(".//failure")


def test_the_page_needs_nothing_from_elsewhere(green, tmp_path):
    run(results=green, out=tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    assert all(source.startswith("data:") for source in Page(text).loaded)
    assert "http" not in text.replace("http-equiv", "")
    assert "@import" not in text
    assert str(tmp_path) not in text


def test_the_page_shows_every_layer_head_and_picture(green, tmp_path):
    run(results=green, out=tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    for name in ("blocks.0.norm1", "blocks.0.norm2", "blocks.0.attn", "stall_both"):
        assert f'data-name="{name}"' in text
    assert text.count('<div class="head"') == 2
    assert len(re.findall(r'data-head="\d" data-open hidden', text)) == 1
    assert text.count('<svg class="histogram"') == 3
    assert text.count('alt="Shifts of ') == 2
    assert "20.00" in Page(text).text
    assert "20.05" in Page(text).text


def test_one_flipped_bit_turns_everything_red(red, tmp_path):
    out = tmp_path / "page" / "report.html"
    assert run(results=red, out=out) == 1
    page = Page(out.read_text())
    assert "1 mismatch in 1,559 elements" in page.text
    assert f"First difference in {FLIPPED}" in page.text
    assert "row 2 column 9 beat, lane 1, 1 cycle 61" in page.text
    assert f"1 element differs between golden model and Verilog: {FLIPPED}." in page.text
    assert "total 20,011 20,010 differs" in page.text
    assert page.links == ["../results/waves/first.vcd"]
    assert (out.parent / page.links[0]).is_file()
    told = json.loads(out.with_suffix(".json").read_text())
    assert told["passed"] is False
    assert told["divergences"][0]["row"] == 2
    assert told["totals"]["mismatches"] == 1
    suite = ET.parse(out.with_suffix(".junit.xml")).getroot()[0]
    assert suite.get("failures") == "1"
    (failure,) = suite.findall(".//failure")
    assert "first at row 2, column 9, cycle 61" in failure.text
    assert "total: golden 20011, rtl 20010" in failure.text


def test_a_waveform_that_is_gone_is_no_link(red, tmp_path):
    (red / "waves" / "first.vcd").unlink()
    run(results=red, out=tmp_path / "report.html")
    page = Page((tmp_path / "report.html").read_text())
    assert page.links == []
    assert "waves/first.vcd is no longer there" in page.text


def test_outputs_that_belie_the_results_are_found(green, tmp_path):
    outputs = load_file(green / "outputs.safetensors")
    outputs[f"{FLIPPED}/rtl"][0, 0] ^= 1
    save_file(outputs, green / "outputs.safetensors")
    assert run(results=green, out=tmp_path / "report.html") == 1
    told = json.loads((tmp_path / "report.json").read_text())
    assert told["reasons"] == [
        f"The outputs of {FLIPPED} hold 1 mismatches in 578 elements, but the results say 0 in 578."
    ]
    suite = ET.parse(tmp_path / "report.junit.xml").getroot()[0]
    assert [case.get("name") for case in suite if case.find("failure") is not None] == ["verdict"]


@pytest.mark.parametrize("field", ["cycles_predicted", "latency_predicted"])
def test_a_cycle_model_that_is_off_by_one_is_red(green, tmp_path, field):
    def later(document):
        document["runs"][0][field] += 1

    edit(green, later)
    assert run(results=green, out=tmp_path / "report.html") == 1
    assert "Cycles are not what the cycle model says" in (tmp_path / "report.html").read_text()


def test_a_simulation_that_did_not_pass_is_never_green(green, tmp_path):
    edit(green, lambda document: document.update(passed=False))
    assert run(results=green, out=tmp_path / "report.html") == 1


def test_what_a_testbench_complains_of_is_red(green, tmp_path):
    edit(green, lambda document: document["runs"][3].update(fault="the status bit is not set"))
    assert run(results=green, out=tmp_path / "report.html") == 1
    told = json.loads((tmp_path / "report.json").read_text())
    assert told["reasons"] == ["stall_both: the status bit is not set"]


def test_without_the_bundle_there_are_numbers_but_no_pictures(green, tmp_path):
    (tmp_path / "bundle").unlink()
    assert run(results=green, out=tmp_path / "report.html") == 0
    text = (tmp_path / "report.html").read_text()
    assert "name it with --bundle" in text
    assert "<svg" not in text


def test_the_bundle_can_be_named(green, bundle, tmp_path):
    (tmp_path / "bundle").unlink()
    assert run(results=green, out=tmp_path / "report.html", bundle=bundle) == 0
    assert '<svg class="histogram"' in (tmp_path / "report.html").read_text()


def test_layers_that_were_not_simulated_are_named(green, tmp_path):
    edit(green, lambda document: document["runs"].pop(0))
    assert run(results=green, out=tmp_path / "report.html") == 0
    told = json.loads((tmp_path / "report.json").read_text())
    assert told["notes"] == ["1 of 3 layers were not simulated: blocks.0.norm1."]


def test_names_cannot_inject_markup(green, tmp_path):
    def rename(document):
        document["runs"][-1]["scenario"] = "<script>alert(1)</script>"
        document["bundle"]["model"] = "<b>model</b>"

    edit(green, rename)
    run(results=green, out=tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    assert "<script>alert" not in text
    assert "<b>model" not in text


def test_a_report_replaces_an_older_one(red, green_copy, tmp_path):
    run(results=red, out=tmp_path / "report.html")
    run(results=green_copy, out=tmp_path / "report.html")
    assert json.loads((tmp_path / "report.json").read_text())["passed"] is True


@pytest.fixture
def green_copy(bundle, tmp_path) -> Path:
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "bundle").symlink_to(bundle)
    return make_results(tmp_path / "more" / "results", bundle)


# ---------------------------------------------------------------------------------------- refused


def test_a_missing_folder_is_refused(tmp_path):
    refused(tmp_path / "nowhere", "Results folder '.*nowhere' does not exist.")


def test_a_folder_without_results_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", ".*empty' holds no results.json: is it simulate's --out\\?")


@pytest.mark.parametrize("text", ["", "{", '{"schema": ', "[1, 2", "\x00"])
def test_a_broken_file_is_refused(green, text):
    (green / "results.json").write_text(text)
    refused(green, "Results '.*results.json' are damaged: .*")


@pytest.mark.parametrize("text", ["[]", "{}", '{"schema": "other"}', "3"])
def test_another_schema_is_refused(green, text):
    (green / "results.json").write_text(text)
    refused(green, "'.*results.json' must be of schema 'qvit-hw/results'.")


def test_another_version_is_refused(green):
    edit(green, lambda document: document.update(version=2))
    refused(green, "'.*' must be of version 1, not 2.")


def test_no_run_is_refused(green):
    edit(green, lambda document: document.update(runs=[]))
    refused(green, "Results '.*' hold no run: nothing was compared.")


def test_no_element_is_refused(green):
    def empty(document):
        for entry in document["runs"]:
            entry["elements"] = 0

    edit(green, empty)
    refused(green, "Results '.*' compare no element.")


@pytest.mark.parametrize(
    ("field", "value", "rule"),
    [
        ("elements", "many", "int, not 'many'"),
        ("elements", True, "int, not True"),
        ("elements", None, "int, not None"),
        ("mismatches", -1, "at least 0, not -1"),
        ("mismatches", 0.0, "int, not 0.0"),
        ("op", "gelu", "one of layernorm, softmax, not 'gelu'"),
        ("layer", 4, "str or null, not 4"),
        ("seconds", "1", "int or float, not '1'"),
    ],
)
def test_a_wrong_field_is_refused(green, field, value, rule):
    edit(green, lambda document: document["runs"][1].update({field: value}))
    refused(green, f"'.*' is damaged: '{field}' of run 1 must be {re.escape(rule)}.")


@pytest.mark.parametrize("field", ["elements", "mismatches", "cycles", "lanes", "output"])
def test_a_missing_field_is_refused(green, field):
    edit(green, lambda document: document["runs"][0].pop(field))
    refused(green, f"'.*' is damaged: run 0 must have a field '{field}'.")


def test_a_divergence_without_its_place_is_refused(red):
    edit(red, lambda document: document["runs"][2]["divergence"].pop("cycle"))
    refused(red, "'.*' is damaged: the divergence of run 2 must have a field 'cycle'.")


def test_missing_outputs_are_refused(green):
    (green / "outputs.safetensors").unlink()
    refused(green, "Outputs '.*outputs.safetensors' are missing or damaged.")


def test_damaged_outputs_are_refused(green):
    (green / "outputs.safetensors").write_bytes(b"no tensors")
    refused(green, "Outputs '.*outputs.safetensors' are missing or damaged.")


def test_an_output_that_is_not_there_is_refused(green):
    save_file({"other": np.zeros((1, 1), np.int8)}, green / "outputs.safetensors")
    refused(green, "Outputs '.*' must hold 'blocks.0.attn/rtl', which is not there.")


def test_another_bundle_is_refused(green, tmp_path):
    edit(green, lambda document: document["bundle"].update(sha256="0" * 64))
    refused(green, "Bundle '.*' is not the one that was simulated: its hash differs.")


def test_a_bundle_that_is_none_is_refused(green, tmp_path):
    refused(green, "Bundle '.*nothing' is not a bundle: .*", bundle=tmp_path / "nothing")


@pytest.mark.parametrize("name", ["report", "report.pdf"])
def test_a_page_that_is_no_html_is_refused(green, tmp_path, name):
    with pytest.raises(UserError, match=rf"^The page must be named \*\.html, not '{name}'\.$"):
        run(results=green, out=tmp_path / name)


def test_a_page_below_a_file_is_refused_and_nothing_is_left(green, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"^The report cannot be written to '.*file': .*\.$"):
        run(results=green, out=tmp_path / "file" / "report.html")
    assert (tmp_path / "file").read_text() == ""


# --------------------------------------------------------------------------------------- pictures


def test_results_are_read_as_they_were_written(red):
    results = load_results(red)
    assert [run.layer for run in results.layers] == [
        "blocks.0.norm1",
        "blocks.0.norm2",
        "blocks.0.attn",
    ]
    assert [run.name for run in results.scenarios] == ["stall_both"]
    assert results.layers[2].divergence.intermediates[1].equal is False


def test_a_png_is_a_png():
    from base64 import b64decode
    from io import BytesIO

    from PIL import Image

    indices = np.arange(6, dtype=np.uint8).reshape(2, 3)
    palette = np.arange(18, dtype=np.uint8).reshape(6, 3)
    data = b64decode(png(indices, palette).removeprefix("data:image/png;base64,"))
    image = np.asarray(Image.open(BytesIO(data)).convert("RGB"))
    assert np.array_equal(image, palette[indices])


def test_a_map_marks_what_is_wrong():
    codes = np.zeros((2, 2), np.uint8)
    assert attention_map(codes, 0, 15) != attention_map(codes, 0, 15, wrong=np.eye(2, dtype=bool))


@pytest.mark.parametrize(("error", "kind"), [(0.1, "in"), (-0.45, "in"), (0.55, "out"), (-3.0, "out")])
def test_a_histogram_sets_apart_what_rounds_to_another_code(error, kind):
    picture = error_histogram(np.full(10, error))
    assert re.findall(r'rect class="(in|out)"', picture) == [kind]
