# SPDX-License-Identifier: Apache-2.0
"""A network as the accelerator runs it: an embedding, attentions and MLPs on a residual stream, one token.

:func:`recognise` follows the nodes in their order; the first that has no place is refused by its name.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any, NoReturn

import numpy as np

from golden.accelerator import AcceleratorSpec
from golden.bounds import Interval
from golden.node import IMAGE, Node
from golden.vit import VitModel
from qvit_hw.errors import Unsupported

__all__ = ["Attention", "Mlp", "Network", "check_numbers", "patch_bias", "recognise"]


@dataclass(frozen=True)
class Attention:
    """Seven nodes, from a LayerNorm to the stream again."""

    norm: Node
    qkv: Node
    scores: Node
    softmax: Node
    attend: Node
    proj: Node
    residual: Node

    @property
    def heads(self) -> int:
        """Number of heads."""
        return int(self.scores.layout["heads"])

    @property
    def head_dim(self) -> int:
        """Channels of q, k and v of a head."""
        return int(self.qkv.params.out_features) // (3 * self.heads)


@dataclass(frozen=True)
class Mlp:
    """Five nodes, from a LayerNorm to the stream again."""

    norm: Node
    fc1: Node
    gelu: Node
    fc2: Node
    residual: Node


@dataclass(frozen=True)
class Network:
    """A network in the order of its work.

    norm: the last LayerNorm.  token: the one that is selected, by the node ``select``, before the norm if
    ``early``.  head: None where the token's codes are the output.
    """

    patch_embed: Node
    embed: Node
    parts: tuple[Attention | Mlp, ...]
    norm: Node
    select: Node
    token: int
    early: bool
    head: Node | None
    input_size: tuple[int, int, int]

    @property
    def prefix(self) -> int:
        """Tokens before those of the patches."""
        return len(self.embed.layout["prefix"])

    @property
    def tokens(self) -> int:
        """Rows of the stream."""
        return self.prefix + len(self.embed.layout["positions"])

    @property
    def channels(self) -> int:
        """Channels of the stream."""
        return int(self.patch_embed.params.out_features)

    @property
    def output(self) -> tuple[str, int]:
        """Name and length of the output."""
        if self.head is None:
            return self.select.name, self.channels
        return self.head.name, self.head.params.out_features

    def nodes(self) -> Iterator[Node]:
        """All nodes but the selection."""
        yield from (self.patch_embed, self.embed)
        for part in self.parts:
            yield from vars(part).values()
        yield self.norm
        if self.head is not None:
            yield self.head


def _refuse(node: Node, why: str) -> NoReturn:
    raise Unsupported(f"Node {node.name!r} cannot run on the accelerator: {why}.")


class _Walk:
    """Takes nodes one after the other."""

    def __init__(self, model: VitModel) -> None:
        self.nodes, self.place = model.nodes, 0

    def ops(self, count: int) -> tuple[str, ...]:
        """Operators of the next nodes."""
        return tuple(node.op for node in self.nodes[self.place : self.place + count])

    def take(self, op: str, *inputs: Node | str) -> Node:
        """The next node, which must be ``op`` of these inputs."""
        if self.place == len(self.nodes):
            raise Unsupported(f"Network must go on with {op}, not end with {self.nodes[-1].name!r}.")
        node, wanted = (
            self.nodes[self.place],
            tuple(x if isinstance(x, str) else x.name for x in inputs),
        )
        if node.op != op:
            _refuse(node, f"here it takes {op}, not {node.op}")
        if node.inputs != wanted:
            _refuse(node, f"its input must be {', '.join(wanted)}, not {', '.join(node.inputs)}")
        for key in ("windows", "mask"):
            if node.layout.get(key) is not None:
                _refuse(node, f"it has {'a mask' if key == 'mask' else key}")
        self.place += 1
        return node


def recognise(model: VitModel) -> Network:
    """The network's stages; Unsupported, with the node's name, for one that the accelerator cannot run."""
    walk = _Walk(model)
    patch_embed = walk.take("patch_embed", IMAGE)
    x = embed = walk.take("embed", patch_embed)
    parts: list[Attention | Mlp] = []
    while (ops := walk.ops(3))[:2] == ("layernorm", "linear") and len(ops) == 3:
        norm = walk.take("layernorm", x)
        first = walk.take("linear", norm)
        if ops[2] == "gelu":
            gelu = walk.take("gelu", first)
            fc2 = walk.take("linear", gelu)
            x = walk.take("residual", x, fc2)
            parts.append(Mlp(norm, first, gelu, fc2, x))
            continue
        scores = walk.take("scores", first)
        if scores.params.bias is not None:
            _refuse(scores, "it has a bias of relative positions")
        softmax = walk.take("softmax", scores)
        attend = walk.take("attend", softmax, first)
        proj = walk.take("linear", attend)
        x = walk.take("residual", x, proj)
        parts.append(Attention(norm, first, scores, softmax, attend, proj, x))
    early = walk.ops(1) == ("select",)
    if early:
        select = walk.take("select", x)
        norm = last = walk.take("layernorm", select)
    else:
        norm = walk.take("layernorm", x)
        select = last = walk.take("select", norm)
    tokens = select.layout["tokens"]
    if len(tokens) != 1:
        _refuse(select, f"it selects {len(tokens)} tokens, not one")
    head = walk.take("linear", last) if walk.ops(1) else None
    if walk.ops(1):
        _refuse(walk.nodes[walk.place], "the network must end before it")
    return Network(
        patch_embed,
        embed,
        tuple(parts),
        norm,
        select,
        tokens[0],
        early,
        head,
        model.input_size,
    )


# ------------------------------------------------------------------------------------------ numbers


def patch_bias(node: Node) -> np.ndarray:
    """Bias [out] of a patch embedding for pixels less 128, as the accelerator reads them."""
    params = node.params
    return np.asarray(params.bias, np.int64) + 128 * np.asarray(params.weight, np.int64).sum(axis=1)


_FIT = " (--fit takes it from the bundle)"


def check_numbers(network: Network, spec: AcceleratorSpec) -> None:
    """Unsupported, with the node's name, where one has wider numbers or other units than the accelerator."""
    for node in network.nodes():
        if node.op in ("layernorm", "softmax"):
            _same(node, node.spec, getattr(spec, node.op))
    for node in network.nodes():
        _check_node(node, spec)
    for part in network.parts:
        if isinstance(part, Mlp):
            _at_most(part.fc1, "code", part.fc1.spec.out_bits, spec.gelu_bits, _FIT)
            _at_most(part.gelu, "output", part.gelu.spec.out_bits, 8)
            _gives_sums(part.fc2)
        else:
            _at_most(part.qkv, "code", part.qkv.spec.out_bits, 8)
            _gives_sums(part.proj)
    if network.head is not None:
        _gives_sums(network.head)


