# SPDX-License-Identifier: Apache-2.0
"""``evaluate`` on a bundle of the preset fqvit: two models, and nothing claimed about a third."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from golden.vit import VitModel
from qvit_hw import calibrate
from qvit_hw.bundle import load_bundle
from qvit_hw.errors import UserError
from qvit_hw.evaluate import evaluate, run
from qvit_hw.evaluation import Evaluation
from qvit_hw.fqvit_grids import LevelGrid, load_fqvit
from qvit_hw.measuring import Subject
from qvit_hw.models import load_model
from qvit_hw.models.labelled import load_labelled
from qvit_hw.references import sqnr

COUNT = 24

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("fqvit") / "b"
    assert calibrate.run(out=path, preset="fqvit", calibration=16, vector_images=1) == 0
    return path


@pytest.fixture(scope="module")
def found(bundle: Path) -> Evaluation:
    return evaluate(bundle, "digits", limit=COUNT, tensors=1)


def test_two_models_are_compared(found: Evaluation, bundle: Path) -> None:
    assert found.models == ("float", "golden")
    assert [accuracy.model for accuracy in found.accuracies] == ["float", "golden"]
    (pair,) = found.agreements
    (difference,) = found.differences
    assert (pair.model, pair.against) == (difference.model, difference.against) == ("golden", "float")
    assert found.holds is None
    assert (found.sensitivity, found.apart) == (None, ())
    model = load_model("digits")
    data = load_labelled("digits", model, COUNT)
    pixels = data.images(range(COUNT))
    golden = VitModel.from_bundle(bundle)(pixels)
    assert found.of("golden").top1.count == int((golden.argmax(1) == data.labels).sum())
    packed = load_bundle(bundle)
    made = load_fqvit(packed.plan, packed.scales, packed.network)
    exact = model.network.run(torch.tensor(pixels)).double().numpy()
    assert pair.sqnr_db == pytest.approx(sqnr(exact, made.values("head", golden)), abs=1e-3)


def test_every_tensor_is_compared_with_float_alone(found: Evaluation) -> None:
    network = load_model("digits").network
    assert [tensor.name for tensor in found.tensors] == [node.name for node in network]
    for tensor in found.tensors:
        assert tensor.sqnr_db is not None
        assert tensor.sqnr_db > 5, tensor.name
        assert tensor.cosine is not None
        assert tensor.cosine > 0.9, tensor.name
        told = (tensor.sqnr_calibrated_db, tensor.cosine_calibrated, tensor.agreement, tensor.ties)
        assert told == (None,) * 4
        assert tensor.operator_agreement is None


def test_the_page_says_what_there_is_not(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = {"bundle": bundle, "data": "digits", "limit": 3, "tensors": 1, "timing": False}
    assert run(**given, out=tmp_path / "page") == 0
    page = (tmp_path / "page" / "evaluation.html").read_text()
    note = "there is no calibrated model, no comparison with its codes, and no trial of single"
    assert "Two models" in page
    assert note in page
    for absent in ("Three models", "code by code", "Where error enters", "calibrated dB"):
        assert absent not in page
    told = json.loads((tmp_path / "page" / "evaluation.json").read_text())
    assert told["holds"] is None
    assert {tensor["agreement"] for tensor in told["tensors"]} == {None}
    said = capsys.readouterr().out
    assert note in said
    assert "codes equal" not in said


def test_quantisers_cannot_be_tried(bundle: Path, tmp_path: Path) -> None:
    sentence = r"^Quantisers are tried in the calibrated model, which this bundle lacks\.$"
    with pytest.raises(UserError, match=sentence):
        run(bundle=bundle, data="digits", limit=2, sensitivity=1, out=tmp_path / "page")
    assert list(tmp_path.iterdir()) == []


def test_other_weights_and_other_models_are_refused(bundle: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    state = load_file(Path(calibrate.__file__).parent / "models" / "digits.safetensors")
    mixed = {name: rng.permutation(a.ravel()).reshape(a.shape) for name, a in state.items()}
    save_file(mixed, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match=r"^Bundle '.*' was made of other weights \("):
        evaluate(bundle, "digits", limit=2, checkpoint=tmp_path / "other.safetensors")
    shutil.copytree(bundle, tmp_path / "bad")
    manifest = json.loads((tmp_path / "bad" / "manifest.json").read_text())
    manifest["plan"]["places"].pop("norm")
    (tmp_path / "bad" / "manifest.json").write_text(json.dumps(manifest))
    sentence = r"^Bundle '.*bad' is not of this model: it was made of 'digits'\.$"
    with pytest.raises(UserError, match=sentence):
        evaluate(tmp_path / "bad", "digits", limit=2)


def test_a_layer_without_a_scale_is_told(bundle: Path) -> None:
    subject = Subject.load(load_bundle(bundle), checkpoint=None, pretrained=False)
    assert subject.fqvit is not None
    spec = subject.golden["blocks.0.attn"].spec
    spoiled = replace(subject.fqvit, grids=subject.fqvit.grids | {"head": LevelGrid(spec=spec)})
    sentence = r"^The bundle's plan is not of its network: 'head' has no scale\.$"
    with pytest.raises(UserError, match=sentence):
        list(spoiled.rounded(subject.network))
