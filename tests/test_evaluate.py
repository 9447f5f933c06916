# SPDX-License-Identifier: Apache-2.0
"""The command ``evaluate``: results depend on images alone, time and memory, what is refused."""

import json
import shutil
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from subjects import make_bench, make_subject

from qvit_hw import calibrate, cli, evaluate, timing
from qvit_hw.bundle import load_bundle
from qvit_hw.crew import Bench, Crew, Origin
from qvit_hw.errors import UserError
from qvit_hw.evaluation import MODELS, PAIRS, document
from qvit_hw.measuring import Subject
from qvit_hw.models.digits import digits_images

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def subject() -> Subject:
    return make_subject()


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digits model at w8a8p4."""
    out = tmp_path_factory.mktemp("digits") / "bundle"
    assert calibrate.run(out=out, calibration=8) == 0
    return out


# ---------------------------------------------------------------------------------------- measuring


def test_an_evaluation_holds_together(subject):
    found = evaluate.measure(make_bench(subject), evaluate.Effort(tensors=2, sensitivity=1))
    assert found.images == 6
    assert found.traced == 2
    assert found.holds
    assert [(pair.against, pair.model) for pair in found.agreements] == list(PAIRS)
    assert [tensor.name for tensor in found.tensors] == list(subject.names)
    assert found.between("golden", "calibrated").equal == 6
    assert found.of("float").top1.total == 6
    json.dumps(document(found), allow_nan=False)


def test_an_evaluation_without_labels_has_no_accuracy(subject):
    bench = make_bench(subject, labelled=False)
    found = evaluate.measure(bench, evaluate.Effort(tensors=1, sensitivity=0))
    assert found.accuracies == found.differences == ()
    assert found.sensitivity is None
    assert found.agreements[0].same is not None


def test_an_evaluation_of_features_has_no_first_guess():
    bench = make_bench(make_subject(classes=0), labelled=False)
    found = evaluate.measure(bench, evaluate.Effort(tensors=1, sensitivity=0))
    assert found.agreements[0].same is None
    assert found.examples == ()
    assert found.agreements[0].sqnr_db > 0


@pytest.mark.parametrize(
    ("given", "size", "count"),
    [
        (None, (3, 224, 224), 4),
        (None, (3, 384, 384), 4),
        (None, (3, 112, 112), 16),
        (None, (1, 8, 8), 64),
        (0, (1, 8, 8), 0),
        (9, (3, 224, 224), 9),
    ],
)
def test_quantisers_are_tried_on_more_images_where_they_are_small(given, size, count):
    assert evaluate.Effort(sensitivity=given).images_to_try(size) == count


@pytest.mark.parametrize("batch", [1, 4, 6, 9])
def test_results_do_not_depend_on_the_batch(subject, batch):
    one = evaluate.measure(make_bench(subject), evaluate.Effort(batch=1, tensors=2, sensitivity=0))
    other = evaluate.measure(
        make_bench(subject), evaluate.Effort(batch=batch, tensors=2, sensitivity=0)
    )
    assert asdict(one) == asdict(other)


def label_of(bench: Bench, number: int) -> int:
    """What processes are given to do: the label of an image; UserError for number 3."""
    if number == 3:
        raise UserError("Image 3 must be another one.")
    return int(bench.data.labels[number])


def assert_equal(one, two) -> None:
    """To the last bit."""
    if isinstance(one, tuple | list):
        assert len(one) == len(two)
        for pair in zip(one, two, strict=True):
            assert_equal(*pair)
    else:
        assert np.array_equal(one, two)


@pytest.mark.slow
def test_processes_give_the_same_results_in_order_and_pass_faults_on(bundle):
    origin = Origin(bundle, "digits", limit=5)
    bench = Bench.load(origin)
    with Crew(bench) as alone, Crew(bench, 2, origin) as crew:
        assert list(crew.map(label_of, [4, 0, 2])) == bench.data.labels[[4, 0, 2]].tolist()
        for function, tasks in (
            (evaluate.see, [range(2), range(2, 5)]),
            (evaluate.trace, [0, 4]),
        ):
            for one, two in zip(alone.map(function, tasks), crew.map(function, tasks), strict=True):
                assert_equal(one, two)
        with pytest.raises(UserError, match=r"^Image 3 must be another one\.$"):
            list(crew.map(label_of, [1, 3]))


def test_several_processes_need_to_know_where_things_are(subject):
    with pytest.raises(ValueError, match=r"^Origin must be known for several processes, not None$"):
        Crew(make_bench(subject), jobs=2)


def test_digits_keep_their_accuracy(bundle):
    found = evaluate.evaluate(bundle, limit=60, tensors=4, sensitivity=0)
    assert found.of("float").top1.count >= 58
    assert found.of("golden").top1.count >= found.of("float").top1.count - 1
    assert found.holds
    assert found.of("float").top1.total == len(digits_images("test")[1][:60])


# ------------------------------------------------------------------------------------------- timing


@pytest.mark.slow
def test_time_and_memory_are_measured_in_processes_of_their_own(bundle):
    """The golden model's has no torch in it."""
    images = digits_images("test")[0][:2]
    request = {"bundle": str(bundle), "name": "digits", "image_size": 8}
    request |= {"checkpoint": None, "pretrained": False}
    found = {model: timing.measure(model, images, request) for model in MODELS}
    for model, answer in found.items():
        assert answer["model"] == model
        assert answer["batch_size"] == 2
        assert 0 < answer["one"] < 60
        assert 0 < answer["batch"] < 60
        assert 0 < answer["idle"] <= answer["peak"]
    assert found["golden"]["idle"] < found["float"]["idle"] / 2
    assert found["golden"]["peak"] < found["float"]["peak"] / 2


