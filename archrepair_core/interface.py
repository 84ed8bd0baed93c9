"""How a customer's model is asked and read: the type its input has, and which of its outputs are the logits.

Everything after ingest speaks with a classifier from float32 images to logits [N, K]. `adapt_` makes the editable
twin one, by two hooks on its root, and `restore_` makes it the customer's again: same outputs, same number format.
"""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from archrepair_core.errors import ModelError, SpecError
from archrepair_core.layout import lay_back_
from archrepair_core.modes import eval_mode

AUTO = "auto"
# The whole answer, where it is a tensor and has no parts to name.
WHOLE = "output"
_REDUCED = (torch.float16, torch.bfloat16)
# What a forward raises when weights of one type meet activations of another.
_TYPE_ERRORS = (RuntimeError, TypeError, ValueError)


@dataclass(frozen=True)
class Interface:
    """`output` is the path of the logits in the answer (`logits`, `0`, `0.logits`), `dtype` that of the file's input.

    `dtypes` are those of the file's floating tensors by `state_dict` key, `strides` those of its four-dimensional ones.
    """

    output: str
    dtype: torch.dtype
    dtypes: Mapping[str, torch.dtype]
    strides: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


def tensors_by_path(answer: Any, path: str = "") -> dict[str, Tensor]:
    """The tensors of nested tuples, named tuples, lists and dicts, by dotted path; a lone tensor is `output`."""
    if isinstance(answer, Tensor):
        return {path or WHOLE: answer}
    if isinstance(answer, dict):
        items = list(answer.items())
    elif isinstance(answer, tuple) and hasattr(answer, "_fields"):
        items = list(zip(answer._fields, answer, strict=True))
    elif isinstance(answer, list | tuple):
        items = list(enumerate(answer))
    else:
        return {}
    prefix = f"{path}." if path else ""
    return {key: tensor for name, item in items for key, tensor in tensors_by_path(item, f"{prefix}{name}").items()}


def find_logits(answer: Any, asked: str, *, num_inputs: int) -> str:
    """The path of the logits in `answer`: `asked`, or for `auto` the only floating tensor [num_inputs, K ≥ 2].

    Raises ModelError `output_not_logits` or `output_ambiguous`, SpecError `unknown_output`; each names what there is.
    """
    tensors = tensors_by_path(answer)
    candidates = [path for path, tensor in tensors.items() if _is_logits(tensor, num_inputs)]
    if asked == AUTO and len(candidates) == 1:
        return candidates[0]
    if asked == AUTO and candidates:
        raise ModelError(
            "output_ambiguous",
            f"{len(candidates)} outputs of the model could be the logits: {_listed(tensors, candidates)}",
            hint=f"say which in model.output, e.g. {candidates[0]!r}",
        )
    if asked != AUTO and asked not in tensors:
        raise SpecError(
            "unknown_output",
            f"model.output is {asked!r}, but the model's outputs are {_listed(tensors, list(tensors))}",
            hint="name one of them, or leave model.output at 'auto'",
        )
    if asked not in candidates:
        returned = _listed(tensors, list(tensors)) or f"a {type(answer).__name__} without tensors"
        raise ModelError(
            "output_not_logits",
            f"for {num_inputs} images the model returns {returned}, not logits [{num_inputs}, classes]",
            hint="export a classifier whose forward returns one row of logits per image, alone or among its outputs",
        )
    return asked


def _is_logits(tensor: Tensor, num_inputs: int) -> bool:
    return tensor.is_floating_point() and tensor.ndim == 2 and tensor.shape[0] == num_inputs and tensor.shape[1] >= 2


def _listed(tensors: Mapping[str, Tensor], paths: list[str]) -> str:
    return ", ".join(
        f"{path!r} ({str(tensors[path].dtype).removeprefix('torch.')} {list(tensors[path].shape)})" for path in paths
    )


def refuse_several_inputs(reference: nn.Module) -> None:
    """A dataset has one input per item. Raises ModelError `needs_several_inputs`, naming the model's arguments."""
    names = _required_arguments(reference)
    if len(names) != 1:
        taken = f"{len(names)} inputs: {', '.join(names)}" if names else "no input"
        raise ModelError(
            "needs_several_inputs",
            f"the model's forward needs {taken}; a dataset has one input per item",
            hint="wrap the model in a module that takes the image alone and supplies the rest, and export that",
        )


