# SPDX-License-Identifier: Apache-2.0
"""Images for a model: bundled ones, folders of any kind, and what is refused in which words."""

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from qvit_hw.errors import UserError
from qvit_hw.models import LoadedModel, digits, load_model
from qvit_hw.models.images import BUNDLED, load_images, normalise


@pytest.fixture(scope="module")
def digits_model() -> LoadedModel:
    return load_model("digits")


@pytest.fixture(scope="module")
def tiny() -> LoadedModel:
    return load_model("deit_tiny_patch16_224")


def test_bundled_digits(digits_model):
    images, names = load_images(None, digits_model, 5)
    assert np.array_equal(images, digits.digits_images("train")[0][:5])
    assert names[0] == f"digits-train-0000-{digits.digits_images('train')[1][0]}"
    held_out, _ = load_images("bundled", digits_model, None, split="test")
    assert np.array_equal(held_out, digits.digits_images("test")[0])


def test_bundled_natural_images(tiny):
    images, names = load_images(None, tiny, None)
    assert images.dtype == np.uint8
    assert images.shape == (len(BUNDLED), 3, 224, 224)
    assert names[:3] == ["astronaut", "china", "chelsea"]
    more, more_names = load_images("bundled", tiny, 40)
    assert np.array_equal(more[: len(BUNDLED)], images)
    assert len(set(more_names)) == len({image.tobytes() for image in more}) == 40
    again, _ = load_images(None, tiny, 40)
    assert np.array_equal(more, again)
    unseen, _ = load_images(None, tiny, 16, split="test")
    assert not {image.tobytes() for image in unseen} & {image.tobytes() for image in more}
    assert min(image.std() for image in more) > 5  # no crop is a plain surface


def test_images_are_timms_evaluation_transform(tiny, tmp_path):
    picture = Image.fromarray(np.random.RandomState(3).randint(0, 256, (300, 400, 3), np.uint8))
    picture.save(tmp_path / "noise.png")
    images, names = load_images(tmp_path, tiny, None)
    assert names == ["noise.png"]
    config = timm.data.resolve_model_data_config(tiny.model)
    wanted = timm.data.create_transform(**config, is_training=False)(picture)
    torch.testing.assert_close(normalise(images, tiny)[0], wanted, rtol=1e-5, atol=1e-5)


def test_folder_of_any_depth_and_format(digits_model, tiny, tmp_path):
    rng = np.random.RandomState(9)
    for i, suffix in enumerate(["png", "jpg", "JPEG", "bmp", "tif", "tiff", "webp"]):
        folder = tmp_path / f"class{i % 3}" / "deep"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.randint(0, 256, (5 + i, 9, 3), np.uint8)).save(folder / f"{i}.{suffix}")
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "._hidden.png").write_text("no image")
    images, names = load_images(str(tmp_path), tiny, None)
    assert images.shape == (7, 3, 224, 224)
    assert names == sorted(names)
    assert "class2/deep/2.JPEG" in names
    _, few = load_images(tmp_path, tiny, 3)
    assert [name.split("/")[0] for name in few] == ["class0", "class1", "class2"]
    assert load_images(tmp_path, digits_model, 100)[0].shape == (7, 1, 8, 8)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I;16"])
def test_pixel_modes_keep_their_brightness(mode, tiny, tmp_path):
    if mode == "I;16":
        picture = Image.fromarray(np.full((20, 20), 0xFF00, np.uint16))
    else:
        picture = Image.new("RGB", (20, 20), "white").convert(mode)
    picture.save(tmp_path / f"white.{'tif' if mode == 'CMYK' else 'png'}")
    assert load_images(tmp_path, tiny, None)[0].min() >= 254


def unreadable(sentence: str, *args) -> None:
    with pytest.raises(UserError, match=f"^{sentence}$"):
        load_images(*args)


def test_bad_folders(tiny, tmp_path):
    unreadable(r"Image folder '.*/none' does not exist\.", tmp_path / "none", tiny, None)
    sentence = r"Image folder '.*' holds no image \(bmp, jpeg, jpg, png, tif, tiff, webp\)\."
    unreadable(sentence, tmp_path, tiny, None)
    (tmp_path / "notes.txt").write_text("no image")
    unreadable(sentence, tmp_path, tiny, None)
    unreadable(r"Image folder '.*\.txt' is not a folder\.", tmp_path / "notes.txt", tiny, None)
    unreadable(r"The number of images must be at least 1, not 0\.", None, tiny, 0)


def test_files_that_are_no_images(tiny, tmp_path):
    sentence = r"Image '.*/b\.png' cannot be read: it is damaged or no image\."
    Image.new("RGB", (9, 9)).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_text("I am a text file.")
    unreadable(sentence, tmp_path, tiny, None)
    (tmp_path / "b.png").write_bytes(b"")
    unreadable(sentence, tmp_path, tiny, None)
    noise = Image.fromarray(np.random.RandomState(0).randint(0, 256, (64, 64, 3), np.uint8))
    noise.save(tmp_path / "b.png")
    whole = (tmp_path / "b.png").read_bytes()
    (tmp_path / "b.png").write_bytes(whole[: len(whole) // 2])
    unreadable(sentence, tmp_path, tiny, None)
    Image.fromarray(np.zeros((9, 9), np.float32)).save(tmp_path / "b.tif")
    (tmp_path / "b.png").unlink()
    sentence = r"Image '.*/b\.tif' must have 8 or 16 bits a sample, not 32\."
    unreadable(sentence, tmp_path, tiny, None)


def test_bundled_images_refuse_another_split(tiny):
    with pytest.raises(ValueError, match=r"^Split must be 'train' or 'test', not 'val'$"):
        load_images(None, tiny, 1, split="val")


def test_normalise_refuses_other_arrays(digits_model):
    with pytest.raises(TypeError, match=r"^Images must be a uint8 array, not float32$"):
        normalise(np.zeros((1, 1, 8, 8), np.float32), digits_model)
    with pytest.raises(TypeError, match=r"^Images must be a uint8 array, not list$"):
        normalise([0], digits_model)
    with pytest.raises(
        ValueError, match=r"^Images must have shape \(n, \*\(1, 8, 8\)\), not \(1, 8, 8\)$"
    ):
        normalise(np.zeros((1, 8, 8), np.uint8), digits_model)


def test_normalise_is_the_stated_formula(digits_model):
    image = np.arange(64, dtype=np.uint8).reshape(1, 1, 8, 8)
    wanted = (image / 255 - digits.MEAN[0]) / digits.STD[0]
    np.testing.assert_allclose(normalise(image, digits_model).numpy(), wanted, rtol=1e-6)
