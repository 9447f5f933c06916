# SPDX-License-Identifier: Apache-2.0
"""Weights from files: read without executing anything, and fitted to a model or refused by name."""

from __future__ import annotations

import pickle
import warnings
import zipfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from timm.models import swin_transformer, vision_transformer
from timm.models.deit import VisionTransformerDistilled
from torch import nn

from ..errors import UserError

__all__ = ["fill", "read_checkpoint"]

_WRAPPERS = ("model", "state_dict", "model_state_dict", "module")
_PREFIXES = ("module.", "_orig_mod.", "model.")
_INDICES = ("relative_position_index", "attn_mask")
"""Tensors that no weights are: Swin's authors store them, a model computes them."""
_POSITIONS = ("pos_embed", "relative_position_bias_table")
"""Weights that may be resampled to another number of tokens."""
_SHOWN = 3
"""How many tensors an error message names."""

State = dict[str, torch.Tensor]

_vit_filter = partial(vision_transformer.checkpoint_filter_fn, adapt_layer_scale=True)
_FILTERS: dict[type[nn.Module], Callable[[State, Any], State]] = {
    vision_transformer.VisionTransformer: _vit_filter,
    VisionTransformerDistilled: _vit_filter,
    swin_transformer.SwinTransformer: swin_transformer.checkpoint_filter_fn,
}


def read_checkpoint(path: Path) -> State:
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
            _check_archive(path)
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


def _check_archive(path: Path) -> None:
    """Raise ValueError for an archive that unpacks to more than it is: torch packs without compression."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if sum(part.file_size for part in archive.infolist()) > path.stat().st_size:
                raise ValueError("Archive must hold its files as they are")


def _unwrap(content: Any, path: Path) -> State:
    for _ in range(len(_WRAPPERS)):
        inner = [content[key] for key in _WRAPPERS if _is_mapping(content) and key in content]
        if not inner or not _is_mapping(inner[0]):
            break
        content = inner[0]
    if not _is_mapping(content) or not content:
        raise UserError(f"Checkpoint {str(path)!r} must hold a state dict: tensors by name.")
    content = {key: value for key, value in content.items() if not str(key).endswith(_INDICES)}
    for key, value in content.items():
        if not isinstance(key, str) or not isinstance(value, torch.Tensor):
            kind = type(value).__name__
            raise UserError(
                f"Checkpoint {str(path)!r} must hold tensors by name, not {key!r}: {kind}."
            )
        if not value.is_floating_point():
            raise UserError(f"Tensor {key!r} of the checkpoint must be float, not {value.dtype}.")
        if not _is_plain(value):
            raise UserError(f"Tensor {key!r} of the checkpoint must be stored element by element.")
        if not bool(torch.isfinite(value.float()).all()):
            raise UserError(
                f"Tensor {key!r} of the checkpoint must be finite: it holds NaN or infinity."
            )
    for prefix in _PREFIXES:
        if all(key.startswith(prefix) for key in content):
            content = {key.removeprefix(prefix): value for key, value in content.items()}
    return {key: value.float() for key, value in content.items()}


def _is_plain(value: torch.Tensor) -> bool:
    """Whether every element of a tensor lies in the file: none that is sparse, nested, a view of few."""
    plain = value.layout is torch.strided and value.device.type == "cpu" and not value.is_nested
    return plain and value.nbytes <= value.untyped_storage().nbytes()


def _is_mapping(value: Any) -> bool:
    return isinstance(value, Mapping)


def fill(model: nn.Module, state: State, name: str) -> None:
    """Load `state` into the model, or say which tensors do not fit.

    A state that does not fit as it is goes through timm's own reading of checkpoints, which knows the
    names that the authors of DeiT, DINOv2 and Swin gave, and resamples positions of another image size.
    """
    if _complaints(model, state):
        state = _translated(model, state)
    found = _complaints(model, state)
    if found:
        raise UserError(f"The checkpoint does not fit {name!r}: {'; '.join(found)}.")
    model.load_state_dict(state)


def _translated(model: nn.Module, state: State) -> State:
    """Return what timm makes of `state`, or `state` itself where timm cannot read it."""
    if type(model) not in _FILTERS:
        return state
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's remarks on timm's interpolation
            translated = _FILTERS[type(model)](dict(state), model)
    except Exception:  # foreign names and shapes may trip it anywhere
        return state
    for key, value in translated.items():
        # timm would resample patches of another size as well: that is another network
        resampled = key in state and value.numel() != state[key].numel()
        if resampled and not key.endswith(_POSITIONS):
            return state
    return translated


def _complaints(model: nn.Module, state: State) -> list[str]:
    """What is missing, unexpected or mis-shaped in `state`; empty where it fits."""
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
    return [complaint for complaint in complaints if complaint]


def _listed(what: str, keys: list[str], show: Callable[[str], str]) -> str:
    """'missing 'a', 'b', 'c' and 9 more', or nothing."""
    if not keys:
        return ""
    more = f" and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else ""
    return f"{what} {', '.join(show(key) for key in keys[:_SHOWN])}{more}"
