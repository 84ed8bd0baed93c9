"""Blocks for flat models: runs of operators between single-tensor cuts, made into modules that borrow the weights.

A forward that computes with its own parameters (`F.conv2d(x, self.w1)`) has no module to replace. Its statements
between two points where a single tensor is all the rest needs are moved into a `Run`, called where they stood with that
tensor and the parameters they use: the parameters stay where they are, under their names.
"""

import ast
import copy
import inspect
import uuid
from dataclasses import dataclass
from itertools import pairwise
from types import NoneType
from typing import Any, get_args

import torch
from torch import Tensor, nn

from archrepair_core.blocks import Block, find_blocks
from archrepair_core.calls import Call, trace_calls
from archrepair_core.cut import same_bits
from archrepair_core.errors import ModelError
from archrepair_core.ingest.sources import define
from archrepair_core.ingest.syntax import assign, call, is_identifier, member, name, subscript
from archrepair_core.modes import eval_mode
from archrepair_core.slicing import Unsliceable, certainly_stored, parse_method, read_first, stored

RUN = "Run"
_QUALIFIED_NAME = f"__torch__.{__name__}.{RUN}"
_BASE = "Host_"
# Below this share of the weights the blocks of a model are not what it consists of.
_COVERED = 0.5


def find_blocks_(model: nn.Module, inputs: Tensor) -> list[Block]:
    """Blocks as `find_blocks` gives them; where they hold less than half of the weights, runs are made first, in place.

    The function, the `state_dict` and its keys stay as they are. Raises `model.no_repairable_block`.
    """
    try:
        found = find_blocks(model, inputs)
    except ModelError:
        if not make_runs_(model, inputs):
            raise
        return find_blocks(model, inputs)
    covered = sum(block.num_params for block in found if block.level == "block")
    flat = covered < _COVERED * sum(parameter.numel() for parameter in model.parameters())
    return find_blocks(model, inputs) if flat and make_runs_(model, inputs) else found


def make_runs_(model: nn.Module, inputs: Tensor) -> list[str]:
    """Turn the runs of operators in the model's forwards into modules, in place; their names.

    Each takes one tensor and gives one, and uses a weight matrix or kernel. Checked bit for bit on `inputs`; a forward
    whose source cannot be read, or that answers otherwise afterwards, stays as it was.
    """
    calls = trace_calls(model, inputs)
    # A layer of torch.nn is one operator already.
    called = [(path, call.module) for path, call in calls.items() if not _of_torch(call.module)]
    return [run for path, module in called for run in _rewrite_(model, path, module, inputs)]


def _of_torch(module: nn.Module) -> bool:
    return type(module).__module__.startswith("torch.nn.")


@dataclass(frozen=True)
class _Span:
    """Statements `start` to `stop` of a forward: `entering` and `leaving` are the single locals they read and leave."""

    start: int
    stop: int
    entering: str
    leaving: str
    borrowed: tuple[str, ...]


def _rewrite_(model: nn.Module, path: str, module: nn.Module, inputs: Tensor) -> list[str]:
    """Names of the runs made of `module`'s forward."""
    kind, no_cuts = type(module), set[int]()
    try:
        forward = _Forward(module)
        spans = forward.spans(no_cuts)
    except Unsliceable:
        return []
    expected = _answer(model, inputs) if spans else None
    while spans:
        local_names = _install_(module, forward, spans)
        names = [f"{path}.{local}".lstrip(".") for local in local_names]
        calls = trace_calls(model, inputs)
        wrong = {end for run, span in zip(names, spans, strict=True) for end in _ends_without_tensor(calls[run], span)}
        same = same_bits(_answer(model, inputs), expected)
        if same and not wrong:
            return names
        module.__class__ = kind
        for local in local_names:
            del module._modules[local]
        # What a local holds is only seen when it is passed: where it is a number, there is no cut in the next try.
        no_cuts |= wrong
        spans = forward.spans(no_cuts) if same else []
    return []


def _ends_without_tensor(call: Call, span: _Span) -> set[int]:
    ends = {span.start} if call.input_shape is None else set()
    return ends if call.output_shape is not None else {*ends, span.stop}


def _answer(model: nn.Module, inputs: Tensor) -> Any:
    with eval_mode(model), torch.no_grad():
        return model(inputs.clone())


def _install_(module: nn.Module, forward: "_Forward", spans: list[_Span]) -> list[str]:
    names = _unused_names(module, len(spans))
    for run, span in zip(names, spans, strict=True):
        module.add_module(run, forward.run(span).train(module.training))
    module.__class__ = forward.host(dict(zip(names, spans, strict=True)))
    return names


