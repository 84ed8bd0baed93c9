"""How an `aten` operator that works on tensors is spelled, decided by its schema.

Three spellings exist: `torch.add(x, y)`, `x.view(...)` and `torch.ops.aten.slice(x, ...)`. The first two are three
times cheaper to call, but only right where Python's own function is the operator itself and not a wrapper around it.
"""

import ast
import types
from functools import lru_cache
from typing import Any

import torch

from archrepair_core.ingest.graphs import Node, Value, is_constant
from archrepair_core.ingest.syntax import call, dotted, literal, member, name

_DTYPES = [
    "uint8",
    "int8",
    "int16",
    "int32",
    "int64",
    "float16",
    "float32",
    "float64",
    "complex32",
    "complex64",
    "complex128",
    "bool",
    "qint8",
    "quint8",
    "qint32",
    "bfloat16",
]
_LAYOUTS = ["strided"]
_MEMORY_FORMATS = ["contiguous_format", "preserve_format", "channels_last", "channels_last_3d"]

# TorchScript stores these enumerations as integers; eager Python wants the objects.
_ENUMERATIONS = {"dtype": _DTYPES, "layout": _LAYOUTS, "memory_format": _MEMORY_FORMATS}

_TENSOR_TYPES = ("Tensor", "Optional[Tensor]", "List[Tensor]", "List[Optional[Tensor]]")
_FLAGS = ("training", "train", "use_input_stats")
_LAYERS_WITH_FLAG = frozenset(
    f"aten::{layer}"
    for layer in (
        *("alpha_dropout", "alpha_dropout_", "batch_norm", "dropout", "dropout_", "feature_alpha_dropout"),
        *("feature_alpha_dropout_", "feature_dropout", "feature_dropout_", "gru", "instance_norm", "lstm"),
        *("rnn_relu", "rnn_tanh", "rrelu", "rrelu_"),
    )
)
_DISPATCHED = frozenset({"index", "index_put", "index_put_"})
_CREATORS = frozenset(
    [
        "arange",
        "as_tensor",
        "empty",
        "eye",
        "full",
        "linspace",
        "ones",
        "rand",
        "randint",
        "randn",
        "randperm",
        "scalar_tensor",
        "tensor",
        "zeros",
    ]
)


@lru_cache(maxsize=1024)
def _schema(text: str) -> Any:
    return torch._C.parse_schema(text)


def takes_tensors(node: Node) -> bool:
    """Whether the node's schema has a tensor argument, so that the dispatcher, not Python, computes it."""
    return any(str(argument.type) in _TENSOR_TYPES for argument in _arguments(node))


def is_tensor_operator(node: Node) -> bool:
    """Whether `spell` can write the node: an aten operator that takes a tensor or creates one."""
    namespace, operator = node.kind().split("::")
    return namespace == "aten" and bool(node.schema()) and (takes_tensors(node) or operator in _CREATORS)


def training_flag(node: Node) -> int | None:
    """Position of the argument that says whether a layer is being trained, in operators that have one."""
    if node.kind() not in _LAYERS_WITH_FLAG:
        return None
    names = [argument.name for argument in _arguments(node)]
    return next((names.index(flag) for flag in _FLAGS if flag in names), None)


def _arguments(node: Node) -> list[Any]:
    text = node.schema()
    return _schema(text).arguments if text and text != "(no schema)" else []


def spell(node: Node, inputs: list[ast.expr]) -> ast.expr:
    """The call that computes `node` from the expressions of its inputs; defaults at the end are left out."""
    operator = node.kind().split("::")[1]
    positional, keywords = _split_arguments(node, inputs)
    if operator == "to":
        keywords.pop("layout", None)
    expression = call(_function(operator, node, positional), *positional, **keywords)
    # Eager operators return tuples where TorchScript has lists.
    if node.outputsSize() == 1 and node.output().type().kind() == "ListType":
        return call(name("list"), expression)
    return expression


def _split_arguments(node: Node, inputs: list[ast.expr]) -> tuple[list[ast.expr], dict[str, ast.expr]]:
    positional: list[ast.expr] = []
    keywords: dict[str, ast.expr] = {}
    last_needed = 0
    for argument, value, expression in zip(_arguments(node), node.inputs(), inputs, strict=True):
        needed = not _is_default(argument, value)
        if _acts_as_number(node, argument, value):
            expression = literal(value.toIValue().item())
        if argument.kwarg_only:
            if needed:
                keywords[argument.name] = _enumerated(argument.name, value, expression)
            continue
        positional.append(_enumerated(argument.name, value, expression))
        last_needed = len(positional) if needed else last_needed
    return positional[:last_needed], keywords


