# SPDX-License-Identifier: Apache-2.0
"""Weights from files: what is read, what is translated, and what is refused in which words."""

import os
import pickle
from pathlib import Path

import pytest
import timm
import torch
from family_samples import tiny_swin, tiny_vit
from safetensors.torch import save_file
from timm.models.deit import VisionTransformerDistilled

from qvit_hw.errors import UserError
from qvit_hw.models import LoadedModel, load_model
from qvit_hw.models.checkpoints import fill, read_checkpoint

TINY = "deit_tiny_patch16_224"


@pytest.fixture(scope="module")
def digits_model() -> LoadedModel:
    return load_model("digits")


def refused(sentence: str, *args, **kwargs) -> None:
    """load_model must raise UserError with exactly this sentence (a regex, anchored)."""
    with pytest.raises(UserError, match=f"^{sentence}$"):
        load_model(*args, **kwargs)


# -------------------------------------------------------------------------------------------- files


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


# -------------------------------------------------------------------------------------- translation


def values(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in model.state_dict().items()}


def filled(model: torch.nn.Module, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    fill(model, state, "it")
    return model.state_dict()


@pytest.mark.parametrize(
    ("kind", "options", "prefix"),
    [
        (timm.models.VisionTransformer, {}, 1),
        (timm.models.VisionTransformer, {"reg_tokens": 2}, 3),
        (timm.models.VisionTransformer, {"reg_tokens": 2, "no_embed_class": True}, 0),
        (VisionTransformerDistilled, {}, 2),
    ],
)
def test_positions_of_another_image_size_are_resampled(kind, options, prefix):
    state = values(tiny_vit(kind, img_size=32, **options))
    state["pos_embed"] = torch.ones_like(state["pos_embed"])
    state["pos_embed"][:, :prefix] = 5.0
    got = filled(tiny_vit(kind, **options), state)
    assert got["pos_embed"].shape == (1, prefix + 16, 24)
    assert bool((got["pos_embed"][:, :prefix] == 5).all())
    torch.testing.assert_close(got["pos_embed"][:, prefix:], torch.ones(1, 16, 24))
    assert all(torch.equal(got[key], state[key]) for key in state if key != "pos_embed")


def test_windows_of_another_image_size_are_resampled():
    state = values(tiny_swin(img_size=32, window_size=8))
    tables = [key for key in state if key.endswith("bias_table")]
    for key in tables:
        state[key] = torch.ones_like(state[key])
    got = filled(tiny_swin(), state)
    for key in tables:
        torch.testing.assert_close(got[key], torch.ones(49, state[key].shape[1]))
    assert all(torch.equal(got[key], state[key]) for key in state if key not in tables)


def test_patches_of_another_size_are_not_resampled():
    state = values(tiny_vit(patch_size=8))
    with pytest.raises(UserError, match=r"mis-shaped 'pos_embed' .*, 'patch_embed\.proj\.weight' "):
        fill(tiny_vit(), state, "it")


def test_positions_that_are_no_square_are_not_resampled():
    state = values(tiny_vit(img_size=(12, 20)))
    sentence = (
        r"^The checkpoint does not fit 'it': "
        r"mis-shaped 'pos_embed' \(1, 16, 24\) for \(1, 17, 24\)\.$"
    )
    with pytest.raises(UserError, match=sentence):
        fill(tiny_vit(), state, "it")


def test_names_of_dinov2_with_registers():
    """As its authors store it: registers by another name, a position for the class token too."""
    model = tiny_vit(reg_tokens=2, no_embed_class=True, num_classes=0)
    wanted = values(model)
    state = {key: value for key, value in wanted.items() if key != "reg_token"}
    first = torch.full((1, 1, 24), 0.25)
    state["register_tokens"] = wanted["reg_token"]
    state["cls_token"] = wanted["cls_token"] - first
    state["pos_embed"] = torch.cat([first, wanted["pos_embed"]], dim=1)
    state["mask_token"] = torch.zeros(1, 24)
    got = filled(tiny_vit(reg_tokens=2, no_embed_class=True, num_classes=0), state)
    for key, value in wanted.items():
        torch.testing.assert_close(got[key], value, msg=key)


def test_names_of_swin(tmp_path):
    """As its authors store it: merging at a stage's end, indices and masks among the weights."""
    wanted = values(tiny_swin())
    state = {}
    for key, value in wanted.items():
        name = key.replace("layers.1.downsample", "layers.0.downsample").replace("head.fc", "head")
        state[name] = value
    state["layers.0.blocks.0.attn.relative_position_index"] = torch.zeros(16, 16, dtype=torch.int64)
    state["layers.0.blocks.1.attn_mask"] = torch.full((4, 16, 16), -100.0)
    torch.save({"model": state}, tmp_path / "swin.pth")
    got = filled(tiny_swin(), read_checkpoint(tmp_path / "swin.pth"))
    assert all(torch.equal(got[key], value) for key, value in wanted.items())


def test_a_swin_of_another_depth_is_named():
    state = values(tiny_swin(depths=(2, 3)))
    with pytest.raises(UserError, match=r"unexpected 'layers\.1\.blocks\.2\.norm1\.weight'"):
        fill(tiny_swin(), state, "it")


def test_checkpoint_of_another_image_size_by_name(tmp_path):
    state = load_model(TINY, image_size=64).model.state_dict()
    save_file(state, tmp_path / "small.safetensors")
    loaded = load_model(TINY, checkpoint=tmp_path / "small.safetensors")
    assert loaded.trained
    assert loaded.input_size == (3, 224, 224)
    same = load_model(TINY, checkpoint=tmp_path / "small.safetensors", image_size=64)
    assert torch.equal(same.model.pos_embed, state["pos_embed"])
