"""Rebuild a TorchScript archive as ordinary, editable nn.Modules: START HERE for reading a model.

Every ScriptModule becomes a `torch.nn` leaf that holds its parameters (`leaves.py`) or an instance of a class generated
from its graphs (`emission.py`): one class per TorchScript class, with the archive's names for everything.
"""

import ast
import itertools
import re
import uuid
from typing import Any, cast

import torch
from torch import nn

from archrepair_core.errors import ModelError
from archrepair_core.ingest.annotations import UnsupportedTypeError, annotation
from archrepair_core.ingest.casts import cast_function, is_cast
from archrepair_core.ingest.containers import HELD_METHODS, build_container
from archrepair_core.ingest.declarations import Declarations, define_types, enums_as_values
from archrepair_core.ingest.emission import write_function
from archrepair_core.ingest.graphs import (
    bare_name,
    called_methods,
    method_graph,
    method_names,
    modules_by_type,
    nodes_of,
    same_graph,
    type_name,
)
from archrepair_core.ingest.leaves import build_leaf
from archrepair_core.ingest.measured import behaves_alike, build_measured
from archrepair_core.ingest.operators import UnsupportedNodeError
from archrepair_core.ingest.scope import Scope
from archrepair_core.ingest.sources import define
from archrepair_core.ingest.syntax import FUNCTION_PREFIX, dotted, is_identifier, is_reserved, name, property_of
from archrepair_core.ingest.tensors import TensorCopies, fill_tensors, tensor_lists

_MAX_LISTED = 40
_FORWARD = re.compile(r"forward(\d+|__\d+)?")


def decompile(
    root: torch.jit.ScriptModule, compilation_unit: Any, declarations: Declarations | None = None
) -> nn.Module:
    """An editable copy of the model, same names, `state_dict` keys, training and requires_grad flags.

    Its generated classes are eager Python and TorchScript at once; tensors are copied, tied ones stay tied.
    Raises ModelError `frozen_graph`, `no_forward`, or `operator_not_supported` listing all that cannot be written.
    """
    _refuse_frozen(root)
    _refuse_without_forward(root)
    declarations = declarations or Declarations()
    with enums_as_values(declarations):
        rebuild = _Rebuild(root, compilation_unit, declarations)
        module = rebuild.module(root, "")
    if rebuild.problems:
        raise _not_supported(rebuild.problems)
    return module


def _refuse_frozen(root: torch.jit.ScriptModule) -> None:
    if next(root.parameters(), None) is None:
        raise ModelError(
            "frozen_graph",
            "the archive has no parameters: its weights are constants of the graph, so nothing in it can be trained",
            hint="save the model before torch.jit.freeze or torch.jit.optimize_for_inference",
        )


def _refuse_without_forward(root: torch.jit.ScriptModule) -> None:
    names = method_names(root)
    if not any(_FORWARD.fullmatch(method) for method in names):
        found = f"only {', '.join(names)}" if names else "none at all"
        raise ModelError(
            "no_forward",
            f"the model has no method named forward, {found}",
            hint="rename the method that classifies to `forward`, or wrap the model in a module whose forward calls it",
        )


def _not_supported(problems: list[str]) -> ModelError:
    found = list(dict.fromkeys(problems))
    more = f"; and {len(found) - _MAX_LISTED} more" if len(found) > _MAX_LISTED else ""
    return ModelError(
        "operator_not_supported",
        f"{len(found)} not supported: " + "; ".join(found[:_MAX_LISTED]) + more,
        hint="replace these operations in the model's code, or trace the model instead of scripting it",
    )


