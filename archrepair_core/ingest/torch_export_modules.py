"""The modules of a program: one per path, with the names and tensors of the exported model."""

import ast
import uuid
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor, nn

from archrepair_core.ingest.leaves import leaf_of
from archrepair_core.ingest.sources import define
from archrepair_core.ingest.straight_line import UNKNOWN, Symbol
from archrepair_core.ingest.straight_line import Step as LeafStep
from archrepair_core.ingest.syntax import dotted, is_identifier, is_reserved
from archrepair_core.ingest.torch_export_batch import Shaped
from archrepair_core.ingest.torch_export_emission import Writing, write_call
from archrepair_core.ingest.torch_export_graph import Step
from archrepair_core.ingest.torch_export_program import Program, Ref, Tree
from archrepair_core.ingest.torch_export_reference import attach
from archrepair_core.ingest.torch_export_root import ANSWER_PREFIX, tuple_class, write_root
from archrepair_core.ingest.torch_export_tree import Call, Line, call_tree

_SEQUENTIAL = "torch.nn.modules.container.Sequential"


@dataclass
class _Rebuild:
    """One pass over a program: its calls by module, the classes written so far, and each call's method."""

    program: Program
    shaped: Shaped
    tensors: Mapping[str, Tensor]
    aliases: Mapping[str, tuple[str, ...]]
    calls: Mapping[str, list[Call]]
    prefix: str
    # By identity: two calls may be equal.
    methods: dict[int, str] = field(default_factory=dict)
    classes: dict[str, type[nn.Module]] = field(default_factory=dict)


def rebuild_modules(
    program: Program, steps: Sequence[Step], shaped: Shaped, tensors: Mapping[str, Tensor]
) -> nn.Module:
    """The editable model: `tensors` become its parameters and buffers, by the names they have in the file."""
    aliases = _aliases(program, tensors)
    root = call_tree(program, steps, shaped, aliases)
    calls = defaultdict(list)
    for call in root.calls():
        calls[call.path].append(call)
    rebuild = _Rebuild(program, shaped, tensors, aliases, calls, f"archrepair_exported_{uuid.uuid4().hex[:8]}")
    # Children first: a method's text names the methods it calls.
    deepest_first = sorted(calls, key=lambda path: -path.count(".") if path else 1)
    modules = {path: _module(path, rebuild) for path in deepest_first}
    return _assembled(modules, rebuild)


def _aliases(program: Program, tensors: Mapping[str, Tensor]) -> dict[str, tuple[str, ...]]:
    """All names of each tensor of the model, by value name; constants, which no module owns, have none."""
    same: defaultdict[int, list[str]] = defaultdict(list)
    for path, tensor in tensors.items():
        same[id(tensor)].append(path)
    held = {item.name: item for item in program.inputs if item.kind in ("parameter", "buffer", "constant")}
    return {
        name: () if item.kind == "constant" else (item.target, *same[id(tensors[item.target])])
        for name, item in held.items()
    }


def _module(path: str, rebuild: _Rebuild) -> nn.Module:
    made = (build(path, rebuild) for build in (_sequential, _leaf)) if path else iter(())
    # Compared with None: an empty container is false.
    module = next((module for module in made if module is not None), None)
    if module is None:
        return _generated(path, rebuild)
    rebuild.methods.update({id(call): "forward" for call in rebuild.calls[path]})
    return module


def _generated(path: str, rebuild: _Rebuild) -> nn.Module:
    constants: dict[str, Tensor] = {}
    methods: dict[str, ast.stmt] = {}
    names: dict[str, str] = {}
    for call in rebuild.calls[path]:
        writing = _writing(path, rebuild, constants)
        definition = write_call(call, writing) if path else write_root(call, writing, rebuild.program)
        text = ast.unparse(ast.fix_missing_locations(definition))
        definition.name = names.setdefault(text, f"forward{len(names) or ''}")
        methods.setdefault(definition.name, definition)
        rebuild.methods[id(call)] = definition.name
    module = _class(rebuild.calls[path][0].class_name, list(methods.values()), rebuild)()
    for attribute, tensor in constants.items():
        module.register_buffer(attribute, tensor.detach().clone(), persistent=False)
    return module


def _writing(path: str, rebuild: _Rebuild, constants: dict[str, Tensor]) -> Writing:
    held = [item for item in rebuild.program.inputs if item.kind in ("parameter", "buffer", "constant")]
    return Writing(
        path,
        shapes=rebuild.shaped.shapes,
        paths=rebuild.aliases,
        tensors={item.name: rebuild.tensors[item.target] for item in held},
        methods=rebuild.methods,
        constants=constants,
    )


