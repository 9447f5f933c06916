# SPDX-License-Identifier: Apache-2.0
"""Images with classes: digits, ImageNet-style folders, class maps, and what is refused."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import ImageDataset, ImageNetInfo, create_transform
from timm.layers import set_fused_attn
from timm.models.vision_transformer import VisionTransformer

from qvit_hw.errors import UserError
from qvit_hw.models import LoadedModel, load_model
from qvit_hw.models.digits import digits_images
from qvit_hw.models.labelled import class_count, load_labelled

SIDE = 16


def model(classes: int = 3, channels: int = 3, names: tuple[str, ...] | None = None) -> LoadedModel:
    """A model that nobody runs: its input size and its classes are all that matters."""
    set_fused_attn(False)
    torch.manual_seed(0)
    network = VisionTransformer(
        img_size=SIDE, patch_size=8, in_chans=channels, embed_dim=8, depth=1, num_heads=1, num_classes=classes
    )  # fmt: skip
    mean = (0.5,) * channels
    return LoadedModel("tiny", "made up", network, (channels, SIDE, SIDE), mean, mean, names)


def picture(path: Path, shade: int, mode: str = "RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(shade)
    pixels = rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three classes of four images."""
    for label, name in enumerate(("cat", "dog", "eel")):
        for number in range(4):
            picture(tmp_path / "data" / name / f"{number}.png", 10 * label + number)
    return tmp_path / "data"


def refused(sentence: str, *arguments, **options) -> None:
    with pytest.raises(UserError, match=f"^{sentence}$"):
        load_labelled(*arguments, **options)


# ------------------------------------------------------------------------------------------ digits


def test_digits_are_the_held_out_split():
    found = load_labelled("digits", load_model("digits"))
    images, labels = digits_images("test")
    assert len(found) == len(labels) == 359
    assert np.array_equal(found.labels, labels)
    assert np.array_equal(found.images([5, 0]), images[[5, 0]])
    assert found.classes == tuple("0123456789")
    assert found.note is None


def test_a_limit_takes_the_first_digits():
    found = load_labelled("digits", load_model("digits"), 7)
    assert len(found) == len(found.labels) == 7
    assert np.array_equal(found.labels, digits_images("test")[1][:7])


def test_digits_suit_no_other_input_size():
    refused(
        "Data 'digits' are images of 1 x 8 x 8: model 'tiny' takes 3 x 16 x 16.", "digits", model()
    )


def test_digits_suit_no_other_number_of_classes():
    odd = replace(load_model("digits"), model=model(classes=3).model)
    refused("Data 'digits' has 10 classes, model 'digits' has 3.", "digits", odd)


def test_a_model_without_classifier_gets_no_labels():
    bare = replace(load_model("digits"), model=model(classes=0).model)
    found = load_labelled("digits", bare)
    assert found.labels is None
    assert found.note == (
        "Model 'digits' has no classifier: its features are compared, labels are not used."
    )


# ----------------------------------------------------------------------------------------- bundled


def test_bundled_images_have_no_labels():
    found = load_labelled("bundled", model(), 3)
    assert len(found) == 3
    assert found.labels is None
    assert found.images([0, 1, 2]).shape == (3, 3, SIDE, SIDE)


# ------------------------------------------------------------------------------------------ folder


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # timm leaves its files open
def test_a_folder_is_read_as_timm_reads_it(folder):
    """Same images, same order, same classes, and the pixels of timm's evaluation transform."""
    tiny = model()
    found = load_labelled(folder, tiny)
    transform = create_transform(
        tiny.input_size, is_training=False, interpolation="bicubic", crop_pct=1.0, normalize=False
    )
    reference = ImageDataset(str(folder), transform=transform)
    assert len(found) == len(reference) == 12
    assert list(found.names) == reference.filenames()
    for number, (pixels, label) in enumerate(reference):
        assert np.array_equal(found.images([number])[0], np.asarray(pixels))
        assert found.labels[number] == label
    assert found.classes == ("cat", "dog", "eel")
    assert found.source == "folder data, 3 classes"


def test_a_limit_leaves_every_class_its_share(folder):
    found = load_labelled(folder, model(), 6)
    assert np.array_equal(found.labels, [0, 0, 1, 1, 2, 2])


def test_the_validation_split_is_found(tmp_path):
    for split in ("train", "val"):
        for name in ("a", "b", "c"):
            picture(tmp_path / split / name / f"{split}.jpg", 1)
    assert load_labelled(tmp_path, model()).names == ("a/val.jpg", "b/val.jpg", "c/val.jpg")


@pytest.mark.parametrize(("channels", "mode"), [(1, "RGB"), (3, "L"), (3, "RGBA"), (3, "P")])
def test_grey_and_colour_are_converted(tmp_path, channels, mode):
    picture(tmp_path / "a" / "x.png", 3, mode)
    found = load_labelled(tmp_path, model(classes=1, channels=channels))
    assert found.images([0]).shape == (1, channels, SIDE, SIDE)


