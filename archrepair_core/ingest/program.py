"""The program text of an archive, read with Python's own parser: a closed grammar over allow-listed names.

Nothing is compiled or imported. Findings are collected over all files, so that one refusal names every operator.
"""

import ast
import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from archrepair_core.errors import ModelError
from archrepair_core.ingest.allowlist import (
    BASE_CLASSES,
    CONTEXT_CLASS,
    CONTEXT_OPERATOR,
    DOTTED_NAMES,
    FORBIDDEN_METHODS,
    ROOT_NAMES,
    TYPE_NAMES,
    VALUE_NAMES,
)

_STATEMENTS = (ast.AnnAssign, ast.Assign, ast.Expr, ast.For, ast.If, ast.Pass, ast.Return, ast.While, ast.With)
_EXPRESSIONS = (
    *(ast.Attribute, ast.Call, ast.Constant, ast.Dict, ast.List, ast.Name, ast.Slice, ast.Subscript, ast.Tuple),
    *(ast.Load, ast.Store, ast.USub, ast.UnaryOp, ast.keyword, ast.withitem),
)
_LISTS_OF_NAMES = frozenset({"__parameters__", "__buffers__", "__forward_hooks__", "__forward_pre_hooks__"})
_CONSTANT = re.compile(r"CONSTANTS\.c[0-9]{1,6}")
_STRING = re.compile(r"[\n\t\x20-\x7e]*")
_ATTRIBUTE = re.compile(r"[\x20-\x7e]{1,300}")
# Reached through a value, not declared by any class: enum members and `tensor.tolist()`.
_VALUE_ATTRIBUTES = frozenset({"name", "value", "tolist"})
_TORCHBIND = "__torch__.torch.classes"
_QUANTIZED = re.compile(r"(_?quantized(_decomposed)?|sparse)::|aten::(de)?quantize")
_OPTIMIZED = re.compile(r"prim::\w*mkldnn\w*|aten::to_mkldnn|mkldnn(_prepacked)?::", re.IGNORECASE)


@dataclass(frozen=True)
class ClassSource:
    """A class of the archive: `base` is Module, NamedTuple or Enum; `attributes` maps names to declared types."""

    base: str
    parameters: frozenset[str]
    attributes: Mapping[str, ast.expr]


@dataclass(frozen=True)
class ProgramSummary:
    """What the program text declares, and what of it is not allowed (`constructs`; `operators` with their places)."""

    classes: Mapping[str, ClassSource]
    constructs: tuple[str, ...]
    operators: Mapping[str, tuple[str, ...]]

    @property
    def is_quantized(self) -> bool:
        """Whether the program calls operators of int8 or otherwise packed weights."""
        return any(_QUANTIZED.match(name) for name in self.operators)

    @property
    def is_optimized(self) -> bool:
        """Whether the program was rewritten for inference, its weights packed for one kind of machine."""
        return any(_OPTIMIZED.match(name) for name in self.operators)


@dataclass
class _Findings:
    """Collected while walking; names are resolved when every file has been seen, as files refer to each other."""

    classes: dict[str, ClassSource] = field(default_factory=dict)
    functions: set[str] = field(default_factory=set)
    declared: set[str] = field(default_factory=set)
    constructs: dict[str, None] = field(default_factory=dict)
    operators: dict[str, dict[str, None]] = field(default_factory=dict)
    attributes: dict[str, dict[str, None]] = field(default_factory=dict)
    references: dict[str, dict[str, None]] = field(default_factory=dict)

    def refuse(self, construct: str, where: str) -> None:
        """Note what must not be in a model, and where it is; each once."""
        self.constructs[f"{construct} in {where}"] = None


def check_program(sources: Mapping[str, str]) -> ProgramSummary:
    """Checks all files (dotted module name to text); ModelError `unsafe_code` if a file is not even Python."""
    findings = _Findings()
    for module, text in sources.items():
        _check_module(_parse(text, module), module, findings)
    _resolve(findings)
    operators = {name: tuple(places) for name, places in sorted(findings.operators.items())}
    return ProgramSummary(findings.classes, tuple(findings.constructs), operators)