def _unused_names(module: nn.Module, count: int) -> list[str]:
    taken = {name for name in dir(module) if name.startswith("run_")}
    free = (f"run_{number}" for number in range(len(taken) + count + 1))
    return [name for name in free if name not in taken][:count]


class _Forward:
    """The source of one module's forward, and which of its statements can stand elsewhere."""

    def __init__(self, module: nn.Module) -> None:
        function = inspect.getattr_static(type(module), "forward")
        if function in (nn.Module.forward, nn.Sequential.forward) or "forward" in vars(module):
            raise Unsliceable("there is no forward of its own")
        self.definition = parse_method(function)
        self.module = module
        self.globals = function.__globals__
        self.self_name, *self.parameters = [argument.arg for argument in self.definition.args.args]
        self.locals = {*function.__code__.co_varnames, *function.__code__.co_cellvars} - {self.self_name}
        self.body, self.result = _with_named_result(self.definition.body)

    def spans(self, no_cuts: set[int]) -> list[_Span]:
        """The runs: from one cut to the next, what follows a weighted operator up to the next one included."""
        live = self._live()
        cuts = [at for at, names in enumerate(live) if len(names) == 1 and at not in no_cuts]
        found: list[_Span] = []
        for start, stop in pairwise(cuts):
            (entering,), (leaving,) = live[start], live[stop]
            borrowed = self._borrowed(self.body[start:stop])
            if borrowed is None:
                continue
            computed = leaving in set().union(*map(stored, self.body[start:stop]))
            if computed and any(_weighs(self._tensor(path)) for path in borrowed):
                found.append(_Span(start, stop, entering, leaving, borrowed))
            elif found and found[-1].stop == start and (computed or leaving == entering):
                before = found.pop()
                joined = tuple(dict.fromkeys([*before.borrowed, *borrowed]))
                found.append(_Span(before.start, stop, before.entering, leaving, joined))
        return found

    def _live(self) -> list[set[str]]:
        """For each position the locals that the statements from there on read."""
        live = [{self.result}]
        for statement in reversed(self.body):
            live.append(read_first([statement]) & self.locals | (live[-1] - certainly_stored(statement)))
        return live[::-1]

    def _borrowed(self, statements: list[ast.stmt]) -> tuple[str, ...] | None:
        """Paths of the module's tensors that `statements` read; None if they use the module in any other way."""
        reader = _TensorReader(self)
        for statement in statements:
            reader.visit(copy.deepcopy(statement))
        return None if reader.uses_module else tuple(reader.arguments)

    def path(self, expression: ast.expr) -> str | None:
        """`a.b.weight` for `self.a.b.weight`, also where a step is written `getattr(self.a, "0")`; runs no code."""
        match expression:
            case ast.Name(id=self.self_name):
                return ""
            case ast.Attribute(value=owner, attr=key):
                found = self.path(owner)
            case ast.Call(func=ast.Name(id="getattr"), args=[owner, ast.Constant(value=key)]):
                found = self.path(owner)
            case _:
                return None
        return None if found is None else f"{found}.{key!s}".lstrip(".")

    def _tensor(self, path: str) -> Tensor | None:
        owner, _, attribute = path.rpartition(".")
        try:
            module = self.module.get_submodule(owner)
        except AttributeError:
            return None
        found = module._parameters.get(attribute, module._buffers.get(attribute))
        return found if isinstance(found, Tensor) else None

    def is_absent(self, path: str) -> bool:
        """Whether `path` is a parameter or buffer a module could have and has not: the bias of a convolution."""
        owner, _, attribute = path.rpartition(".")
        module = dict(self.module.named_modules()).get(owner)
        declared = module is not None and (attribute in module._parameters or attribute in module._buffers)
        return declared and self._tensor(path) is None

    def can_pass(self, path: str) -> bool:
        """Tensors, and the train/eval flags by which batch-norm and dropout behave."""
        return self._tensor(path) is not None or _is_flag(path)

    def _type(self, path: str) -> ast.expr:
        if _is_flag(path):
            return name("bool")
        owner, _, attribute = path.rpartition(".")
        # TorchScript takes the class at its word: the bias of a convolution stays optional where there is one.
        classes = type(self.module.get_submodule(owner)).__mro__
        declared = next(
            (hints[attribute] for hints in map(inspect.get_annotations, classes) if attribute in hints), Tensor
        )
        return subscript(name("Optional"), name("Tensor")) if NoneType in get_args(declared) else name("Tensor")

    def run(self, span: _Span) -> nn.Module:
        """The module that does what `span` does; it computes with what it is given and owns nothing."""
        reader = _TensorReader(self)
        body = [reader.visit(copy.deepcopy(statement)) for statement in self.body[span.start : span.stop]]
        arguments = [
            ast.arg(self.self_name),
            ast.arg(span.entering, name("Tensor")),
            *(ast.arg(key, self._type(path)) for path, key in reader.arguments.items()),
        ]
        forward = ast.FunctionDef(
            "forward",
            ast.arguments(posonlyargs=[], args=arguments, kwonlyargs=[], kw_defaults=[], defaults=[]),
            [*body, ast.Return(name(span.leaving))],
            [],
            name("Tensor"),
        )
        definition = ast.ClassDef(RUN, [ast.Attribute(name("nn"), "Module", ast.Load())], [], [forward], [])
        kind = define(definition, _module_name(), _QUALIFIED_NAME, self._namespace() | {"nn": nn})
        made: nn.Module = kind()
        return made

    def host(self, runs: dict[str, _Span]) -> type[nn.Module]:
        """The module's class with its forward calling `runs` where their statements stood."""
        body = list(self.body)
        for run, span in sorted(runs.items(), key=lambda item: -item[1].start):
            arguments = [name(span.entering), *map(self._member, span.borrowed)]
            body[span.start : span.stop] = [assign(span.leaving, call(self._member(run), *arguments))]
        forward = copy.copy(self.definition)
        forward.body = [*body, ast.Return(name(self.result))]
        kind = type(self.module)
        class_name = kind.__name__ if is_identifier(kind.__name__) else "Host"
        qualified = getattr(kind, "_jit_override_qualname", f"__torch__.{kind.__module__}.{class_name}")
        definition = ast.ClassDef(class_name, [name(_BASE)], [], [forward], [])
        made: type[nn.Module] = define(definition, _module_name(), qualified, self._namespace() | {_BASE: kind})
        return made

    def _member(self, path: str) -> ast.expr:
        expression = name(self.self_name)
        for part in path.split("."):
            expression = member(expression, part)
        return expression

    def _namespace(self) -> dict[str, Any]:
        used = {node.id for node in ast.walk(self.definition) if isinstance(node, ast.Name)}
        return {key: self.globals[key] for key in used & self.globals.keys()}


