# SPDX-License-Identifier: Apache-2.0
"""ONNX files, run on onnxruntime and on the reference implementation of the package onnx."""

import numpy as np
import onnx
import onnxruntime
from onnx.reference import ReferenceEvaluator


def session(content, optimised=True):
    """A function: arrays of the inputs by name, to the list of outputs."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    if not optimised:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    made = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    return lambda feeds: made.run(None, feeds)


def reference(content):
    """The same by arithmetic that is not onnxruntime's."""
    made = ReferenceEvaluator(onnx.load_from_string(content))
    return lambda feeds: made.run(None, feeds)


def types(content):
    """Types of all tensors of a file: inputs, constants, and all in between."""
    model = onnx.shape_inference.infer_shapes(onnx.load_from_string(content), strict_mode=True)
    graph = model.graph
    values = [*graph.input, *graph.value_info, *graph.output]
    found = {value.name: value.type.tensor_type.elem_type for value in values}
    found |= {each.name: each.data_type for each in graph.initializer}
    assert {name for node in graph.node for name in node.output} <= set(found)
    return {name: onnx.helper.tensor_dtype_to_np_dtype(kind) for name, kind in found.items()}


def changed(content, name, change):
    """The file with one constant put through a function."""
    model = onnx.load_from_string(content)
    tensor = next(each for each in model.graph.initializer if each.name == name)
    array = change(onnx.numpy_helper.to_array(tensor).copy())
    tensor.CopyFrom(onnx.numpy_helper.from_array(np.ascontiguousarray(array), name))
    return model.SerializeToString()