def _class(class_name: str, methods: list[ast.stmt], rebuild: _Rebuild) -> type[nn.Module]:
    """The class with these methods; modules that do the same share one."""
    parts = [part for part in class_name.split(".") if is_identifier(part)]
    last = parts[-1] if parts and not is_reserved(parts[-1]) else "Model"
    for method in methods[1:]:
        assert isinstance(method, ast.FunctionDef)
        method.decorator_list = [dotted("torch.jit.export")]
    definition = ast.ClassDef(last, [dotted("torch.nn.Module")], [], methods, [])
    text = f"{class_name}\n{ast.unparse(ast.fix_missing_locations(definition))}"
    if text not in rebuild.classes:
        module_name = f"{rebuild.prefix}_{len(rebuild.classes)}_{last}"
        qualified_name = ".".join(["__torch__", *parts[:-1], last])
        rebuild.classes[text] = define(definition, module_name, qualified_name, _answers(rebuild.program.out_tree))
    return rebuild.classes[text]


def _answers(tree: Tree) -> dict[str, type]:
    """The NamedTuple classes that the answer is made of, by their names in the source."""
    found = {name: made for child in tree.children for name, made in _answers(child).items()}
    if tree.kind == "namedtuple":
        made = tuple_class(tree)
        found[f"{ANSWER_PREFIX}{made.__name__}"] = made
    return found


def _sequential(path: str, rebuild: _Rebuild) -> nn.Module | None:
    """An empty `nn.Sequential`, if every call feeds one tensor through the children in their order."""
    calls = rebuild.calls[path]
    if any(call.class_name != _SEQUENTIAL for call in calls):
        return None
    return nn.Sequential() if all(_is_chain(call, rebuild) for call in calls) else None


def _is_chain(call: Call, rebuild: _Rebuild) -> bool:
    current = call.inputs
    # Also those that only hold tensors, because their work is done elsewhere: a real Sequential would call them.
    inside = [path for path in (*rebuild.calls, *rebuild.tensors) if path.startswith(f"{call.path}.")]
    children = {f"{call.path}.{path[len(call.path) + 1 :].partition('.')[0]}" for path in inside}
    passed = []
    for item in call.items:
        if not isinstance(item, Call) or item.inputs != current or len(item.outputs) != 1 or len(current) != 1:
            return False
        if rebuild.methods.get(id(item)) != "forward":
            return False
        passed.append(item.path)
        current = item.outputs
    ordered = [path for path in rebuild.program.modules if path in children]
    return call.outputs == current and passed == ordered and not _has_tensors_of_its_own(call.path, rebuild)


def _has_tensors_of_its_own(path: str, rebuild: _Rebuild) -> bool:
    return any(name.rpartition(".")[0] == path for name in rebuild.tensors)


def _leaf(path: str, rebuild: _Rebuild) -> nn.Module | None:
    calls = rebuild.calls[path]
    tensors = {name[len(path) + 1 :]: held for name, held in rebuild.tensors.items() if name.startswith(f"{path}.")}
    lines = [call.items[0] for call in calls if len(call.items) == 1 and len(call.inputs) == 1]
    if len(lines) != len(calls):
        return None
    steps = [_leaf_step(line, call, rebuild) for line, call in zip(lines, calls, strict=True) if isinstance(line, Line)]
    found = [step for step in steps if step is not None]
    return leaf_of(calls[0].class_name, found, tensors) if len(found) == len(calls) else None


def _leaf_step(line: Line, call: Call, rebuild: _Rebuild) -> LeafStep | None:
    """The step in the words of `leaves.py`: every argument of the schema, tensors by the layer's own names."""
    if line.step.schema is None or line.step.operation.outputs != call.outputs:
        return None
    arguments = {}
    for argument in line.step.schema.arguments:
        given = line.arguments.get(argument.name, argument.default_value)
        arguments[argument.name] = _leaf_value(given, argument.name, call, rebuild)
    return LeafStep(f"aten::{line.step.kind}", arguments)


def _leaf_value(value: object, argument: str, call: Call, rebuild: _Rebuild) -> object:
    if isinstance(value, list):
        return [_leaf_value(item, argument, call, rebuild) for item in value]
    if isinstance(value, int | float | str | None):
        return value
    if not isinstance(value, Ref):
        return UNKNOWN
    if value.name in call.inputs:
        return Symbol("input:0")
    is_own = f"{call.path}.{argument}" in rebuild.aliases.get(value.name, ())
    return Symbol(f"tensor:{argument}") if is_own else UNKNOWN


def _assembled(modules: dict[str, nn.Module], rebuild: _Rebuild) -> nn.Module:
    """Everything under its name, in the order of the exported model; what was never called only holds tensors."""
    root = modules[""]
    order = {path: position for position, path in enumerate(rebuild.program.modules)}
    for path in sorted((path for path in modules if path), key=lambda path: order.get(path, len(order))):
        owner = root
        parents, _, last = path.rpartition(".")
        for parent in parents.split(".") if parents else []:
            owner._modules.setdefault(parent, nn.Module())
            owner = owner.get_submodule(parent)
        owner._modules[last] = modules[path]
    persistent = {item.target: item.persistent for item in rebuild.program.inputs if item.kind == "buffer"}
    constants = {item.target for item in rebuild.program.inputs if item.kind == "constant"}
    for name, tensor in rebuild.tensors.items():
        if name not in constants:
            attach(root, name, tensor, persistent=persistent.get(name, True))
    return root.eval()