class _TensorReader(ast.NodeTransformer):
    """Puts an argument where a statement reads a tensor of the module, or whether a part of it is training."""

    def __init__(self, forward: _Forward) -> None:
        self.forward = forward
        self.arguments: dict[str, str] = {}
        self.uses_module = False

    def visit(self, node: ast.AST) -> Any:
        """As NodeTransformer: the argument, where `node` reads a tensor that can be one."""
        path = self.forward.path(node) if isinstance(node, ast.expr) else None
        if path is None:
            return self.generic_visit(node)
        if self.forward.is_absent(path):
            return ast.Constant(None)
        if not self.forward.can_pass(path) or not isinstance(getattr(node, "ctx", ast.Load()), ast.Load):
            self.uses_module = True
            return node
        return name(self.arguments.setdefault(path, self._argument(path)))

    def _argument(self, path: str) -> str:
        wanted = "_".join(path.split("."))
        wanted = wanted if is_identifier(wanted) else f"tensor_{len(self.arguments)}"
        while wanted in self.forward.locals or wanted in self.forward.globals or wanted in self.arguments.values():
            wanted += "_"
        return wanted


def _with_named_result(body: list[ast.stmt]) -> tuple[list[ast.stmt], str]:
    """The statements without the final return, and the local it gives. Raises Unsliceable for other ways out."""
    *before, last = body
    if not isinstance(last, ast.Return) or last.value is None:
        raise Unsliceable("forward does not end with its only return")
    if any(isinstance(node, ast.Return) for statement in before for node in ast.walk(statement)):
        raise Unsliceable("forward returns early")
    if isinstance(last.value, ast.Name):
        return before, last.value.id
    result = "result_of_the_forward"
    return [*before, assign(result, last.value)], result


def _weighs(tensor: Tensor | None) -> bool:
    return isinstance(tensor, nn.Parameter) and tensor.is_floating_point() and tensor.ndim >= 2


def _is_flag(path: str) -> bool:
    return path.rpartition(".")[2] == "training"


def _module_name() -> str:
    return f"archrepair_runs_{uuid.uuid4().hex[:12]}"