def _gives_sums(node: Node) -> None:
    if node.spec.out_bits is not None:
        _refuse(node, "it must give sums, not codes")


def _at_most(node: Node, name: str, bits: int | None, most: int, more: str = "") -> None:
    if bits is None or bits > most:
        _refuse(node, f"its {name} must be {most} bits or less, not {bits}{more}")


def _check_node(node: Node, spec: AcceleratorSpec) -> None:
    """What one node alone must keep to."""
    unit = node.spec
    match node.op:
        case "patch_embed":
            weight = np.abs(np.asarray(node.params.weight, np.int64)).sum(axis=1)
            reach = int((128 * weight + np.abs(patch_bias(node))).max())
            _at_most(node, "accumulator", Interval(-reach, reach).bits, spec.acc_bits)
        case "linear":
            if not unit.in_signed:
                _refuse(node, "its input must have a sign")
            _at_most(node, "accumulator", unit.acc_bits, spec.acc_bits)
        case "embed" | "residual":
            _at_most(node, "input", unit.in_bits, spec.stream_bits, _FIT)
            _at_most(node, "output", unit.out_bits, spec.stream_bits, _FIT)
        case "scores":
            _at_most(node, "score", unit.score_bits, spec.softmax.score_bits, _FIT)
        case "attend":
            _at_most(node, "output", unit.out_bits, 8)
            _at_most(node, "accumulator", unit.bounds["acc"].bits, spec.acc_bits)


def _same(node: Node, given: Any, wanted: Any) -> None:
    """The unit of the hardware is what the node was calibrated for, to the last table."""
    for field in fields(given):
        value, built = getattr(given, field.name), getattr(wanted, field.name)
        if value != built:
            _refuse(node, f"its {field.name} is {value!r}, the configuration's {built!r}{_FIT}")