def test_the_model_s_class_names_come_before_the_order(folder):
    found = load_labelled(folder, model(names=("eel", "dog", "cat")))
    assert np.array_equal(found.labels, [2] * 4 + [1] * 4 + [0] * 4)


def test_some_of_the_model_s_classes_are_enough(folder):
    found = load_labelled(folder, model(classes=5, names=("ant", "eel", "dog", "cow", "cat")))
    assert sorted(set(found.labels)) == [1, 2, 4]


def test_a_subset_of_imagenet_is_known_by_its_synsets(tmp_path):
    synsets = ImageNetInfo("imagenet-1k").label_names()
    for place in (7, 300, 999):
        picture(tmp_path / synsets[place] / "x.png", place)
    found = load_labelled(tmp_path, model(classes=1000))
    assert sorted(found.labels) == [7, 300, 999]
    assert found.classes[7] == "cock"


def test_a_class_map_rules(folder, tmp_path):
    (tmp_path / "map.txt").write_text("eel\nant\ncat\ndog\n")
    found = load_labelled(folder, model(classes=4), class_map=tmp_path / "map.txt")
    assert np.array_equal(found.labels, [2] * 4 + [3] * 4 + [0] * 4)
    assert found.classes == ("eel", "ant", "cat", "dog")


def test_a_folder_without_labels_is_any_folder(folder):
    picture(folder / "loose.png", 5)
    found = load_labelled(folder, model(), unlabelled=True)
    assert len(found) == 13
    assert found.labels is None


def test_a_feature_model_takes_any_classes(folder):
    found = load_labelled(folder, model(classes=0))
    assert found.labels is None
    assert len(found) == 12
    assert "no classifier" in found.note


# ----------------------------------------------------------------------------------------- refused


@pytest.mark.parametrize("limit", [0, -1])
@pytest.mark.parametrize("data", ["digits", "bundled", "nowhere"])
def test_no_images_are_refused(data, limit):
    sentence = f"The number of images must be at least 1, not {limit}."
    refused(sentence, data, load_model("digits"), limit)


def test_a_missing_folder_is_refused(tmp_path):
    refused("Data folder '.*nowhere' does not exist.", tmp_path / "nowhere", model())


def test_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    refused("Data '.*file' must be 'digits', 'bundled' or a folder.", tmp_path / "file", model())


def test_a_folder_without_images_has_no_classes(tmp_path):
    (tmp_path / "cat").mkdir()
    refused(r"Data folder '.*' has no classes: it holds no image \(.*png.*\).", tmp_path, model())


def test_images_in_no_sub_folder_have_no_class(folder):
    picture(folder / "loose.png", 5)
    refused(
        "Data folder '.*' has no classes: image 'loose.png' lies in no sub-folder .*.",
        folder,
        model(),
    )


def test_another_number_of_classes_is_told(folder):
    sentence = (
        "Data folder '.*' has 3 classes, model 'tiny' has 10: say with --class-map which they are."
    )
    refused(sentence, folder, model(classes=10))


def test_a_damaged_image_is_named_and_not_replaced(folder):
    (folder / "dog" / "2.png").write_bytes(b"no picture")
    found = load_labelled(folder, model())
    with pytest.raises(UserError, match=r"^Image '.*dog/2.png' cannot be read"):
        found.images(range(12))


def test_a_model_of_other_channels_is_refused(folder):
    refused(
        r"Model 'tiny' takes 4 channels: images have 1 \(grey\) or 3.", folder, model(channels=4)
    )


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            "cat\ndog\n",
            r"Class map '.*' must name each of the 3 classes .*: it has 2 lines, 2 different.",
        ),
        ("cat\ncat\neel", r"Class map '.*' must name .* once, .*: it has 3 lines, 2 different."),
        ("cat\ndog\ncow\n", "Class map '.*map.txt' lacks the class 'eel' of the data."),
        (b"\xff\xfe", "Class map '.*' cannot be read as text."),
        (None, "Class map '.*' cannot be read as text."),
    ],
)
def test_a_class_map_that_does_not_fit_is_refused(folder, tmp_path, text, sentence):
    path = tmp_path / "map.txt"
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    refused(sentence, folder, model(), class_map=path)


@pytest.mark.parametrize("data", ["digits", "bundled"])
def test_a_class_map_goes_with_a_folder_alone(data, tmp_path):
    sentence = "A class map goes with a folder of classes, and with nothing else."
    refused(sentence, data, load_model("digits"), class_map=tmp_path / "map.txt")


def test_classes_are_counted():
    assert [class_count(model(classes=count)) for count in (0, 1, 10)] == [0, 1, 10]