def reprint(text: str, module: str) -> str:
    """The same program printed from its syntax tree: what Python read is what TorchScript will read."""
    try:
        return ast.unparse(_parse(text, module)) + "\n"
    except RecursionError as error:
        raise _unsafe_code([f"too deeply nested code in {module}"]) from error


def refuse_findings(summary: ProgramSummary) -> None:
    """Raises ModelError `unsafe_code` or `operator_not_allowed`, naming everything at once; returns if clean."""
    if summary.constructs:
        raise _unsafe_code([*summary.constructs, *(f"operator {name}" for name in summary.operators)])
    if summary.operators:
        raise operator_not_allowed(summary.operators)


def operator_not_allowed(operators: Mapping[str, tuple[str, ...]]) -> ModelError:
    """The error that lists every operator outside the allow-list with the methods that use it."""
    listing = "; ".join(f"{name} in {', '.join(places[:5])}" for name, places in sorted(operators.items()))
    hint = "Remove these calls before torch.jit.script, or ask for the operators to be reviewed and added."
    return ModelError("operator_not_allowed", f"Operators that are not allowed: {listing}.", hint=hint)


def _unsafe_code(constructs: list[str]) -> ModelError:
    shown = "; ".join(constructs[:20]) + ("; ..." if len(constructs) > 20 else "")
    hint = "Only nn.Module classes with compiled methods, NamedTuples and Enums are accepted: no __setstate__, hooks, "
    hint += "torchbind objects, other script classes, fork or rpc."
    return ModelError("unsafe_code", f"The archive's code is not allowed: {shown}.", hint=hint)


def _parse(text: str, module: str) -> ast.Module:
    if not text.isascii():
        raise _unsafe_code([f"non-ASCII text in {module}"])
    try:
        with warnings.catch_warnings():
            # Python only warns about "\d"; the two parsers would disagree about such a string.
            warnings.simplefilter("error")
            tree = ast.parse(text)
    except (SyntaxError, Warning, ValueError, RecursionError, MemoryError) as error:
        raise _unsafe_code([f"{type(error).__name__} in {module}"]) from error
    return tree


def _check_module(tree: ast.Module, module: str, findings: _Findings) -> None:
    for statement in tree.body:
        if isinstance(statement, ast.ClassDef):
            _check_class(statement, f"{module}.{statement.name}", findings)
        elif isinstance(statement, ast.FunctionDef):
            findings.functions.add(f"{module}.{statement.name}")
            _check_function(statement, f"{module}.{statement.name}", findings)
        else:
            findings.refuse(f"top-level {type(statement).__name__}", module)


def _check_class(definition: ast.ClassDef, name: str, findings: _Findings) -> None:
    base = definition.bases[0] if len(definition.bases) == 1 else None
    base_name = base.id if isinstance(base, ast.Name) and base.id in BASE_CLASSES else ""
    is_plain = bool(base_name) or (_is_context(name) and not definition.bases)
    if not is_plain or definition.keywords or definition.decorator_list:
        findings.refuse("a class that is no Module, NamedTuple or Enum", name)
    if name in findings.classes or name.startswith(_TORCHBIND):
        findings.refuse("a second definition or torchbind class", name)
    lists: dict[str, list[str]] = {}
    attributes: dict[str, ast.expr] = {}
    for statement in definition.body:
        if isinstance(statement, ast.FunctionDef):
            _check_method(statement, name, findings)
        elif not isinstance(statement, ast.Pass):
            _check_member(statement, name, base=base_name, lists=lists, attributes=attributes, findings=findings)
    for hook in lists.get("__forward_hooks__", []) + lists.get("__forward_pre_hooks__", []):
        findings.refuse(f"forward hook {hook!r}", name)
    findings.declared |= attributes.keys()
    findings.classes[name] = ClassSource(base_name, frozenset(lists.get("__parameters__", [])), attributes)


