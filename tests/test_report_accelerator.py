# SPDX-License-Identifier: Apache-2.0
"""The report's section on the accelerator: green and red, and the runs that it refuses."""

import json
import re
import subprocess
import sys
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from accelerator_samples import edit, make_program, make_run
from report_samples import make_bundle, make_results
from safetensors.numpy import load_file, save_file
from test_report import Page

from qvit_hw.errors import UserError
from qvit_hw.report import run, write_report
from qvit_hw.report_page.timeline import LAYER_WIDTH, WIDTH, Bar, Stretch, unit_timeline


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(results, program, a run of it with nothing wrong)."""
    folder = tmp_path_factory.mktemp("made")
    bundle = make_bundle(folder / "bundle")
    program = make_program(folder / "program", bundle)
    return make_results(folder / "results", bundle), program, make_run(folder / "run", program)


@pytest.fixture
def told(made, tmp_path):
    """A function: status, page and JSON of the report on a run."""

    def tell(ran=made[2]):
        out = tmp_path / "page" / "report.html"
        status = run(results=made[0], run=ran, program=made[1], out=out)
        return status, out.read_text(), json.loads(out.with_suffix(".json").read_text())

    return tell


@pytest.fixture
def ran(made, tmp_path):
    """A run that a test may change."""
    return make_run(tmp_path / "run", made[1])


def suite(tmp_path):
    return ET.parse(tmp_path / "page" / "report.junit.xml").getroot()[0]


def test_a_run_that_is_right_is_green_everywhere(told, tmp_path):
    status, text, document = told()
    page, facts = Page(text), document["accelerator"]
    assert (status, document["passed"], document["reasons"]) == (0, True, [])
    assert not page.open
    assert "3 of 3 images are bit-exact; 27 tensors compared word by word, of 3 images" in page.text
    assert (facts["equal"], facts["cycles_hold"], facts["different"]) == (3, True, [])
    assert facts["images_per_second"] == pytest.approx(200e6 / facts["cycles"])
    assert sum(layer["cycles"] for layer in facts["layers"]) == facts["cycles_predicted"]
    assert [layer["name"] for layer in facts["layers"]] == [
        *("patch_embed", "blocks.0.norm1", "blocks.0.attn", "blocks.0.norm2", "blocks.0.mlp"),
        *("norm", "head"),
    ]
    case = suite(tmp_path).find("testcase[@classname='qvit-hw.accelerator']")
    assert case.get("name") == "3 images/size=16"
    assert suite(tmp_path).get("tests") == "6"
    assert not suite(tmp_path).findall(".//failure")


def test_pictures_and_largest_outputs_are_shown(told, made):
    page = Page(told()[1])
    document = json.loads((made[2] / "run.json").read_text())
    assert page.text.count("is ant float cat 2.25 ant 0.50 eel 0.12 golden") == 1
    best = int(np.argmax(document["images"][0]["golden"]))
    name, value = document["classes"][best], f"{document['images'][0]['golden'][best]:,}"
    shown = re.search(r"image-0 is ant .*? golden (\S+) (\S+) .*? Verilog (\S+) (\S+)", page.text)
    assert shown[1] == shown[3] == name
    assert shown[2] == shown[4] == value.replace("-", "−")
    assert sum(source.startswith("data:image/png") for source in page.loaded) >= 3


def test_the_page_still_needs_nothing_from_elsewhere(told, tmp_path):
    text = told()[1]
    assert all(source.startswith("data:") for source in Page(text).loaded)
    assert str(tmp_path) not in text


def test_the_timeline_names_instructions(told):
    text = told()[1]
    bars = re.findall(r'<rect x="[^>]* data-t="([^"]*)"/>', text)
    assert any(re.fullmatch(r"array: blocks\.0\.mlp\.fc1, .* cycles from [\d,]+ on", bar) for bar in bars)
    assert any(bar.startswith("LayerNorm: blocks.0.norm2, ") for bar in bars)
    assert any(bar.startswith("softmax: blocks.0.attn, head 1, ") for bar in bars)
    assert any(bar.startswith("stream: image, ") for bar in bars)


def test_an_image_that_differs_is_red_and_names_the_tensor(told, made, tmp_path):
    status, text, document = told(make_run(tmp_path / "run", made[1], flip=1))
    assert status == 1
    assert document["passed"] is False
    assert document["accelerator"]["equal"] == 2
    (different,) = document["accelerator"]["different"]
    assert different["name"] == "image-1"
    assert different["tensors"] == ["head"]
    assert re.fullmatch(r"head: row 0, column 0: golden (-?\d+), Verilog -?\d+", different["what"])
    assert document["reasons"] == [
        f"The accelerator differs from golden on 1 of 3 images: image-1, {different['what']}."
    ]
    assert different["what"] in Page(text).text
    (failure,) = suite(tmp_path).findall(".//failure")
    assert "head: row 0, column 0" in failure.text
    assert suite(tmp_path).get("failures") == "1"


def test_outputs_that_belie_the_run_are_found(told, ran):
    edit(ran, lambda document: document["images"][2]["rtl"].__setitem__(4, 1 << 20))
    status, _, document = told(ran)
    assert status == 1
    assert document["reasons"] == [
        "The accelerator differs from golden on 1 of 3 images: image-2, its outputs."
    ]


def test_an_image_that_never_came_through_is_red(told, ran):
    lost = {"rtl": None, "fault": "no interrupt after 90 cycles", "counters": {}, "equal": False}
    edit(ran, lambda document: document["images"][0].update(lost))
    status, text, document = told(ran)
    assert status == 1
    assert "image-0, no interrupt after 90 cycles." in document["reasons"][0]
    assert not Page(text).open


def test_a_run_that_says_it_failed_is_never_green(told, ran):
    edit(ran, lambda document: document.update(passed=False))
    assert told(ran)[0] == 1


@pytest.mark.parametrize(("late", "status"), [(0.008, 0), (-0.008, 0), (0.02, 1), (-0.02, 1)])
def test_cycles_must_be_within_one_per_cent(told, made, tmp_path, late, status):
    found, _, document = told(make_run(tmp_path / "run", made[1], late=late))
    assert found == status
    assert document["accelerator"]["cycles_hold"] is not bool(status)
    assert len(document["reasons"]) == status


def test_stalls_have_no_prediction(told, made, tmp_path):
    ran = make_run(tmp_path / "run", made[1], late=0.5)
    edit(ran, lambda document: document["memory"].update(seed=3, gaps=64))
    status, text, document = told(ran)
    assert (status, document["accelerator"]["cycles_hold"]) == (0, None)
    assert "without stalls" in Page(text).text


def test_without_labels_and_float_there_is_less_to_tell(told, ran):
    def forget(document):
        document["classes"] = None
        for image in document["images"]:
            image.update(label=None, float=None)

    edit(ran, forget)
    status, text, document = told(ran)
    assert (status, document["accelerator"]["top1"], document["accelerator"]["agreement"]) == (0, {}, None)
    assert "Outputs by number" in Page(text).text


def test_without_a_run_there_is_no_section_and_notes_are_told(made, tmp_path):
    out = tmp_path / "report.html"
    assert write_report(made[0], out, notes=["Node <b> cannot run."]) == 0
    page = Page(out.read_text())
    assert "The accelerator" not in page.text
    assert "Node <b> cannot run." in page.text
    assert json.loads(out.with_suffix(".json").read_text())["accelerator"] is None


def test_the_report_needs_no_torch(made, tmp_path):
    script = (
        "import sys; from pathlib import Path; from qvit_hw.report import run\n"
        "results, program, ran, out = map(Path, sys.argv[1:])\n"
        "assert run(results=results, run=ran, program=program, out=out) == 0\n"
        "assert not {'torch', 'timm', 'amaranth', 'cocotb'} & set(sys.modules)\n"
    )
    arguments = [str(path) for path in (*made, tmp_path / "report.html")]
    subprocess.run([sys.executable, "-c", script, *arguments], check=True)


def test_a_long_program_is_wide_and_small():
    layers = [Stretch("attn", f"blocks.{n}", 1000 * n, 1000 * n + 1000) for n in range(60)]
    bars = [Bar("array", 100 * n, 100 * n + 90, "a note of some words, and cycles") for n in range(600)]
    picture = unit_timeline(bars, layers, 60_000)
    assert f'width="{60 * LAYER_WIDTH}"' in picture
    assert len(picture) < 150_000
    assert f'width="{WIDTH}"' in unit_timeline(bars[:9], layers[:2], 2000)
    assert picture.count("<text") > 60


def test_no_bar_vanishes_and_no_text_is_markup():
    picture = unit_timeline([Bar("stream", 5, 5, 'a "<b>"')], [Stretch("<i>", "<u>", 0, 10**9)], 10**9)
    assert 'width="1.2"' in picture
    assert "<b>" not in picture
    assert "<i>" not in picture
    assert "<u>" not in picture


# ---------------------------------------------------------------------------------------- refused


@pytest.fixture
def refused(made, tmp_path):
    """A function: the report must be refused with a sentence that matches, and leave nothing."""

    def check(sentence, ran=made[2], program=made[1], results=made[0]):
        out = tmp_path / "page" / "report.html"
        with pytest.raises(UserError, match=f"^{sentence}$"):
            run(results=results, run=ran, program=program, out=out)
        assert not out.parent.exists()

    return check


@pytest.mark.parametrize("missing", ["ran", "program"])
def test_a_run_without_its_program_is_refused(refused, missing):
    refused("A run and its program go together: give both --run and --program.", **{missing: None})


@pytest.mark.parametrize(("field", "what"), [("program", "hash"), ("fingerprint", "fingerprint")])
def test_a_run_of_another_program_is_refused(refused, ran, field, what):
    edit(ran, lambda document: document.update({field: "0" * 16}))
    refused(f"Run '.*run.json' is of another program: its {what} differs.", ran)


def test_a_program_of_another_bundle_is_refused(refused, made, tmp_path):
    results = make_results(tmp_path / "results", made[1].parent / "bundle")
    path = results / "results.json"
    document = json.loads(path.read_text())
    document["bundle"].update(sha256="0" * 64)
    document["bundle_path"] = None
    path.write_text(json.dumps(document))
    refused("Program '.*' is of another bundle than was simulated: its hash differs.", results=results)


def test_a_folder_that_is_no_run_is_refused(refused, made, tmp_path):
    refused("Run folder '.*nowhere' does not exist.", tmp_path / "nowhere")
    refused(".* holds no run.json: is it run's --out\\?", made[1])


@pytest.mark.parametrize("text", ["", "{", "[1", "\x00"])
def test_a_broken_file_is_refused(refused, ran, text):
    (ran / "run.json").write_text(text)
    refused("Run '.*run.json' is damaged: .*", ran)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"schema": "other"}, "'.*' must be of schema 'qvit-hw/run'."),
        ({"version": 2}, "'.*' must be of version 1, not 2."),
        ({"check": "none"}, "Run '.*' compared nothing: run with --check logits or all."),
        ({"images": []}, "Run '.*' holds no image: nothing was compared."),
        ({"images": [3]}, "'.*' is damaged: run 0 must be an object."),
        ({"cycles_predicted": "many"}, "'.*' is damaged: 'cycles_predicted' of the run must be int, .*"),
    ],
)
def test_a_run_that_is_not_sound_is_refused(refused, ran, change, sentence):
    edit(ran, lambda document: document.update(change))
    refused(sentence, ran)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"golden": [1]}, "'golden' of run 1 must be 5 numbers"),
        ({"rtl": ["a"] * 5}, "'rtl' of run 1 must be 5 numbers"),
        ({"seconds": -1}, "'seconds' of run 1 must be at least 0, not -1"),
        ({"counters": {"cycles": 5}}, "run 1 must have a field 'array_busy'"),
        ({"divergence": {"tensor": "head"}}, "the divergence of run 1 must have a field 'row'"),
    ],
)
def test_an_image_that_is_not_sound_is_refused(refused, ran, change, sentence):
    edit(ran, lambda document: document["images"][1].update(change))
    refused(f"'.*' is damaged: {sentence}.", ran)


def test_images_that_are_not_the_run_s_are_refused(refused, ran):
    file = ran / "images.safetensors"
    save_file({"7": load_file(file)["0"]}, file)
    refused("Images '.*' are not those of the run.", ran)
    file.unlink()
    refused("Images '.*' are missing or damaged.", ran)
