# SPDX-License-Identifier: Apache-2.0
"""The embedded network: what it computes, and that it can be made again."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from qvit_hw.models import LoadedModel, digits, load_model
from qvit_hw.models.images import normalise


@pytest.fixture(scope="module")
def digits_model() -> LoadedModel:
    return load_model("digits")


def test_digits_reaches_its_accuracy_on_the_held_out_fifth(digits_model):
    images, labels = digits.digits_images("test")
    with torch.no_grad():
        guesses = digits_model.model(normalise(images, digits_model)).argmax(1).numpy()
    assert (guesses == labels).mean() >= 0.96
    assert digits.accuracy(digits_model.model) == (guesses == labels).mean()


def test_an_untrained_digits_network_fails_that_bar():
    torch.manual_seed(1)
    assert digits.accuracy(digits.build().eval()) < 0.5


def test_digits_split_is_a_stratified_fifth_without_overlap():
    train, train_labels = digits.digits_images("train")
    test, test_labels = digits.digits_images("test")
    assert train.dtype == test.dtype == np.uint8
    assert train.shape[1:] == test.shape[1:] == digits.INPUT_SIZE
    assert len(train) + len(test) == 1797
    assert not {image.tobytes() for image in train} & {image.tobytes() for image in test}
    share = np.bincount(test_labels) / (np.bincount(train_labels) + np.bincount(test_labels))
    assert np.abs(share - 0.2).max() < 0.01
    assert train.max() == 240
    assert train.mean() / 255 == pytest.approx(digits.MEAN[0], abs=1e-3)
    assert train.std() / 255 == pytest.approx(digits.STD[0], abs=1e-3)


def test_digits_is_small_and_says_what_it_is(digits_model):
    assert sum(p.numel() for p in digits_model.model.parameters()) < 400_000
    assert digits.WEIGHTS.stat().st_size < 1_000_000
    assert digits_model.source == "embedded weights, trained on scikit-learn's digits"
    assert digits_model.class_names == tuple("0123456789")
    assert not digits_model.model.training
    assert not any(block.attn.fused_attn for block in digits_model.model.blocks)


def test_digits_refuses_another_split():
    with pytest.raises(ValueError, match=r"^Split must be 'train' or 'test', not 'all'$"):
        digits.digits_images("all")


def test_digits_training_runs_and_stores_what_it_measured(tmp_path, capsys):
    threads = torch.get_num_threads()
    first, second = tmp_path / "1.safetensors", tmp_path / "2.safetensors"
    try:
        measured = digits.train(first, epochs=2)
        assert digits.train(second, epochs=2) == measured
    finally:
        torch.set_num_threads(threads)
    assert first.read_bytes() == second.read_bytes()
    assert digits.main(["--out", str(first)]) == 0
    assert f"held-out accuracy {measured:.4f} on 359 images" in capsys.readouterr().out


def test_digits_command_line_prints_the_accuracy():
    run = subprocess.run(
        [sys.executable, "-W", "error::RuntimeWarning", "-m", "qvit_hw.models.digits"],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent.parent,
        check=True,
    )
    assert re.match(r"held-out accuracy 0\.9[6-9]\d\d on 359 images$", run.stdout)
