"""Hostile programs: operators that reach files, processes and networks, and code that is no TorchScript."""

from tests.archrepair_core.hostile.archives import (
    ATTRIBUTES,
    FORWARD,
    TRAINING,
    Table,
    archive,
    module,
    pickled,
    program,
    records,
    text,
    with_forward,
)

_WHERE = "__torch__.net.Net.forward"


def expression(code: str) -> bytes:
    """An archive whose forward evaluates this and then answers as usual."""
    return with_forward(f"    _0 = {code}\n{FORWARD}")


def member(code: str) -> bytes:
    """An archive whose class has these lines, two spaces deep."""
    return with_forward(FORWARD, members=code)


def beside(code: str) -> bytes:
    """An archive whose file has these lines after the class."""
    return with_forward(FORWARD, after=code)


def method(name: str, body: str) -> bytes:
    return beside(f"  def {name}(self: __torch__.net.Net,\n    x: Tensor) -> Tensor:\n    {body}\n")


def many_modules(count: int) -> bytes:
    """A module with `count` children of one class, none of them ever called."""
    members = "".join(f"  m{i} : __torch__.net.Leaf\n" for i in range(count))
    leaf = "class Leaf(Module):\n  __parameters__ = []\n  __buffers__ = []\n  training : bool\n"
    leaf += "  def forward(self: __torch__.net.Leaf,\n    x: Tensor) -> Tensor:\n    return x\n"
    children = b"".join(text(f"m{i}") + module(TRAINING, "__torch__.net\nLeaf") for i in range(count))
    code = program(members=members, before=leaf)
    return archive(records(code=code, data=pickled(module(ATTRIBUTES + children))))


OPERATORS: Table = {
    "a file read with aten::from_file": (
        lambda _: expression('torch.from_file("/etc/passwd", False, 100)'), "operator_not_allowed",
        f"aten::from_file in {_WHERE}"),
    "a file created with aten::from_file": (
        lambda canary: expression(f'torch.from_file("{canary.file}", True, 100)'), "operator_not_allowed",
        f"aten::from_file in {_WHERE}"),
    "a file written with aten::save": (
        lambda canary: expression(f'torch.save([x], "{canary.file}")'), "operator_not_allowed",
        f"aten::save in {_WHERE}"),
    "a file written as a method of a value": (
        lambda canary: expression(f'(x).save("{canary.file}")'), "operator_not_allowed", f"aten::save in {_WHERE}"),
    "memory taken with aten::set_": (
        lambda _: expression("torch.set_(x)"), "operator_not_allowed", f"aten::set_ in {_WHERE}"),
    "memory seen with aten::as_strided": (
        lambda _: expression("torch.as_strided(x, [1000000], [1], 0)"), "operator_not_allowed",
        f"aten::as_strided in {_WHERE}"),
    "memory of the heap with aten::resize_": (
        lambda _: expression("torch.resize_(x, [1000000])"), "operator_not_allowed", f"aten::resize_ in {_WHERE}"),
    "gradients switched off for everybody": (
        lambda _: expression("torch.set_grad_enabled(False)"), "operator_not_allowed", "aten::set_grad_enabled"),
    "prim::rpc_sync": (
        lambda canary: expression(f'ops.prim.rpc_sync("127.0.0.1:{canary.port}", "f", (x,))'), "operator_not_allowed",
        f"prim::rpc_sync in {_WHERE}"),
    "c10d::allreduce_": (
        lambda _: expression("ops.c10d.allreduce_([x])"), "operator_not_allowed", f"c10d::allreduce_ in {_WHERE}"),
    "an operator of an unknown library": (
        lambda _: expression("ops.evil.run(x)"), "operator_not_allowed", f"evil::run in {_WHERE}"),
    "an operator of the compiler": (
        lambda _: expression("ops.inductor._alloc_from_pool(x, 0, 6, [1000], [1])"), "operator_not_allowed",
        "inductor::_alloc_from_pool"),
    "prim::PythonOp": (
        lambda _: expression("ops.prim.PythonOp(x)"), "operator_not_allowed", f"prim::PythonOp in {_WHERE}"),
    "^python_value": (lambda _: expression("^python_value()(x)"), "unsafe_code", "SyntaxError"),
    "prim::Print": (lambda _: expression("print(x)"), "unsafe_code", f"name 'print' in {_WHERE}"),
    "prim::fork": (lambda _: expression("fork(x)"), "unsafe_code", f"name 'fork' in {_WHERE}"),
    "quantized::linear": (
        lambda _: expression("ops.quantized.linear(x, x, 1.0, 0)"), "quantized", "quantized::linear"),
}  # fmt: skip

