# SPDX-License-Identifier: Apache-2.0
"""Images to evaluate on, with their classes where there are any.

Like `images`, this serves raw uint8 pixels; unlike it, image by image when asked, so that fifty thousand of
them need no memory. A folder is read as timm reads one for validation (`timm.data.create_dataset`): its
images lie in a sub-folder per class, and `val` or `validation` in it is found. timm would replace an
image that cannot be decoded by the next one; here it is an error, or a top-1 would be of other images
than it says.

Which class of the model a sub-folder is comes from the first of these that knows all of them: a class
map, the model's own class names, the ImageNet synsets of a model with as many classes (so that any
subset of ImageNet will do), or, where the numbers agree, timm's rule: the sorted order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from timm.data import ImageNetInfo, create_dataset, infer_imagenet_subset

from ..errors import UserError
from .images import SUFFIXES, load_images, open_picture, picture_transform
from .registry import LoadedModel

__all__ = ["Labelled", "class_count", "load_labelled"]

Pixels = npt.NDArray[np.uint8]
Numbers = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Labelled:
    """Images by number, read when asked for.

    source: where they come from, in words.  names: one an image.  labels: the model's class of each,
    int64 [n]; None where there are none.  classes: the names of the model's classes, where known.
    note: a sentence on what could not be used.
    """

    source: str
    names: tuple[str, ...]
    labels: Numbers | None
    read: Callable[[int], Pixels]
    classes: tuple[str, ...] | None = None
    note: str | None = None

    def __len__(self) -> int:
        return len(self.names)

    def images(self, numbers: Sequence[int]) -> Pixels:
        """Return images [len(numbers), C, H, W]; UserError names one that cannot be read."""
        return np.stack([self.read(number) for number in numbers])


def class_count(model: LoadedModel) -> int:
    """Classes of the model, 0 for one that ends with features."""
    return int(getattr(model.model, "num_classes", 0) or 0)


def load_labelled(
    data: str | Path,
    model: LoadedModel,
    limit: int | None = None,
    *,
    class_map: Path | None = None,
    unlabelled: bool = False,
) -> Labelled:
    """Return the images of ``data`` for ``model``, always the same in the same order.

    Args:
        data: 'digits' (the held-out split), 'bundled' (natural images without classes), or a folder.
        model: whose input size, transform and classes they are for.
        limit: at most so many: of a folder spread evenly over it, so that every class has its share.
        class_map: a text file, class names line by line in the order of the model's classes.
        unlabelled: take every image below the folder and no classes.

    Raises UserError for data that will not do.
    """
    if limit is not None and limit < 1:
        raise UserError(f"The number of images must be at least 1, not {limit}.")
    if model.input_size[0] not in (1, 3):
        raise UserError(
            f"Model {model.name!r} takes {model.input_size[0]} channels: images have 1 (grey) or 3."
        )
    bundled = str(data) == "bundled"
    if class_map is not None and (bundled or unlabelled or str(data) == "digits"):
        raise UserError("A class map goes with a folder of classes, and with nothing else.")
    if str(data) == "digits":
        return _digits(model, limit)
    if bundled or unlabelled:
        return _unlabelled(None if bundled else Path(data), model, limit)
    return _folder(Path(data), model, limit, class_map)


# ----------------------------------------------------------------------------------------- sources


def _digits(model: LoadedModel, limit: int | None) -> Labelled:
    from . import digits

    if model.input_size != digits.INPUT_SIZE:
        raise UserError(
            f"Data 'digits' are images of {_size(digits.INPUT_SIZE)}: model {model.name!r} takes "
            f"{_size(model.input_size)}."
        )
    classes, count = digits.CLASS_NAMES, class_count(model)
    if count not in (0, len(classes)):
        raise UserError(
            f"Data 'digits' has {len(classes)} classes, model {model.name!r} has {count}."
        )
    images, labels = digits.digits_images("test")
    return Labelled(
        "digits, the held-out split",
        tuple(f"digits-test-{number:04d}" for number in range(len(labels[:limit]))),
        labels[:limit] if count else None,
        images.__getitem__,
        classes if count else None,
        _no_classifier(model),
    )


def _unlabelled(folder: Path | None, model: LoadedModel, limit: int | None) -> Labelled:
    images, names = load_images(folder, model, limit, split="test")
    source = "natural images that come along" if folder is None else f"folder {folder.name}"
    return Labelled(source, tuple(names), None, images.__getitem__)


def _folder(
    folder: Path, model: LoadedModel, limit: int | None, class_map: Path | None
) -> Labelled:
    root, samples, folders = _scan(folder)
    places, classes = _match(folder, folders, model, class_map)
    if limit is not None and limit < len(samples):
        samples = [samples[(2 * i + 1) * len(samples) // (2 * limit)] for i in range(limit)]
    paths = [Path(path) for path, _ in samples]
    transform, channels = picture_transform(model), model.input_size[0]
    return Labelled(
        f"folder {folder.name}, {_classes(len(folders))}",
        tuple(path.relative_to(root).as_posix() for path in paths),
        None if places is None else places[[number for _, number in samples]],
        lambda number: transform(open_picture(paths[number], channels)),
        classes,
        _no_classifier(model),
    )


def _scan(folder: Path) -> tuple[Path, list[tuple[str, int]], list[str]]:
    """Let timm walk the folder: (root, [(path, number of its sub-folder)], names of the sub-folders)."""
    if not folder.exists():
        raise UserError(f"Data folder {str(folder)!r} does not exist.")
    if not folder.is_dir():
        raise UserError(f"Data {str(folder)!r} must be 'digits', 'bundled' or a folder.")
    kinds = sorted(SUFFIXES)
    try:
        dataset = create_dataset(
            "", root=str(folder), split="validation", input_key=";".join(kinds)
        )
    except RuntimeError as error:  # timm found nothing
        raise UserError(
            f"Data folder {str(folder)!r} has no classes: it holds no image "
            f"({', '.join(kind[1:] for kind in kinds)})."
        ) from error
    reader: Any = dataset.reader
    numbers: Mapping[str, int] = reader.class_to_idx
    if "" in numbers:
        loose = next(path for path, number in reader.samples if number == numbers[""])
        raise UserError(
            f"Data folder {str(folder)!r} has no classes: image {Path(loose).name!r} lies in no "
            "sub-folder (take --unlabelled for images without classes)."
        )
    return Path(reader.root), list(reader.samples), sorted(numbers, key=lambda name: numbers[name])


# ----------------------------------------------------------------------------------------- classes


def _no_classifier(model: LoadedModel) -> str | None:
    if class_count(model):
        return None
    return (
        f"Model {model.name!r} has no classifier: its features are compared, labels are not used."
    )


def _match(
    folder: Path, folders: Sequence[str], model: LoadedModel, class_map: Path | None
) -> tuple[Numbers | None, tuple[str, ...] | None]:
    """(the model's class of every sub-folder, names of the model's classes), by the rules above."""
    count = class_count(model)
    if not count:
        return None, None
    if class_map is not None:
        names = _read_map(class_map, model)
        return _numbers(folders, names, str(class_map)), names
    if model.class_names is not None and set(folders) <= set(model.class_names):
        return _numbers(folders, model.class_names), model.class_names
    subset = infer_imagenet_subset({"num_classes": count})
    if subset is not None:
        info = ImageNetInfo(subset)
        if set(folders) <= set(info.label_names()):
            return _numbers(folders, info.label_names()), tuple(info.label_descriptions())
    if len(folders) == count:
        return np.arange(count), model.class_names or tuple(folders)
    raise UserError(
        f"Data folder {str(folder)!r} has {_classes(len(folders))}, model {model.name!r} has {count}: "
        "say with --class-map which they are."
    )


def _numbers(folders: Sequence[str], names: Sequence[str], source: str = "") -> Numbers:
    places = {name: place for place, name in enumerate(names)}
    for folder in folders:
        if folder not in places:
            raise UserError(f"Class map {source!r} lacks the class {folder!r} of the data.")
    return np.array([places[folder] for folder in folders], np.int64)


def _read_map(path: Path, model: LoadedModel) -> tuple[str, ...]:
    """Class names of a text file, one a line."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"Class map {str(path)!r} cannot be read as text.") from error
    names = tuple(line.strip() for line in lines)
    if len(names) != class_count(model) or len(set(names)) != len(names):
        raise UserError(
            f"Class map {str(path)!r} must name each of the {class_count(model)} classes of model "
            f"{model.name!r} once, a line each: it has {len(names)} lines, {len(set(names))} different."
        )
    return names


def _classes(count: int) -> str:
    return "1 class" if count == 1 else f"{count} classes"


def _size(size: Sequence[int]) -> str:
    return " x ".join(str(side) for side in size)
