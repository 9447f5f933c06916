# SPDX-License-Identifier: Apache-2.0
"""Golden patch embedding: against nested loops over the image and against timm's own order."""

from __future__ import annotations

import numpy as np
import pytest
import reference_integers as reference
import torch
from timm.layers import PatchEmbed

from golden.linear import LinearParams
from golden.patch_embed import SPEC_GRID, PatchEmbedSpec, corner_rows, patch_embed, patches

ROWS = [
    pytest.param(spec, *row, id=f"{index}: {row[0]}")
    for index, spec in enumerate(SPEC_GRID)
    for row in corner_rows(spec)
]


@pytest.mark.parametrize(("spec", "name", "image", "params"), ROWS)
def test_corner_images_equal_the_scalar_formula(spec, name, image, params) -> None:  # type: ignore[no-untyped-def]
    got = patch_embed(image, spec, params)
    want = reference.patch_embed(image.tolist(), spec, params)["out"]
    assert got.dtype == np.int32 and got.ravel().tolist() == want
    assert spec.bounds["acc"].holds(got)
    if name.startswith("white"):
        assert int(got.min()) == spec.bounds["acc"].low
        assert int(got.max()) == spec.bounds["acc"].high


@pytest.mark.parametrize("shape", [(32, 48), (16, 16), (64, 32)])
def test_the_order_is_timm_s(shape: tuple[int, int]) -> None:
    module = PatchEmbed(img_size=shape, patch_size=16, embed_dim=5).double()
    rng = np.random.default_rng(0)
    weight, bias = rng.integers(-127, 128, (5, 3, 16, 16)), rng.integers(-9999, 9999, 5)
    module.proj.weight.data = torch.tensor(weight).double()
    module.proj.bias.data = torch.tensor(bias).double()
    images = rng.integers(0, 256, (2, 3, *shape), dtype=np.uint8)
    params = LinearParams(weight=weight.reshape(5, -1), bias=bias)
    with torch.no_grad():
        want = module(torch.tensor(images).double()).numpy()
    assert (patch_embed(images, PatchEmbedSpec(), params) == want).all()


def test_leading_axes() -> None:
    spec = PatchEmbedSpec(patch=2, channels=1)
    images = np.arange(96, dtype=np.uint8).reshape(2, 3, 1, 4, 4)
    whole = patches(images, spec)
    assert whole.shape == (2, 3, 4, 4) and whole.dtype == np.uint8
    assert (whole[1, 2] == patches(images[1, 2], spec)).all()


def test_errors() -> None:
    spec = PatchEmbedSpec()
    good = LinearParams(weight=np.ones((2, 768), int), bias=np.zeros(2, int))
    with pytest.raises(TypeError, match=r"^Images must be an array of uint8 pixels, not int64$"):
        patch_embed(np.zeros((3, 16, 16), int), spec, good)
    with pytest.raises(
        ValueError, match=r"^Images must be \[\.\.\., 3, height, width\], not shape "
    ):
        patch_embed(np.zeros((1, 16, 16), np.uint8), spec, good)
    with pytest.raises(
        ValueError, match=r"^Image size must be a multiple of 16 pixels, not 16 x 20$"
    ):
        patch_embed(np.zeros((3, 16, 20), np.uint8), spec, good)
    with pytest.raises(
        ValueError, match=r"^Image size must be a multiple of 16 pixels, not 0 x 16$"
    ):
        patch_embed(np.zeros((3, 0, 16), np.uint8), spec, good)
    short = LinearParams(weight=np.ones((2, 700), int), bias=np.zeros(2, int))
    with pytest.raises(ValueError, match=r"^Weights must have 768 pixels, not 700$"):
        patch_embed(np.zeros((3, 16, 16), np.uint8), spec, short)
    with pytest.raises(ValueError, match=r"^Patch size must be from 1 to 64, not 0$"):
        PatchEmbedSpec(patch=0)
    with pytest.raises(ValueError, match=r"^Colour channels must be from 1 to 16, not 17$"):
        PatchEmbedSpec(channels=17)
    with pytest.raises(
        ValueError, match=r"^Accumulator width must be at least 27 for rows of 768, "
    ):
        PatchEmbedSpec(acc_bits=26)
    with pytest.raises(
        ValueError, match=r"^Maximum row length must be from 1 to 16384, not 65536$"
    ):
        PatchEmbedSpec(patch=64, channels=16)