def test_a_process_that_fails_is_told(tmp_path):
    request = {"bundle": str(tmp_path / "nowhere"), "checkpoint": None, "pretrained": False}
    with pytest.raises(RuntimeError, match=r"(?s)^Timing of the golden model failed: .*nowhere"):
        timing.measure("golden", digits_images("test")[0][:1], request)


# ------------------------------------------------------------------------------------ command line


def test_the_command_writes_page_and_json_and_prints_a_summary(bundle, tmp_path, capsys):
    out = tmp_path / "deep" / "out"
    options = ["--limit", "12", "--tensors", "2", "--sensitivity", "1", "--no-timing"]
    arguments = ["evaluate", "--bundle", str(bundle), "--data", "digits", *options]
    assert cli.invoke([*arguments, "--out", str(out)]) == 0
    assert sorted(path.name for path in out.iterdir()) == ["evaluation.html", "evaluation.json"]
    told = json.loads((out / "evaluation.json").read_text())
    assert told["images"] == 12
    assert told["bundle"]["sha256"] == load_bundle(bundle).sha256
    printed = capsys.readouterr().out
    assert "digits (w8a8p4) on 12 images: digits, the held-out split" in printed
    assert "golden against float: " in printed
    assert "codes equal" in printed


def other_weights(bundle: Path, out: Path) -> list[str]:
    state = load_file(Path(calibrate.__file__).parent / "models" / "digits.safetensors")
    rng = np.random.default_rng(0)
    save_file(
        {
            name: rng.permutation(value.ravel()).reshape(value.shape)
            for name, value in state.items()
        },
        out / "other.safetensors",
    )
    return ["--checkpoint", str(out / "other.safetensors")]


def damaged(bundle: Path, out: Path) -> list[str]:
    shutil.copytree(bundle, out / "bad")
    with (out / "bad" / "network.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x55")
    return ["--bundle", str(out / "bad")]


def renamed(bundle: Path, out: Path) -> list[str]:
    shutil.copytree(bundle, out / "bad")
    path = out / "bad" / "manifest.json"
    document = json.loads(path.read_text())
    document["model"]["name"] = "vit_tiny_patch16_224"
    path.write_text(json.dumps(document))
    return ["--bundle", str(out / "bad")]


def flat(bundle: Path, out: Path) -> list[str]:
    (out / "flat").mkdir()
    return ["--data", str(out / "flat")]


def foreign(bundle: Path, out: Path) -> list[str]:
    (out / "mine").mkdir()
    (out / "mine" / "evaluation.json").write_text('{"schema": "somebody else\'s"}')
    return ["--out", str(out / "mine")]


REFUSED = [
    (lambda *_: ["--limit", "0"], "must be at least 1, not 0"),
    (lambda *_: ["--jobs", "0"], "processes must be at least 1, not 0"),
    (lambda *_: ["--batch", "0"], "batch must be at least 1, not 0"),
    (lambda *_: ["--tensors", "0"], "compared must be at least 1, not 0"),
    (lambda *_: ["--sensitivity", "-1"], "must be at least 0, not -1"),
    (lambda *_: ["--bundle", "nowhere"], "is not a bundle"),
    (lambda *_: ["--data", "nowhere"], "does not exist"),
    (lambda *_: ["--out", "/dev/null/x"], "is not a folder"),
    (foreign, "holds other files and no evaluation: it is left alone."),
    (flat, "has no classes"),
    (damaged, "network.safetensors"),
    (other_weights, "was made of other weights"),
    (renamed, "vit_tiny_patch16_224"),
]


@pytest.mark.parametrize(("change", "part"), REFUSED)
def test_bad_input_is_refused_in_one_sentence(change, part, bundle, tmp_path, capsys):
    (tmp_path / "input").mkdir()
    options = {"--bundle": str(bundle), "--data": "digits", "--out": str(tmp_path / "out" / "deep")}
    given = change(bundle, tmp_path / "input")
    options |= dict(zip(given[::2], given[1::2], strict=True))
    assert cli.invoke(["evaluate", *(text for pair in options.items() for text in pair)]) == 2
    printed = capsys.readouterr()
    last = printed.err.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert part in last
    assert "Traceback" not in printed.err
    assert not (tmp_path / "out").exists()
