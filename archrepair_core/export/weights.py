"""The weights alone, as safetensors, and the genotype that says which cells they belong to. docs/formats.md shows
how to load both into the original network.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.func import functional_call

from archrepair_core.export.parity import check_answers, compare_tensors, device_of
from archrepair_core.export.subject import Subject, Written
from archrepair_core.search.dag import Dag, Edge
from archrepair_core.search.operations import ORIGINAL
from archrepair_core.search.primitives import SqueezeExcite, TokenMix

GENOTYPE_VERSION = "2"
# The arguments that build a layer of a cell again; `bias` is added where the layer has the choice.
_ARGUMENTS: dict[type[nn.Module], tuple[str, ...]] = {
    nn.Conv2d: ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups"),
    nn.Linear: ("in_features", "out_features"),
    nn.BatchNorm2d: ("num_features", "eps", "momentum"),
    nn.MaxPool2d: ("kernel_size", "stride", "padding"),
    nn.AvgPool2d: ("kernel_size", "stride", "padding", "count_include_pad"),
    nn.InstanceNorm2d: ("num_features", "eps", "affine"),
    nn.LayerNorm: ("normalized_shape", "eps"),
    SqueezeExcite: ("channels", "width"),
    TokenMix: ("tokens", "width"),
    nn.Identity: (),
    nn.ReLU: (),
    nn.GELU: (),
}


def write_weights(subject: Subject, path: Path) -> Written:
    """Save the `state_dict` with the genotype as metadata, and run the repaired model on what is read back.

    Tied weights are written once per name, so that `load_state_dict` finds every key.
    """
    state = subject.module.state_dict()
    save_file(_separate(state), path, metadata={"format": "pt", "genotype": json.dumps(genotype_of(subject))})
    reread = load_file(path, device=str(device_of(subject.module)))

    def answer(batch: Tensor) -> Any:
        return functional_call(subject.module, reread, (batch,), tie_weights=False)

    agreement = check_answers(answer, subject.module, subject.batches, same_kernels=True)
    changes = compare_tensors(reread, subject.original.state_dict())
    return Written("safetensors", agreement, changes, _note(subject))


def _note(subject: Subject) -> str:
    own = {name for name, _ in subject.original.named_modules()}
    foreign = [edit["block"] for edit in subject.genotype.get("edits", []) if edit["block"] not in own]
    if not foreign:
        return ""
    return f"{', '.join(foreign)} is no module of the original network, so weights alone do not say where the cell goes"


def genotype_of(subject: Subject) -> dict[str, Any]:
    """The genotype with the layers of every new operation, enough to build them with plain `torch.nn`."""
    edits = [_described(subject.module, edit) for edit in subject.genotype.get("edits", [])]
    return {"object": "genotype", "version": GENOTYPE_VERSION, **subject.genotype, "edits": edits}


def _described(module: nn.Module, edit: Mapping[str, Any]) -> dict[str, Any]:
    branch = module.get_submodule(f"{edit['block']}.branch")
    edges = [_with_layers(edge, branch.get_submodule("operation")) for edge in edit["edges"]]
    return {**edit, "edges": edges, "scale": list(branch.get_parameter("scale").shape)}


def _with_layers(edge: Mapping[str, str], operation: nn.Module) -> dict[str, Any]:
    """A branch of a single operation holds its layers itself."""
    if edge["operation"] == ORIGINAL:
        return dict(edge)
    name = Edge(edge["from"], edge["to"], edge["operation"]).module_name
    layers = operation.get_submodule(name) if isinstance(operation, Dag) else operation
    return {**edge, "layers": [describe_layer(layer) for layer in layers.children()]}


def describe_layer(layer: nn.Module) -> dict[str, Any]:
    """A layer as the name of its `torch.nn` class and the arguments that build it again."""
    arguments = {name: getattr(layer, name) for name in _ARGUMENTS[type(layer)]}
    if isinstance(layer, nn.Conv2d | nn.Linear):
        arguments["bias"] = layer.bias is not None
    return {"class": type(layer).__name__, "arguments": arguments}


def _separate(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous tensors that share no memory, as safetensors demands; only those that do are copied."""
    seen: set[int] = set()
    separate: dict[str, Tensor] = {}
    for name, tensor in state.items():
        storage = tensor.untyped_storage()
        alone = storage.data_ptr() not in seen and storage.nbytes() == tensor.numel() * tensor.element_size()
        seen.add(storage.data_ptr())
        separate[name] = tensor.contiguous() if alone else tensor.clone().contiguous()
    return separate