class _Rebuild:
    """One pass over an archive: what was generated so far, and what could not be."""

    def __init__(self, root: torch.jit.ScriptModule, compilation_unit: Any, declarations: Declarations) -> None:
        self.problems: list[str] = []
        self._compilation_unit = compilation_unit
        self._prefix = f"archrepair_decompiled_{uuid.uuid4().hex[:8]}"
        self._copies = TensorCopies()
        self._called = called_methods(root)
        self._aliases = {kind: _forward_aliases(module) for kind, module in modules_by_type(root).items()}
        self._classes: dict[str, tuple[type[nn.Module], Scope]] = {}
        self._functions: dict[str, Any] = {}
        self._types = self._declared(declarations)

    def _declared(self, declarations: Declarations) -> dict[str, type]:
        try:
            return define_types(declarations, self._prefix)
        except UnsupportedTypeError as error:
            self.problems.append(str(error))
            return {}

    def module(self, original: torch.jit.ScriptModule, path: str) -> nn.Module:
        """The editable twin of the module at `path` and of all that is below it."""
        children = {
            child: self.module(cast(torch.jit.ScriptModule, module), f"{path}.{child}" if path else child)
            for child, module in original.named_children()
        }
        module = self._torch_nn(original)
        if module is None or not self._filled(module, original, children):
            module = self._generated(original, path)
            self._filled(module, original, children)
        return module

    def _filled(self, module: nn.Module, original: torch.jit.ScriptModule, children: dict[str, nn.Module]) -> bool:
        """Give `module` what it holds; False if what it then computes is found to differ from the archive."""
        fill_tensors(module, original, self._copies)
        module._modules.update(children)
        if not behaves_alike(module, original):
            return False
        module.training = bool(original.training) if original._c.hasattr("training") else False
        return True

    def _torch_nn(self, original: torch.jit.ScriptModule) -> nn.Module | None:
        kind = type_name(original)
        called = {self._method_alias(kind, method) for method in self._called.get(kind, ())}
        if (measured := build_measured(original, called)) is not None:
            return measured
        if called <= {"forward", *HELD_METHODS}:
            container = build_container(original, alias=self._method_alias)
            # Compared with None: an empty container is false.
            if container is not None:
                return container
        return build_leaf(original) if called <= {"forward"} else None

    def _generated(self, original: torch.jit.ScriptModule, path: str) -> nn.Module:
        kind = type_name(original)
        if kind not in self._classes:
            self._classes[kind] = self._class(original, path)
            self.problems += self._classes[kind][1].problems
        made, scope = self._classes[kind]
        module = made()
        tensors = {name for name, _ in original.named_parameters(recurse=False, remove_duplicate=False)}
        tensors |= {name for name, _ in original.named_buffers(recurse=False, remove_duplicate=False)}
        for attribute in scope.attribute_types.keys() - tensors:
            self._set_attribute(module, attribute, original._c.getattr(attribute))
        for attribute, tensor in scope.constants.items():
            module.register_buffer(attribute, tensor.detach().clone(), persistent=False)
        return module

    def _set_attribute(self, module: nn.Module, attribute: str, value: Any) -> None:
        copied = self._copies.tensor(value) if isinstance(value, torch.Tensor) else value
        # Past nn.Module.__setattr__: a tensor here is neither parameter nor buffer of the archive.
        module.__dict__[attribute] = copied

    def _class(self, original: torch.jit.ScriptModule, path: str) -> tuple[type[nn.Module], Scope]:
        kind = type_name(original)
        scope = Scope(path, self._function_name, self._method_alias, written_attributes=_written_attributes(original))
        scope.tensor_lists = tensor_lists(original)
        scope.namespace |= self._types
        if original._c._get_forward_hooks() or original._c._get_forward_pre_hooks():
            scope.report("forward hook")
        methods = self._methods(original, scope)
        class_name = _identifier(bare_name(kind))
        body = [*_attribute_declarations(scope), *methods] or [ast.Pass()]
        definition = ast.ClassDef(class_name, [dotted("torch.nn.Module")], [], body, [])
        if scope.problems:
            return nn.Module, scope
        module_name = f"{self._prefix}_{len(self._classes)}_{class_name}"
        return define(definition, module_name, bare_name(kind), scope.namespace), scope

    def _methods(self, original: torch.jit.ScriptModule, scope: Scope) -> list[ast.stmt]:
        aliases = self._aliases[type_name(original)]
        called = _reachable(original, self._called.get(type_name(original), frozenset()))
        wanted = called if scope.path else {*called, *(m for m in method_names(original) if is_identifier(m))}
        written: dict[str, ast.stmt] = {}
        for method in method_names(original):
            attribute = property_of(method)
            identifier = attribute or aliases.get(method, method)
            if method not in wanted or identifier in written:
                continue
            if (identifier != "forward" and hasattr(nn.Module, identifier)) or not is_identifier(identifier):
                scope.report(f"method named {method!r}")
                continue
            compiled = original._c._get_method(method)
            definition = write_function(identifier, compiled.graph, compiled.schema, scope)
            if attribute:
                definition.decorator_list = [name("property")]
            elif method not in called:
                definition.decorator_list = [dotted("torch.jit.export")]
            written[identifier] = definition
        return list(written.values())

    def _method_alias(self, kind: str, method: str) -> str:
        return self._aliases.get(kind, {}).get(method, method)

    def _function_name(self, qualified_name: str, scope: Scope) -> str:
        """The identifier of an archive's function inside `scope`; the function is written when first asked for."""
        identifier, function = self._functions.get(qualified_name) or self._function(qualified_name, scope)
        scope.namespace[identifier] = function
        return identifier

    def _function(self, qualified_name: str, scope: Scope) -> tuple[str, Any]:
        compiled = self._compilation_unit.find_function(qualified_name)
        if compiled is None:
            raise UnsupportedNodeError(f"prim::CallFunction of {bare_name(qualified_name)}")
        if is_cast(compiled.graph):
            source, target = compiled.schema.arguments[0].type, compiled.schema.returns[0].type
            identifier = cast_function(source, target, scope.namespace)
            return identifier, scope.namespace[identifier]
        scope_name, _, last = bare_name(qualified_name).rpartition(".")
        # Exported archives hold the prefixed names: they do not get a second one.
        identifier = self._unused(FUNCTION_PREFIX + _identifier(last.removeprefix(FUNCTION_PREFIX)))
        # Registered before its body is read: TorchScript has no recursion, a crafted archive might.
        self._functions[qualified_name] = (identifier, None)
        own = Scope(
            f"{bare_name(qualified_name)}() called by {scope.path or 'the model'}",
            self._function_name,
            self._method_alias,
            is_method=False,
            namespace=dict(self._types),
        )
        definition = write_function(identifier, compiled.graph, compiled.schema, own)
        scope.problems += own.problems
        if not own.problems:
            # TorchScript wants the function's own name at the end.
            original_name = f"{scope_name}.{identifier}"
            made = define(definition, f"{self._prefix}_{identifier}", original_name, own.namespace)
            self._functions[qualified_name] = (identifier, made)
        return self._functions[qualified_name]

    def _unused(self, identifier: str) -> str:
        taken = {name for name, _ in self._functions.values()}
        numbered = (f"{identifier}_{count}" for count in itertools.count(1))
        return identifier if identifier not in taken else next(name for name in numbered if name not in taken)