def _check_method(function: ast.FunctionDef, owner: str, findings: _Findings) -> None:
    where = f"{owner}.{function.name}"
    if function.name in FORBIDDEN_METHODS:
        findings.refuse(f"method {function.name} (runs while loading)", where)
    findings.declared.add(function.name)
    _check_function(function, where, findings)


def _check_member(
    statement: ast.stmt,
    owner: str,
    *,
    base: str,
    lists: dict[str, list[str]],
    attributes: dict[str, ast.expr],
    findings: _Findings,
) -> None:
    """One line of a class body that is no method: `x : T`, `__annotations__["0"] = T`, a name list, an enum member."""
    match statement:
        case ast.Assign(targets=[ast.Name(id=name)], value=ast.List(elts=items)) if name in _LISTS_OF_NAMES:
            lists[name] = [ast.literal_eval(item) for item in items if isinstance(item, ast.Constant)]
        case ast.Assign(targets=[ast.Name(id="__annotations__")], value=ast.List(elts=[]) | ast.Dict(keys=[])):
            return
        case ast.Assign(targets=[ast.Name(id=name)], value=value) if base == "Enum":
            attributes[name] = value
            _check_nodes(value, owner, frozenset(), findings)
        case ast.AnnAssign(target=ast.Name(id=name), annotation=annotation, value=None):
            _declare(name, annotation, owner=owner, attributes=attributes, findings=findings)
        case ast.AnnAssign(target=ast.Name(id=name), annotation=annotation, value=ast.expr() as value):
            # `x : Final[T] = 3` is a constant of the class: its instances hold no value for it.
            _declare(name, annotation, owner=owner, attributes={}, findings=findings)
            _check_nodes(value, owner, frozenset(), findings)
        case ast.Assign(
            targets=[ast.Subscript(value=ast.Name(id="__annotations__"), slice=ast.Constant(value=str(name)))],
            value=annotation,
        ):
            _declare(name, annotation, owner=owner, attributes=attributes, findings=findings)
        case _:
            findings.refuse(f"class-level {type(statement).__name__}", owner)


def _declare(
    name: str, annotation: ast.expr, *, owner: str, attributes: dict[str, ast.expr], findings: _Findings
) -> None:
    if not _ATTRIBUTE.fullmatch(name) or name in attributes:
        findings.refuse(f"attribute {name!r}", owner)
    _check_nodes(annotation, owner, frozenset(), findings)
    findings.declared.add(name)
    attributes[name] = annotation


