"""Values of several possible types: checks of which one it is, and the casts that follow from them."""

import ast
import hashlib
from typing import Any

from archrepair_core.ingest.annotations import annotation
from archrepair_core.ingest.graphs import Graph, Node, nodes_of
from archrepair_core.ingest.operators import ANY
from archrepair_core.ingest.scope import Body
from archrepair_core.ingest.sources import define
from archrepair_core.ingest.syntax import FUNCTION_PREFIX, assign, call, dotted, name

# Types without parameters, which only ever stand in a check.
_KINDS_OF_A_CAST = frozenset(
    f"prim::{kind}" for kind in ("Constant", "If", "RaiseException", "Uninitialized", "isinstance", "unchecked_cast")
)
_ANY_OF_A_KIND = {"AnyListType": "list", "AnyTupleType": "tuple"}


def write_isinstance(node: Node, body: Body) -> list[ast.stmt]:
    """`isinstance` over types with parameters, which Python's own does not take."""
    checks = [_check(body.read(node.input()), jit_type) for jit_type in node.tys("types")]
    return [assign(body.bind(node.output()), checks[0] if len(checks) == 1 else ast.BoolOp(ast.Or(), checks))]


def _check(value: ast.expr, jit_type: object) -> ast.expr:
    kind = jit_type.kind()  # type: ignore[attr-defined]
    if kind in _ANY_OF_A_KIND:
        return call(name("isinstance"), value, name(_ANY_OF_A_KIND[kind]))
    return call(dotted("torch.jit.isinstance"), value, annotation(jit_type))


def write_cast(node: Node, body: Body) -> list[ast.stmt]:
    """A value after its type was checked: TorchScript wants to be told the type again."""
    source, target, value = node.input().type(), node.output().type(), body.read(node.input())
    if source.kind() in ("UnionType", "AnyType"):
        value = call(name(cast_function(source, target, body.scope.namespace)), value)
    else:
        value = ANY["prim::unchecked_cast"](node, [value])
    if isinstance(value, ast.Name | ast.Constant):
        body.values[node.output().debugName()] = value
        return []
    return [assign(body.bind(node.output()), value)]


def is_cast(graph: Graph) -> bool:
    """Whether a function of the archive only checks the type of its one argument: a cast exported before."""
    kinds = {node.kind() for node in nodes_of(graph)}
    return len(list(graph.inputs())) == 1 and "prim::unchecked_cast" in kinds and kinds <= _KINDS_OF_A_CAST


def cast_function(source: object, target: object, namespace: dict[str, Any]) -> str:
    """The name of `def cast(value: Union[A, B]) -> A` in `namespace`, put there when first asked for.

    It does nothing in eager Python and is an assertion that refines the type in TorchScript.
    """
    types = f"{source.annotation_str} -> {target.annotation_str}"  # type: ignore[attr-defined]
    identifier = f"{FUNCTION_PREFIX}cast_{hashlib.sha256(types.encode()).hexdigest()[:8]}"
    if identifier not in namespace:
        scripting = call(dotted("torch.jit.is_scripting"))
        parameters = [ast.arg("value", annotation(source))]
        refined = call(dotted("torch.jit.isinstance"), name("value"), annotation(target))
        definition = ast.FunctionDef(
            name=identifier,
            args=ast.arguments(posonlyargs=[], args=parameters, kwonlyargs=[], kw_defaults=[], defaults=[]),
            body=[
                ast.If(ast.UnaryOp(ast.Not(), scripting), [ast.Return(name("value"))], []),
                ast.Assert(refined, None),
                ast.Return(name("value")),
            ],
            decorator_list=[],
            returns=annotation(target),
        )
        namespace[identifier] = define(definition, f"archrepair_{identifier}", f"__torch__.{identifier}", namespace)
    return identifier
