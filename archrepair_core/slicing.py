"""What is left of a `forward` once a submodule has answered: its statements after that call, as a function.

The source is cut, never guessed. What the rest needs besides the submodule's answer is worked out again where it is
made of constants and attributes; the other locals it reads are named, for the caller to keep.
"""

import ast
import copy
import inspect
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import CodeType, FunctionType
from typing import Any, TypeGuard

from torch import nn

ANSWER = "answer_of_the_cut"
KEPT = "kept_at_the_cut"

# `return self._forward_impl(x)` and the like: how far such delegation is followed.
MAX_DELEGATION = 3

SIMPLE_STATEMENTS = (ast.Assign, ast.AnnAssign, ast.AugAssign, ast.Expr, ast.Return)
STRAIGHT_STATEMENTS = (*SIMPLE_STATEMENTS, ast.Raise, ast.Assert, ast.Pass, ast.Delete, ast.Break, ast.Continue)
# Inside these an expression may run later, never or many times.
CONDITIONAL_EXPRESSIONS = (ast.IfExp, ast.BoolOp, ast.Lambda, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
CONSTANT_EXPRESSIONS = (
    *(ast.Constant, ast.Name, ast.Attribute, ast.Tuple, ast.List, ast.Subscript, ast.Slice, ast.Compare),
    *(ast.BinOp, ast.UnaryOp, ast.operator, ast.unaryop, ast.cmpop, ast.expr_context),
)


class Unsliceable(Exception):
    """This forward cannot be continued from the submodule's answer."""


@dataclass(frozen=True)
class Rest:
    """What is left of one method: `run(module, answer, kept)` gives what the method gives.

    `kept` holds the locals `needs` as they were when the submodule was called, in the frame that runs `code`.
    """

    run: Callable[[nn.Module, Any, Mapping[str, Any]], Any]
    needs: tuple[str, ...] = ()
    code: CodeType | None = None


def rests_after(module: nn.Module, child: nn.Module) -> tuple[Rest, ...]:
    """What is left of `module`'s forward after its one call of `child`: one rest per method on the way, inner first.

    Submodules are looked up when they run, so the live model is used. Raises Unsliceable.
    """
    forward = inspect.getattr_static(type(module), "forward")
    if "forward" in vars(module):
        raise Unsliceable("forward was replaced on the instance")
    if forward is nn.Sequential.forward:
        return (_rest_of_sequential(module, child),)
    ways = _ways_to(forward, module, child, depth=0)
    if len(ways) != 1:
        raise Unsliceable(f"the source of forward calls the submodule {len(ways)} times")
    return ways[0]


def _rest_of_sequential(module: nn.Module, child: nn.Module) -> Rest:
    later = _position(module.children(), child) + 1

    def run(sequential: nn.Module, answer: Any, _kept: Mapping[str, Any]) -> Any:
        for part in list(sequential.children())[later:]:
            answer = part(answer)
        return answer

    return Rest(run)


def _ways_to(function: Any, module: nn.Module, child: nn.Module, *, depth: int) -> list[tuple[Rest, ...]]:
    """One way per call of `child` in `function`, in its loops, or else in the methods it hands its work to."""
    source = _Source(function, module)
    rests = [source.rest_after_call(call) for call in source.calls() if source.resolve(call.func) is child]
    rests += [source.rest_after_turn(loop, child) for loop in source.loops_over(child)]
    if rests or depth == MAX_DELEGATION:
        return [(rest,) for rest in rests]
    return [
        (*inner, source.rest_after_call(call))
        for call in source.calls()
        if (method := source.method(call.func)) is not None
        for inner in _ways_to(method, module, child, depth=depth + 1)
    ]


class _Source:
    """The parsed source of one method of one module."""

    def __init__(self, function: Any, module: nn.Module) -> None:
        definition = parse_method(function)
        self.function = function
        self.module = module
        self.body = definition.body
        self.parameters = [argument.arg for argument in [*definition.args.posonlyargs, *definition.args.args]]
        self.locals = {*function.__code__.co_varnames, *function.__code__.co_cellvars} - {self.parameters[0]}

    def calls(self) -> Iterator[ast.Call]:
        """Every call in the method, outer statements first."""
        return (node for statement in self.body for node in ast.walk(statement) if isinstance(node, ast.Call))

    def resolve(self, expression: ast.expr) -> nn.Module | None:
        """The module that `self.a.b`, `self.layers[0]` or `getattr(self.layers, "0")` stands for; runs no code."""
        match expression:
            case ast.Name(id=name):
                return self.module if name == self.parameters[0] else None
            case ast.Attribute(value=owner, attr=key):
                found = self.resolve(owner)
            case ast.Call(func=ast.Name(id="getattr"), args=[owner, ast.Constant(value=key)]):
                found = self.resolve(owner)
            case ast.Subscript(value=owner, slice=ast.Constant(value=key)):
                found = self.resolve(owner)
            case _:
                return None
        return None if found is None else found._modules.get(str(key))

    def method(self, expression: ast.expr) -> FunctionType | None:
        """The method of the module's class that `self.name` stands for; None for anything else. Runs no code."""
        match expression:
            case ast.Attribute(value=ast.Name(id=owner), attr=name) if owner == self.parameters[0]:
                found = inspect.getattr_static(self.module, name, None)
                return found if isinstance(found, FunctionType) and name not in vars(self.module) else None
        return None

    def loops_over(self, child: nn.Module) -> list[ast.For]:
        """`for layer in self.layers:` where one of the layers is `child`."""
        loops = [statement for statement in self.body if isinstance(statement, ast.For)]
        return [loop for loop in loops if any(part is child for part in self._parts(loop))]

    def _parts(self, loop: ast.For) -> list[nn.Module]:
        modules = self.resolve(loop.iter)
        return list(modules) if isinstance(modules, nn.ModuleList | nn.Sequential) else []

    def rest_after_call(self, call: ast.Call) -> Rest:
        """What remains of the method once this call has its answer. Raises Unsliceable."""
        return self._compile(_statements_after(self.body, call))

    def rest_after_turn(self, loop: ast.For, child: nn.Module) -> Rest:
        """What remains of the turn of `child`, the turns that follow, and what stands behind the loop."""
        calls = [
            node
            for statement in loop.body
            for node in ast.walk(statement)
            if isinstance(node, ast.Call) and isinstance(loop.target, ast.Name) and _is_name(node.func, loop.target.id)
        ]
        if len(calls) != 1 or loop.orelse or _contains(loop.body, (ast.Break, ast.Continue, ast.Return)):
            raise Unsliceable("the loop over the submodules does more than call each of them once")
        later = ast.Slice(lower=ast.Constant(_position(self._parts(loop), child) + 1))
        parts = ast.Call(ast.Name("list", ast.Load()), [loop.iter], [])
        turns = copy.copy(loop)
        turns.iter = ast.Subscript(parts, later, ast.Load())
        behind = self.body[self.body.index(loop) + 1 :]
        return self._compile([*_statements_after(loop.body, calls[0]), turns, *behind])

    def _compile(self, statements: list[ast.stmt]) -> Rest:
        tree = ast.parse(f"def {self.function.__name__}({self.parameters[0]}, {ANSWER}, {KEPT}): pass")
        definition = tree.body[0]
        assert isinstance(definition, ast.FunctionDef)
        prelude, needs = self._prelude(read_first(statements) & self.locals)
        definition.body = [*prelude, *statements]
        # Line numbers stay those of the source, so that a traceback out of a rest points at the real forward.
        ast.increment_lineno(ast.fix_missing_locations(tree), self.function.__code__.co_firstlineno - 1)
        compiled = compile(tree, self.function.__code__.co_filename, "exec", dont_inherit=True)
        code = next(constant for constant in compiled.co_consts if isinstance(constant, CodeType))
        return Rest(FunctionType(code, self.function.__globals__), tuple(needs), self.function.__code__)

    def _prelude(self, names: set[str]) -> tuple[list[ast.stmt], list[str]]:
        """Statements that give `names` their values again, and those of them whose values must be kept for it."""
        statements: list[ast.stmt] = []
        needs: list[str] = []
        for name in sorted(names):
            worked_out = self._constant(name)
            if worked_out is None:
                needs.append(name)
                key = ast.Subscript(ast.Name(KEPT, ast.Load()), ast.Constant(name), ast.Load())
                worked_out = [ast.Assign([ast.Name(name, ast.Store())], key)]
            statements += worked_out
        return statements, needs

    def _constant(self, name: str) -> list[ast.stmt] | None:
        """Statements that work `name` out from literals and attributes alone, no tensor computed; None if none do."""
        nodes = [node for statement in self.body for node in ast.walk(statement)]
        stores = [node for node in nodes if _is_name(node, name) and not isinstance(node.ctx, ast.Load)]
        values = [
            statement.value
            for statement in self.body
            if isinstance(statement, ast.Assign) and statement.targets == stores and name not in self.parameters
        ]
        if not values or not _is_constant(values[0]) or any(_mutates(node, name) for node in nodes):
            return None
        parts = [self._constant(part) for part in sorted(_names(values[0]) & self.locals)]
        made_of = [statement for part in parts if part is not None for statement in part]
        assigned = ast.Assign([ast.Name(name, ast.Store())], values[0])
        return None if None in parts else [*made_of, assigned]


def parse_method(function: Any) -> ast.FunctionDef:
    """The definition of a method, from its source. Raises Unsliceable where there is none to rely on."""
    if not isinstance(function, FunctionType) or function.__code__.co_freevars:
        raise Unsliceable("forward is not a plain method")
    try:
        text = textwrap.dedent(inspect.getsource(function))
    except (OSError, TypeError) as error:
        raise Unsliceable("forward has no source") from error
    definition = ast.parse(text).body[0]
    if not isinstance(definition, ast.FunctionDef) or definition.decorator_list:
        raise Unsliceable("forward is decorated, or no def at all")
    if any(_means_another_thing_outside_its_class(node) for node in ast.walk(definition)):
        raise Unsliceable("forward uses private names")
    return definition


def _statements_after(body: list[ast.stmt], call: ast.Call) -> list[ast.stmt]:
    """The statement of `body` that makes `call`, with the answer in its place, and those behind it."""
    index = next(index for index, statement in enumerate(body) if any(node is call for node in ast.walk(statement)))
    statement = body[index]
    if not isinstance(statement, SIMPLE_STATEMENTS) or _contains(body[:index], (ast.Return,)):
        raise Unsliceable("the submodule is called under a condition")
    if any(isinstance(node, CONDITIONAL_EXPRESSIONS) and _contains_node(node, call) for node in ast.walk(statement)):
        raise Unsliceable("the submodule is called under a condition")
    # A deep copy that finds the call already "copied" puts the answer where the call stood.
    answered = copy.deepcopy(statement, {id(call): ast.Name(ANSWER, ast.Load())})
    return [answered, *body[index + 1 :]]


def read_first(statements: list[ast.stmt]) -> set[str]:
    """Names that may be read before `statements` have written them."""
    needed: set[str] = set()
    _follow(statements, set(), needed)
    return needed


def _follow(statements: list[ast.stmt], written: set[str], needed: set[str]) -> set[str]:
    """Add to `needed` what is read before it is certainly written; return what is certainly written at the end."""
    for statement in statements:
        match statement:
            case ast.If(test=test, body=body, orelse=orelse):
                needed |= _names(test) - written
                arms = [(arm, _follow(arm, written, needed)) for arm in (body, orelse)]
                going_on = [after for arm, after in arms if not (arm and isinstance(arm[-1], ast.Return | ast.Raise))]
                written = set.intersection(*going_on) if going_on else written
            case ast.For(target=target, iter=iterable, body=body, orelse=[]):
                needed |= _names(iterable) - written
                _follow(body, written | stored(target), needed)
            case ast.While(test=test, body=body, orelse=[]):
                needed |= _names(test) - written
                _follow(body, written, needed)
            case _ if isinstance(statement, STRAIGHT_STATEMENTS):
                updated = stored(statement.target) if isinstance(statement, ast.AugAssign) else set()
                needed |= (_names(statement) | updated) - written
                written = written | stored(statement)
            case _:
                raise Unsliceable(f"a {type(statement).__name__} statement follows the call")
    return written


def _names(node: ast.AST) -> set[str]:
    return {part.id for part in ast.walk(node) if isinstance(part, ast.Name) and not isinstance(part.ctx, ast.Store)}


def certainly_stored(statement: ast.stmt) -> set[str]:
    """Names that have a new value after `statement` whichever way it goes."""
    return _follow([statement], set(), set())


def stored(node: ast.AST) -> set[str]:
    """Names that are assigned somewhere in `node`."""
    return {part.id for part in ast.walk(node) if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store)}


