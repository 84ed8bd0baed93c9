import ast

import pytest

from archrepair_core.errors import ModelError
from archrepair_core.ingest.program import check_program, refuse_findings, reprint

MODULE = """
class Net(Module):
  __parameters__ = ["weight", ]
  __buffers__ = []
  weight : Tensor
  training : bool
  scale : Final[float] = 0.5
  __annotations__["0"] = __torch__.other.___torch_mangle_3.Block
  def forward(self: __torch__.Net,
    x: Tensor) -> Tensor:
    _0 = getattr(self, "0")
    weight = self.weight
    a, b, = torch.size(x)[0], 1
    if torch.gt(a, -1):
      y = torch.mul((_0).forward(x, ), weight)
    else:
      y = torch.add(x, CONSTANTS.c0, alpha=1)
    for i in range(3):
      y0 = annotate(List[int], [])
    ops.prim.RaiseException("bad", "builtins.ValueError")
    return __torch__.free(y, )
def free(x: Tensor) -> Tensor:
  return torch.relu(x)
"""
OTHER = "class Block(Module):\n  training : bool\n  def forward(self, x: Tensor) -> Tensor:\n    return x\n"


def problems(method_body: str, **files: str) -> ModelError:
    text = f"class Net(Module):\n  def forward(self, x: Tensor) -> Tensor:\n    {method_body}\n"
    return refusal({"__torch__": text, **files})


def refusal(sources: dict[str, str]) -> ModelError:
    with pytest.raises(ModelError) as caught:
        refuse_findings(check_program(sources))
    return caught.value


def test_what_torch_prints_is_accepted_with_its_declarations():
    program = check_program({"__torch__": MODULE, "__torch__.other.___torch_mangle_3": OTHER})
    refuse_findings(program)
    net = program.classes["__torch__.Net"]
    assert net.base == "Module"
    assert net.parameters == {"weight"}
    assert list(net.attributes) == ["weight", "training", "0"], "constants are no attributes of an instance"
    assert not program.is_quantized


def test_the_reprinted_program_means_the_same_and_is_stable():
    printed = reprint(MODULE, "__torch__")
    assert ast.dump(ast.parse(printed)) == ast.dump(ast.parse(MODULE))
    assert reprint(printed, "__torch__") == printed


def test_all_operators_and_all_their_methods_are_named_at_once():
    text = """
class Net(Module):
  def forward(self, x: Tensor) -> Tensor:
    y = torch.from_file("/etc/passwd", False, 10)
    ops.aten.save([x], "/tmp/x")
    return y
  def other(self, x: Tensor) -> Tensor:
    return torch.from_file("/etc/passwd", False, 10)
def free(x: Tensor) -> Tensor:
  return ops.inductor._alloc_from_pool(x)
"""
    error = refusal({"__torch__": text})
    assert error.code == "model.operator_not_allowed"
    assert "aten::from_file in __torch__.Net.forward, __torch__.Net.other" in error.detail
    assert "aten::save in __torch__.Net.forward" in error.detail
    assert "inductor::_alloc_from_pool in __torch__.free" in error.detail


def test_an_operator_called_as_a_method_of_a_value_is_found():
    assert "aten::save" in problems('(x).save("/tmp/x")').detail
    assert "aten::set_" in problems("return x.set_").detail


@pytest.mark.parametrize(
    "body",
    [
        "y = torch",
        "y = ops.aten",
        "torch = x",
        "return torch.autograd.grad(x)",
        "return CONSTANTS.c0.data_ptr",
        "CONSTANTS",
    ],
)
def test_namespaces_cannot_be_aliased_or_shadowed(body):
    assert problems(body).code in ("model.unsafe_code", "model.operator_not_allowed")


@pytest.mark.parametrize(
    ("body", "word"),
    [
        ("return fork(x)", "fork"),
        ("return open(x)", "open"),
        ("return __import__(x)", "__import__"),
        ("return getattr(x, y)", "computed getattr"),
        ("return [i for i in x]", "ListComp"),
        ("return (lambda: x)()", "Lambda"),
        ("import os", "Import"),
        ("with x as y:\n      pass", "a with statement that names its value"),
        ("def g():\n      pass", "FunctionDef"),
        ("return f'{x}'", "JoinedStr"),
        ("return '\\x00'", "constant"),
        ("return b'a'", "constant"),
        ("return 99999999999999999999999", "constant"),
        ("return __torch__.nowhere(x)", "undefined"),
        ("'a docstring'", "bare expression"),
        ("try:\n      pass\n    except:\n      pass", "Try"),
        ("global x", "Global"),
        ("return torch.relu(**x)", "** argument"),
        ("while x:\n      pass\n    else:\n      pass", "else"),
    ],
)
def test_syntax_outside_the_grammar_is_named_with_its_method(body, word):
    error = problems(body)
    assert error.code == "model.unsafe_code"
    assert word in error.detail
    assert "__torch__.Net.forward" in error.detail


@pytest.mark.parametrize("name", ["__setstate__", "__getstate__", "__del__"])
def test_methods_that_run_while_loading_are_refused(name):
    error = refusal({"__torch__": f"class Net(Module):\n  def {name}(self, x: Tensor) -> NoneType:\n    return None\n"})
    assert error.code == "model.unsafe_code"
    assert f"__torch__.Net.{name}" in error.detail


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("class A:\n  x : int\n", "no Module"),
        ("class A(Interface):\n  x : int\n", "no Module"),
        ("class A(Module, Enum):\n  x : int\n", "no Module"),
        ("class A(Module):\n  __forward_pre_hooks__ = ['peek']\n", "forward hook 'peek'"),
        ("@torch.relu\nclass A(Module):\n  x : int\n", "no Module"),
        ("class A(Module):\n  @torch.relu\n  def f(self):\n    return 1\n", "decorator"),
        ("class A(Module):\n  def f(self, *a):\n    return 1\n", "special kind"),
        ("class A(Module):\n  x : int\n  x : Tensor\n", "attribute 'x'"),
        ("class A(Module):\n  pass\nclass A(Module):\n  pass\n", "second definition"),
        ("x = 1\n", "top-level Assign"),
        ("class A(Module):\n  x : Future[int]\n", "Future"),
        ("def f(x: Tensor) -> Tensor:\n  return é\n", "non-ASCII"),
        ("def f(:\n", "SyntaxError"),
        ("def f():\n  return '\\d'\n", "SyntaxError"),
        ("def f():\n  return " + "(" * 5000 + "\n", "Error"),
        ("def f():\n  return " + "-" * 100_000 + "1\n", "Error"),
        ("def f():\n  return 1\x00\n", "Error"),
    ],
)
def test_definitions_outside_the_grammar_are_refused(text, word):
    error = refusal({"__torch__": text})
    assert error.code == "model.unsafe_code"
    assert word in error.detail


def test_torchbind_classes_are_refused_by_name():
    error = refusal({"__torch__": "class A(Module):\n  x : __torch__.torch.classes.dist_rpc.WorkerInfo\n"})
    assert "torchbind class __torch__.torch.classes.dist_rpc.WorkerInfo in __torch__.A" in error.detail


def test_quantized_and_optimized_programs_are_recognised():
    body = "def f(x: Tensor) -> Tensor:\n  return ops.{}(x)\n"
    assert check_program({"__torch__": body.format("quantized.linear")}).is_quantized
    assert check_program({"__torch__": body.format("prim.ConstantMKLDNNTensor")}).is_optimized


def test_deeply_nested_attributes_are_checked_without_recursion():
    error = problems("return x" + ".a" * 3000)
    assert error.code in ("model.unsafe_code", "model.operator_not_allowed")
