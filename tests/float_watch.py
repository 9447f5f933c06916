# SPDX-License-Identifier: Apache-2.0
"""Run the small networks while every value of every expression in golden is looked at: none may be a float.

    python tests/float_watch.py ROOT

The modules of ROOT/golden are compiled anew with a call of :func:`seen` around each expression, so that
intermediate results count that no variable ever holds. Exempt is ``golden/matmul.py``, where float dtypes
carry integers that are proven exact (``tests/test_matmul.py``); what it returns is looked at again. Prints,
as JSON, how many values were seen in each module and a hash of all tensors.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import json
import sys
from collections import Counter
from importlib.machinery import ModuleSpec, SourceFileLoader
from pathlib import Path
from types import CodeType
from typing import Any

import numpy as np

# matmul: see above.  arrays: computes nothing, lends matmul its memory; a loan to anyone else is seen there.
EXEMPT = {"golden.matmul", "golden.arrays"}
WATCHED = (ast.BinOp, ast.UnaryOp, ast.Call, ast.Subscript, ast.Attribute, ast.Name, ast.IfExp)
counts: Counter[str] = Counter()


def seen(value: Any, module: str, line: int) -> Any:
    """Return ``value``; AssertionError where it is a float, or an array of floats."""
    counts[module] += 1
    kind = getattr(getattr(value, "dtype", None), "kind", "")
    if isinstance(value, float | complex) or (not isinstance(value, type) and kind in ("f", "c")):
        raise AssertionError(f"float in {module}, line {line}: {value!r}")
    return value


class Watch(ast.NodeTransformer):
    """Wraps every expression whose value is used; annotations and targets stay."""

    def __init__(self, module: str) -> None:
        self.module = module

    def visit(self, node: ast.AST) -> Any:
        if isinstance(node, ast.AnnAssign):
            node.value = node.value and self.visit(node.value)
            return node
        if isinstance(node, ast.arguments):
            node.defaults = [self.visit(value) for value in node.defaults]
            node.kw_defaults = [value and self.visit(value) for value in node.kw_defaults]
            return node
        if isinstance(node, ast.FunctionDef):
            node.args, node.body = self.visit(node.args), [self.visit(part) for part in node.body]
            return node
        self.generic_visit(node)
        if isinstance(node, WATCHED) and isinstance(getattr(node, "ctx", ast.Load()), ast.Load):
            place = [ast.Constant(self.module), ast.Constant(node.lineno)]
            call = ast.Call(ast.Name("__seen__", ast.Load()), [node, *place], [])
            return ast.copy_location(call, node)
        return node


class Loader(SourceFileLoader):
    """Compiles a module anew, watched."""

    def get_code(self, fullname: str) -> CodeType:
        tree = ast.parse(self.get_data(self.path))
        if fullname not in EXEMPT:
            tree = ast.fix_missing_locations(Watch(fullname).visit(tree))
        return compile(tree, self.path, "exec", dont_inherit=True)

    def exec_module(self, module: Any) -> None:
        module.__seen__ = seen
        super().exec_module(module)


class Finder:
    """Finds golden in ``root``."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def find_spec(self, name: str, _path: Any = None, _target: Any = None) -> ModuleSpec | None:
        if name.split(".")[0] != "golden":
            return None
        path, folder = self.root.joinpath(*name.split(".")), None
        if path.is_dir():
            path, folder = path / "__init__", [str(path)]
        file = str(path.with_suffix(".py"))
        return importlib.util.spec_from_file_location(
            name, file, loader=Loader(name, file), submodule_search_locations=folder
        )


def fingerprint() -> str:
    """Hash of every tensor of both networks."""
    from networks import images, tiny_swin, tiny_vit

    digest = hashlib.sha256()
    for model in (tiny_vit(), tiny_swin()):
        for name, tensor in model.trace(images(model)).items():
            digest.update(f"{name} {tensor.shape}".encode())
            digest.update(tensor.astype(np.int64).tobytes())
    return digest.hexdigest()


if __name__ == "__main__":
    sys.meta_path.insert(0, Finder(Path(sys.argv[1])))  # type: ignore[arg-type]
    result = fingerprint()
    print(json.dumps({"values": counts, "sha256": result}))