CONSTRUCTS: Table = {
    "__setstate__ that runs while loading": (
        lambda canary: method("__setstate__", f'torch.save([x], "{canary.file}")\n    return x'), "unsafe_code",
        "Net.__setstate__"),
    "a torchbind attribute": (
        lambda _: beside("class Evil(Module):\n  worker : __torch__.torch.classes.dist_rpc.WorkerInfo\n"),
        "operator_not_allowed",
        "torchbind class __torch__.torch.classes.dist_rpc.WorkerInfo"),
    "a class that calls itself torchbind": (
        lambda _: archive(records() | {"code/__torch__/torch/classes/evil.py": b"class X(Module):\n  pass\n"}),
        "unsafe_code", "torchbind"),
    "forward hooks": (lambda _: member('  __forward_hooks__ = ["peek", ]\n'), "unsafe_code", "forward hook 'peek'"),
    "forward pre-hooks": (lambda _: member('  __forward_pre_hooks__ = ["peek", ]\n'), "unsafe_code", "'peek'"),
    "an interface": (
        lambda _: beside("class I(Interface):\n  def forward(self, x: Tensor) -> Tensor:\n    pass\n"), "unsafe_code",
        "__torch__.net.I"),
    "a class of Python's": (lambda _: beside("class I(Exception):\n  pass\n"), "unsafe_code", "__torch__.net.I"),
    "a class twice": (lambda _: archive(records(code=program() + program())), "unsafe_code", "second definition"),
    "a module without a training flag": (
        lambda _: archive(records(code=program().replace("  training : bool\n  layer", "  layer"))), "frozen_graph",
        "__torch__.net.Net"),
    "a decorator": (
        lambda _: beside("@torch.jit.unused\ndef f(x: Tensor) -> Tensor:\n  return x\n"), "unsafe_code", "decorator"),
    "a decorator of a class": (lambda _: beside("@exec\nclass I(Module):\n  pass\n"), "unsafe_code", "__torch__.net.I"),
    "an import": (
        lambda canary: beside(f"import os\nos.system('touch {canary.file}')\n"), "unsafe_code", "top-level Import"),
    "an import in forward": (lambda _: with_forward(f"    import os\n{FORWARD}"), "unsafe_code", "Import syntax"),
    "exec": (lambda canary: expression(f'exec("open(\'{canary.file}\', \'w\')")'), "unsafe_code", "name 'exec'"),
    "eval in a default argument": (
        lambda canary: beside(
            f"def f(x: Tensor=eval('open(\"{canary.file}\", 1)')) -> Tensor:\n  return x\n"),
        "unsafe_code", "name 'eval'"),
    "__import__": (lambda _: expression("__import__('os')"), "unsafe_code", "name '__import__'"),
    "attributes with two underscores": (
        lambda _: expression("(x).__class__.__bases__"), "operator_not_allowed", "aten::__class__"),
    "a computed getattr": (lambda _: expression("getattr(x, (x).name)"), "unsafe_code", "computed getattr"),
    "a name from nowhere": (lambda _: expression("os.system"), "unsafe_code", "name 'os'"),
    "a call of what a string names": (lambda _: expression("globals()['x']"), "unsafe_code", "name 'globals'"),
    "a name that only looks like torch": (lambda _: expression("tоrch.relu(x)"), "unsafe_code", "non-ASCII"),
    "letters that Python folds": (lambda _: expression("ｅｘｅｃ(x)"), "unsafe_code", "non-ASCII"),
    "an f-string": (lambda _: expression("f'{exec(1)}'"), "unsafe_code", "JoinedStr syntax"),
    "a lambda": (lambda _: expression("(lambda: x)()"), "unsafe_code", "Lambda syntax"),
    "a comprehension": (lambda _: expression("[y for y in [x]]"), "unsafe_code", "ListComp syntax"),
    "an assignment in an expression": (lambda _: expression("(y := x)"), "unsafe_code", "NamedExpr syntax"),
    "an attribute that is assigned in a call": (
        lambda _: expression("torch.relu(**x)"), "unsafe_code", "a ** argument"),
    "a starred argument": (lambda _: expression("torch.relu(*x)"), "unsafe_code", "Starred syntax"),
    "global": (lambda _: with_forward(f"    global weight\n{FORWARD}"), "unsafe_code", ""),
    "with that names its value": (
        lambda _: with_forward(f"    with x as y:\n      pass\n{FORWARD}"), "unsafe_code", "names its value"),
    "a false torch.no_grad": (
        lambda canary: archive(records() | {"code/__torch__/torch/autograd/grad_mode.py": (
            "class no_grad:\n  def __enter__(self: __torch__.torch.autograd.grad_mode.no_grad) -> NoneType:\n"
            f"    _0 = torch.save([1], \"{canary.file}\")\n    return None\n").encode()}),
        "operator_not_allowed", "aten::save in __torch__.torch.autograd.grad_mode.no_grad.__enter__"),
    "try": (lambda _: with_forward(f"    try:\n      pass\n    except:\n      pass\n{FORWARD}"), "unsafe_code", "Try"),
    "del": (lambda _: with_forward(f"    del x\n{FORWARD}"), "unsafe_code", "Delete syntax"),
    "a coroutine": (
        lambda _: beside("async def f(x: Tensor) -> Tensor:\n  return x\n"), "unsafe_code", "AsyncFunctionDef"),
    "a generator": (lambda _: expression("(yield x)"), "unsafe_code", "Yield syntax"),
    "a function in a function": (
        lambda _: with_forward(f"    def f(x):\n      return x\n{FORWARD}"), "unsafe_code", "FunctionDef syntax"),
    "torch as a variable": (lambda _: with_forward(f"    torch = x\n{FORWARD}"), "unsafe_code", "variable 'torch'"),
    "code at the top of a file": (lambda _: beside("x = 1\n"), "unsafe_code", "top-level Assign"),
    "code in a class body": (lambda _: member("  x = open('/etc/passwd')\n"), "unsafe_code", "class-level Assign"),
    "a constant of a million digits": (lambda _: expression("9" * 1_000_000), "unsafe_code", "SyntaxError"),
    "bytes": (lambda _: expression("b'x'"), "unsafe_code", "constant"),
    "an escape only Python knows": (lambda _: expression(r"'\d'"), "unsafe_code", "in __torch__.net"),
    "zero bytes": (lambda _: archive(records(code=b"\x00" * 100)), "unsafe_code", "in __torch__.net"),
    "code that is not UTF-8": (lambda _: archive(records(code=b"#\xff\xfe\n" + program().encode())), "unsafe_code", ""),
    "another encoding declared": (
        lambda _: archive(records(code="# -*- coding: utf-7 -*-\n" + program().replace("=", "+AD0-"))), "unsafe_code",
        "in __torch__.net"),
    "a hundred thousand parentheses": (
        lambda _: expression("(" * 100_000 + "x" + ")" * 100_000), "unsafe_code", "in __torch__.net"),
    "a hundred thousand signs": (lambda _: expression("-" * 100_000 + "1"), "unsafe_code", "in __torch__.net"),
    "a hundred thousand attributes": (
        lambda _: expression("x" + ".T" * 100_000), "unsafe_code", "in __torch__.net"),
    "a hundred thousand modules": (lambda _: many_modules(100_000), "archive_too_large", "net.py"),
    "a hundred levels of if": (
        lambda _: with_forward("".join(f"{'  ' * (2 + i)}if True:\n" for i in range(100)) + "  " * 102 + "pass\n"
                               + FORWARD), "unsafe_code", "IndentationError"),
}  # fmt: skip