def _forward_aliases(module: torch.jit.ScriptModule) -> dict[str, str]:
    """Which methods are `forward` under another name: a trace has one per call, a script one per overload."""
    names = [method for method in method_names(module) if _FORWARD.fullmatch(method)]
    aliases: dict[str, str] = {}
    for method in names:
        graph = method_graph(module, method)
        twin = next((other for other in aliases if same_graph(method_graph(module, other), graph)), None)
        aliases[method] = aliases[twin] if twin else (method if aliases else "forward")
    return aliases


def _reachable(module: torch.jit.ScriptModule, called: frozenset[str]) -> set[str]:
    """Methods that run when the `called` ones do."""
    reached, open_ends = set(called), list(called)
    while open_ends:
        for node in nodes_of(method_graph(module, open_ends.pop())):
            if node.kind() != "prim::CallMethod" or next(node.inputs()).type().annotation_str != type_name(module):
                continue
            if node.s("name") not in reached:
                reached.add(node.s("name"))
                open_ends.append(node.s("name"))
    return reached


def _written_attributes(module: torch.jit.ScriptModule) -> frozenset[str]:
    graphs = [method_graph(module, method) for method in method_names(module)]
    return frozenset(n.s("name") for graph in graphs for n in nodes_of(graph) if n.kind() == "prim::SetAttr")


def _attribute_declarations(scope: Scope) -> list[ast.stmt]:
    declarations: list[ast.stmt] = []
    for attribute, jit_type in sorted(scope.attribute_types.items()):
        if hasattr(nn.Module(), attribute):
            scope.report(f"attribute named {attribute!r}")
        elif is_identifier(attribute) and jit_type.kind() != "TensorType":
            try:
                written = annotation(jit_type)
            except UnsupportedTypeError as error:
                scope.report(f"{error} of attribute {attribute!r}")
                continue
            declarations.append(ast.AnnAssign(ast.Name(attribute, ast.Store()), written, None, simple=1))
    return declarations


def _identifier(qualified_name: str) -> str:
    last = re.sub(r"[^A-Za-z0-9_]", "_", qualified_name.rpartition(".")[2])
    return last if is_identifier(last) and not is_reserved(last) else f"Module_{last.lstrip('_')}"