def _required_arguments(reference: nn.Module) -> list[str]:
    if isinstance(reference, torch.jit.ScriptModule):
        arguments = reference._c._get_method("forward").schema.arguments[1:]
        return [argument.name for argument in arguments if not argument.has_default_value()]
    parameters = inspect.signature(reference.forward).parameters.values()
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [p.name for p in parameters if p.default is p.empty and p.kind not in variadic]


def input_dtype(model: nn.Module) -> torch.dtype:
    """The type a model's input has: that of its first floating parameter."""
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)


def read_interface(reference: nn.Module, answer: Any, *, asked: str, num_inputs: int) -> Interface:
    """The interface of the file, from its answer to `num_inputs` inputs. Raises as `find_logits` does."""
    floating = {name: tensor for name, tensor in reference.state_dict().items() if tensor.is_floating_point()}
    return Interface(
        find_logits(answer, asked, num_inputs=num_inputs),
        input_dtype(reference),
        dtypes={name: tensor.dtype for name, tensor in floating.items()},
        strides={name: tensor.stride() for name, tensor in floating.items() if tensor.dim() == 4},
    )


def adapt_(model: nn.Module, interface: Interface, inputs: Tensor) -> nn.Module:
    """Make `model` a classifier from float32 images to logits, in place.

    float16 and bfloat16 weights become float32, exactly, where the model then still runs on `inputs`: steps of
    training are smaller than their last bit. float64 stays. Batch statistics and hooks survive deep copies.
    """
    if any(dtype in _REDUCED for dtype in interface.dtypes.values()) and _runs_in_float32(model, inputs):
        _cast_(model, dict.fromkeys(model.state_dict(), torch.float32), torch.float32)
    dtype = input_dtype(model)
    if dtype != torch.float32:
        model.register_forward_pre_hook(_CastInput(dtype))
    if interface.output != WHOLE:
        model.register_forward_hook(_ReadLogits(interface.output))
    return model


def restore_(model: nn.Module, interface: Interface) -> nn.Module:
    """The customer's model again, in place: its whole answer, every tensor in the file's number format and order."""
    model._forward_pre_hooks.clear()
    model._forward_hooks.clear()
    _cast_(model, interface.dtypes, interface.dtype)
    lay_back_(model, interface.strides)
    return model


def round_(model: nn.Module, interface: Interface) -> nn.Module:
    """Give every tensor a value that the file's number format can hold: what is measured is what is delivered."""
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point():
                tensor.copy_(tensor.to(interface.dtypes.get(name, interface.dtype)))
    return model


def read_logits(model: nn.Module, answer: Any) -> Any:
    """What `model` makes of the answer of its own forward, for those who ran that forward piece by piece."""
    for hook in model._forward_hooks.values():
        if isinstance(hook, _ReadLogits):
            answer = hook(model, (), answer)
    return answer


@dataclass(frozen=True)
class _CastInput:
    dtype: torch.dtype

    def __call__(self, _module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(a.to(self.dtype) if isinstance(a, Tensor) and a.is_floating_point() else a for a in args)


@dataclass(frozen=True)
class _ReadLogits:
    path: str

    def __call__(self, _module: nn.Module, _args: tuple[Any, ...], answer: Any) -> Tensor:
        return tensors_by_path(answer)[self.path]


def _runs_in_float32(model: nn.Module, inputs: Tensor) -> bool:
    """Whether nothing in the forward insists on the reduced type. Leaves the model as it was."""
    kept = {name: tensor.dtype for name, tensor in model.state_dict().items() if tensor.is_floating_point()}
    _cast_(model, dict.fromkeys(kept, torch.float32), torch.float32)
    try:
        with torch.no_grad(), eval_mode(model):
            model(inputs.float())
    except _TYPE_ERRORS:
        return False
    finally:
        _cast_(model, kept, torch.float32)
    return True


def _cast_(model: nn.Module, dtypes: Mapping[str, torch.dtype], default: torch.dtype) -> None:
    """Parameters stay the same objects: ties and optimizers hold."""
    named = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    for name, tensor in named:
        if tensor.is_floating_point():
            tensor.data = tensor.data.to(dtypes.get(name, default))