def num_arguments(node: Node) -> int:
    """How many arguments are left when those at the end that have their default value are dropped."""
    pairs = list(zip(_arguments(node), node.inputs(), strict=True))
    needed = [index for index, (argument, value) in enumerate(pairs, start=1) if not _is_default(argument, value)]
    return max(needed, default=0)


def _acts_as_number(node: Node, argument: Any, value: Value) -> bool:
    # Python's floats, in a trace, became tensors that do not take part in type promotion; eager tensors do.
    if str(argument.type) != "Tensor" or not is_constant(value):
        return False
    constant = value.toIValue()
    is_double = isinstance(constant, torch.Tensor) and constant.dim() == 0 and constant.dtype == torch.float64
    return is_double and argument.name in _numbers_of(node.kind())


@lru_cache(maxsize=1024)
def _numbers_of(operator: str) -> frozenset[str]:
    """Arguments that some overload on tensors takes as a number."""
    schemas = torch._C._jit_get_schemas_for_operator(operator)
    return frozenset(
        argument.name
        for schema in schemas
        if schema.arguments and str(schema.arguments[0].type) == "Tensor" and "out" not in schema.overload_name
        for argument in schema.arguments
        if str(argument.type) == "number"
    )


def _is_default(argument: Any, value: Value) -> bool:
    if not argument.has_default_value() or not is_constant(value):
        return False
    constant, default = value.toIValue(), argument.default_value
    return type(constant) is type(default) and not isinstance(constant, torch.Tensor) and bool(constant == default)


def _enumerated(argument: str, value: Value, expression: ast.expr) -> ast.expr:
    members = _ENUMERATIONS.get(argument)
    if members is None or not is_constant(value):
        return expression
    constant = value.toIValue()
    if isinstance(constant, int) and 0 <= constant < len(members):
        return dotted(f"torch.{members[constant]}")
    return literal(constant)


def dtype_literal(value: Value) -> ast.expr | None:
    """A constant that stands where TorchScript has a dtype, as `torch.float32` and the like; None if it is none."""
    constant = value.toIValue() if is_constant(value) else None
    if isinstance(constant, int) and 0 <= constant < len(_DTYPES):
        return dotted(f"torch.{_DTYPES[constant]}")
    return None


def _function(operator: str, node: Node, positional: list[ast.expr]) -> ast.expr:
    if _has_computed_dtype(node) or operator in _DISPATCHED:
        # Only the dispatcher takes a dtype that is a number in a variable, or None among indices.
        return dotted(f"torch.ops.aten.{operator}")
    takes_self = bool(positional) and next(iter(_arguments(node))).name == "self"
    return function_of(operator, positional, takes_self=takes_self)


def function_of(operator: str, positional: list[ast.expr], *, takes_self: bool) -> ast.expr:
    """What to call for an operator; a method takes its first argument out of `positional`, if `takes_self`."""
    if takes_self and operator.endswith("_") and _is_tensor_method(operator):
        return member(positional.pop(0), operator)
    if isinstance(getattr(torch.nn.functional, operator, None), types.BuiltinFunctionType):
        return dotted(f"torch.nn.functional.{operator}")
    if _is_torch_function(operator):
        return dotted(f"torch.{operator}")
    if hasattr(torch._C._nn, operator):
        return dotted(f"torch._C._nn.{operator}")
    if takes_self and _is_tensor_method(operator):
        return member(positional.pop(0), operator)
    return dotted(f"torch.ops.aten.{operator}")


def _is_torch_function(operator: str) -> bool:
    return hasattr(torch._C._VariableFunctions, operator) and isinstance(
        getattr(torch, operator, None), types.BuiltinFunctionType
    )


def _is_tensor_method(operator: str) -> bool:
    return not operator.startswith("__") and isinstance(
        getattr(torch.Tensor, operator, None), types.MethodDescriptorType
    )


def _has_computed_dtype(node: Node) -> bool:
    return any(
        argument.name == "dtype" and not is_constant(value) and value.node().kind() != "prim::dtype"
        for argument, value in zip(_arguments(node), node.inputs(), strict=True)
    )
