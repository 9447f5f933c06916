# SPDX-License-Identifier: Apache-2.0
"""Raw images for a model: a folder of files, or those that ship with the packages we use.

Images are uint8 from end to end, because raw pixels are what the hardware is fed. Resizing and
cropping are timm's evaluation transform; mean and standard deviation belong to the network's first
step, and only `normalise` applies them, for the float model.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image
from timm.data import create_transform

from ..errors import UserError
from .registry import LoadedModel

__all__ = [
    "BUNDLED",
    "SUFFIXES",
    "load_images",
    "normalise",
    "open_picture",
    "picture_transform",
]

SUFFIXES = frozenset((".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"))
BUNDLED = (
    ("skimage", "data/astronaut.png"),
    ("sklearn", "datasets/images/china.jpg"),
    ("skimage", "data/chelsea.png"),
    ("skimage", "data/coffee.png"),
    ("sklearn", "datasets/images/flower.jpg"),
    ("skimage", "data/motorcycle_left.png"),
    ("skimage", "data/rocket.jpg"),
    ("skimage", "data/hubble_deep_field.jpg"),
    ("skimage", "data/camera.png"),
    ("skimage", "data/coins.png"),
    ("skimage", "data/grass.png"),
    ("skimage", "data/brick.png"),
    ("skimage", "data/gravel.png"),
    ("skimage", "data/moon.png"),
)
"""(package, path in it): natural images that ship inside the wheels; nothing is downloaded."""
_CROP_SEED = {"train": 11, "test": 23}
Split = Literal["train", "test"]
Transform = Callable[[Image.Image], np.ndarray]


def load_images(
    source: str | Path | None, model: LoadedModel, limit: int | None, *, split: Split = "train"
) -> tuple[np.ndarray, list[str]]:
    """Return (uint8 [n, C, H, W] of the model's input size, n distinct names), always the same.

    Args:
        source: a folder, searched to any depth; None or 'bundled' for the images that come along.
        limit: at most so many. From a folder they are spread evenly over the sorted paths, so that
            every sub-folder has its share. Of the natural images any number can be had: beyond the
            whole images come random crops of them, all different. None: each file (digit) once.
        split: of the bundled images, those to calibrate on ('train') or others to evaluate on
            ('test': held-out digits, or other crops of the natural images).

    Raises UserError for a folder that is missing or holds no image, and for a file that is none.
    """
    if limit is not None and limit < 1:
        raise UserError(f"The number of images must be at least 1, not {limit}.")
    if split not in ("train", "test"):
        raise ValueError(f"Split must be 'train' or 'test', not {split!r}")
    if source is None or source == "bundled":
        if model.name == "digits":
            return _digits(limit, split)
        return _natural(model, limit, split)
    return _folder(Path(source), model, limit)


def normalise(images: np.ndarray, model: LoadedModel) -> torch.Tensor:
    """Return the float model's input, float32 [n, C, H, W]: (pixel / 255 - mean) / std."""
    if not isinstance(images, np.ndarray) or images.dtype != np.uint8:
        kind = getattr(images, "dtype", type(images).__name__)
        raise TypeError(f"Images must be a uint8 array, not {kind}")
    if images.ndim != 4 or images.shape[1:] != model.input_size:
        raise ValueError(f"Images must have shape (n, *{model.input_size}), not {images.shape}")
    mean = torch.tensor(model.mean).view(1, -1, 1, 1)
    std = torch.tensor(model.std).view(1, -1, 1, 1)
    return (torch.tensor(images).float() / 255 - mean) / std


# ---------------------------------------------------------------------------------------- sources


def _digits(limit: int | None, split: Split) -> tuple[np.ndarray, list[str]]:
    from .digits import digits_images

    images, labels = digits_images(split)
    names = [f"digits-{split}-{i:04d}-{label}" for i, label in enumerate(labels[:limit])]
    return images[:limit].copy(), names


def _folder(folder: Path, model: LoadedModel, limit: int | None) -> tuple[np.ndarray, list[str]]:
    if not folder.exists():
        raise UserError(f"Image folder {str(folder)!r} does not exist.")
    if not folder.is_dir():
        raise UserError(f"Image folder {str(folder)!r} is not a folder.")
    paths = sorted(
        (path.relative_to(folder).as_posix(), path)
        for path in folder.rglob("*")
        if path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()
    )
    if not paths:
        kinds = ", ".join(sorted(suffix[1:] for suffix in SUFFIXES))
        raise UserError(f"Image folder {str(folder)!r} holds no image ({kinds}).")
    if limit is not None and limit < len(paths):
        paths = [paths[(2 * i + 1) * len(paths) // (2 * limit)] for i in range(limit)]
    transform = picture_transform(model)
    images = [transform(open_picture(path, model.input_size[0])) for _, path in paths]
    return np.stack(images), [name for name, _ in paths]


def _natural(model: LoadedModel, limit: int | None, split: Split) -> tuple[np.ndarray, list[str]]:
    count = len(BUNDLED) if limit is None else limit
    channels, height, width = model.input_size
    transform = picture_transform(model)
    pictures = [open_picture(_bundled_file(*where), channels) for where in BUNDLED[:count]]
    stems = [Path(path).stem for _, path in BUNDLED]
    rng = np.random.RandomState(_CROP_SEED[split])  # frozen stream: the same with every numpy
    images: list[np.ndarray] = []
    names: list[str] = []
    while len(names) < count:
        which, lap = len(names) % len(BUNDLED), len(names) // len(BUNDLED)
        picture, name = pictures[which], stems[which]
        if split == "test" or lap > 0:
            box = _crop_box(rng, picture.size, width / height)
            picture = picture.crop(box)
            name = f"{name}-{box[0]}-{box[1]}-{picture.width}x{picture.height}"
        if name in names:
            continue  # the same crop drawn twice
        names.append(name)
        images.append(transform(picture))
    return np.stack(images), names


def _crop_box(
    rng: np.random.RandomState, size: Sequence[int], aspect: float
) -> tuple[int, int, int, int]:
    """Draw (left, upper, right, lower): 40 to 90 % of the largest box of that width / height."""
    largest = min(size[0], size[1] * aspect)
    width = largest * rng.uniform(0.4, 0.9)
    w, h = max(1, round(width)), max(1, round(width / aspect))
    left, upper = rng.randint(0, size[0] - w + 1), rng.randint(0, size[1] - h + 1)
    return left, upper, left + w, upper + h


def _bundled_file(package: str, path: str) -> Path:
    """Path of a file in an installed package, which is not imported for it."""
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise UserError(f"The bundled images need the package {package!r}, which is not installed.")
    return Path(spec.origin).parent / path


# -------------------------------------------------------------------------------------- pictures


def picture_transform(model: LoadedModel) -> Transform:
    """Return timm's evaluation transform, not normalised: PIL image to uint8 [C, H, W]."""
    resize = create_transform(
        model.input_size,
        is_training=False,
        interpolation=model.interpolation,
        crop_pct=model.crop_pct,
        crop_mode=model.crop_mode,
        normalize=False,
    )

    def apply(picture: Image.Image) -> np.ndarray:
        array = np.asarray(resize(picture))
        if array.dtype != np.uint8 or array.shape != model.input_size:
            raise AssertionError(f"transform gave {array.dtype} {array.shape}")
        return array

    return apply


def open_picture(path: Path, channels: int) -> Image.Image:
    """Read a picture as 8-bit grey (1 channel) or RGB (3); UserError names a file that is none."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's remarks on odd metadata
            with Image.open(path) as file:
                file.load()
                picture: Image.Image = file
                if picture.mode.startswith("I;16"):
                    wide = np.asarray(picture, dtype=np.uint16)
                    picture = Image.fromarray((wide >> 8).astype(np.uint8))
                elif picture.mode in ("I", "F"):
                    raise UserError(f"Image {str(path)!r} must have 8 or 16 bits a sample, not 32.")
                return picture.convert({1: "L", 3: "RGB"}[channels])
    except UserError:
        raise
    except Exception as error:  # a decoder fed with rubbish may raise anything
        raise UserError(
            f"Image {str(path)!r} cannot be read: it is damaged or no image."
        ) from error