def _check_function(function: ast.FunctionDef, where: str, findings: _Findings) -> None:
    arguments = function.args
    if function.decorator_list:
        findings.refuse("a decorator", where)
    if arguments.posonlyargs or arguments.kwonlyargs or arguments.vararg or arguments.kwarg:
        findings.refuse("a special kind of argument", where)
    names = {argument.arg for argument in arguments.args}
    names |= {n.id for n in ast.walk(function) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    for name in names & ROOT_NAMES:
        findings.refuse(f"local variable {name!r}", where)
    signature = [*arguments.defaults, function.returns, *(argument.annotation for argument in arguments.args)]
    for node in signature:
        if node is not None:
            _check_nodes(node, where, frozenset(), findings)
    for statement in function.body:
        _check_nodes(statement, where, frozenset(names), findings)


def _check_nodes(root: ast.AST, where: str, known: frozenset[str], findings: _Findings) -> None:
    """Every node below `root`, with a stack of our own: the nesting depth is the attacker's choice."""
    stack = [root]
    while stack:
        node = stack.pop()
        if isinstance(node, _STATEMENTS + _EXPRESSIONS):
            stack.extend(_check_node(node, where, known, findings))
        else:
            findings.refuse(f"{type(node).__name__} syntax", where)


def _check_node(node: ast.AST, where: str, known: frozenset[str], findings: _Findings) -> Iterator[ast.AST]:
    """Checks one node and yields the children still to check."""
    match node:
        case ast.Attribute():
            yield from _check_attribute(node, where, findings)
            return
        case ast.Name(id=name):
            if name not in known and name not in VALUE_NAMES and name not in TYPE_NAMES:
                findings.refuse(f"name {name!r}", where)
        case ast.Constant(value=value):
            if not _is_plain(value):
                findings.refuse(f"constant {str(value)[:40]!r}", where)
        case ast.Call(func=ast.Name(id="getattr"), args=[_, ast.Constant(value=str(name))]):
            findings.attributes.setdefault(name, {})[where] = None
        case ast.Call(func=ast.Name(id="getattr")):
            findings.refuse("computed getattr", where)
        case ast.Expr(value=value) if not isinstance(value, ast.Call):
            findings.refuse("a bare expression", where)
        case ast.For(orelse=[_, *_]) | ast.While(orelse=[_, *_]):
            findings.refuse("a loop with else", where)
        case ast.withitem(optional_vars=ast.expr()):
            findings.refuse("a with statement that names its value", where)
        case ast.keyword(arg=None):
            findings.refuse("a ** argument", where)
    yield from ast.iter_child_nodes(node)


def _is_plain(value: object) -> bool:
    if isinstance(value, str):
        return _STRING.fullmatch(value) is not None
    if isinstance(value, int):
        return abs(value) <= 1 << 63
    return value is None or isinstance(value, float)


def _check_attribute(node: ast.Attribute, where: str, findings: _Findings) -> Iterator[ast.AST]:
    path = [node.attr]
    value: ast.expr = node.value
    while isinstance(value, ast.Attribute):
        path.append(value.attr)
        value = value.value
    if not (isinstance(value, ast.Name) and value.id in ROOT_NAMES):
        for name in path:
            findings.attributes.setdefault(name, {})[where] = None
        yield value
        return
    dotted = ".".join([value.id, *reversed(path)])
    if value.id == "__torch__":
        findings.references.setdefault(dotted, {})[where] = None
    elif dotted == CONTEXT_OPERATOR and _is_context(where.rpartition(".")[0]):
        return
    elif dotted not in DOTTED_NAMES and not _CONSTANT.fullmatch(dotted):
        findings.operators.setdefault(_operator_name(dotted), {})[where] = None


def _is_context(class_name: str) -> bool:
    return CONTEXT_CLASS.fullmatch(class_name) is not None


def _operator_name(dotted: str) -> str:
    """`ops.ns.name` -> `ns::name`, `torch.name` -> `aten::name`: the names torch prints in graphs."""
    root, _, rest = dotted.partition(".")
    if root == "torch":
        return f"aten::{rest}"
    namespace, _, name = rest.partition(".")
    return f"{namespace}::{name}" if root == "ops" and name else dotted


def _resolve(findings: _Findings) -> None:
    """Names of other files and attributes, now that every definition is known."""
    enums = [(name, source) for name, source in findings.classes.items() if source.base == "Enum"]
    known = findings.functions | findings.classes.keys()
    known |= {f"{name}.__new__" for name in findings.classes if _is_context(name)}
    known |= {f"{name}.{member}" for name, source in enums for member in source.attributes}
    for name, places in findings.references.items():
        if name.startswith(_TORCHBIND):
            kind = "quantized::" if name.startswith(f"{_TORCHBIND}.quantized") else "torchbind class "
            findings.operators.setdefault(kind + name, {}).update(places)
        elif name not in known:
            findings.refuse(f"reference to undefined {name!r}", next(iter(places)))
    for name, places in findings.attributes.items():
        # TorchScript resolves `x.save(...)` on any value to the operator aten::save.
        if name not in findings.declared and name not in _VALUE_ATTRIBUTES:
            findings.operators.setdefault(f"aten::{name}", {}).update(places)