def _is_name(node: ast.AST, name: str) -> TypeGuard[ast.Name]:
    return isinstance(node, ast.Name) and node.id == name


def _is_constant(expression: ast.expr) -> bool:
    return all(isinstance(node, CONSTANT_EXPRESSIONS) for node in ast.walk(expression))


def _mutates(node: ast.AST, name: str) -> bool:
    """`name[0] = ...`, `name.x = ...`, `name.append(...)`."""
    match node:
        case ast.Subscript(value=owner, ctx=ast.Store()) | ast.Attribute(value=owner, ctx=ast.Store()):
            return _is_name(owner, name)
        case ast.Call(func=ast.Attribute(value=owner)):
            return _is_name(owner, name)
    return False


def _contains(statements: list[ast.stmt], kinds: tuple[type[ast.AST], ...]) -> bool:
    return any(isinstance(node, kinds) for statement in statements for node in ast.walk(statement))


def _contains_node(tree: ast.AST, wanted: ast.AST) -> bool:
    return any(node is wanted for node in ast.walk(tree))


def _means_another_thing_outside_its_class(node: ast.AST) -> bool:
    name = node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""
    return name in (ANSWER, KEPT) or (name.startswith("__") and not name.endswith("__"))


def _position(parts: Iterable[nn.Module], wanted: nn.Module) -> int:
    return next(index for index, part in enumerate(parts) if part is wanted)
