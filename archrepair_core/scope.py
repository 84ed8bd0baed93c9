"""What of a model is trained: the names of modules, and the tensors that lie in them."""

import torch
from torch import Tensor, nn

Scope = tuple[str, ...]
NETWORK: Scope = ("",)


def in_scope(name: str, scope: Scope) -> bool:
    """Whether the parameter, buffer or module `name` lies in one of the modules of `scope`."""
    return any(part == "" or name == part or name.startswith(f"{part}.") for part in scope)


def scoped_state(model: nn.Module, scope: Scope) -> dict[str, Tensor]:
    """The live tensors of the state dict that lie in `scope`."""
    return {name: value for name, value in model.state_dict().items() if in_scope(name, scope)}


def load_scoped_state(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Copy `state` into the tensors of the same names, in place; the others stay as they are."""
    live = model.state_dict()
    with torch.no_grad():
        for name, value in state.items():
            live[name].copy_(value)
