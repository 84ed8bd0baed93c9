"""Every hand-written net of the coverage registry, scripted: through the gate, rebuilt, compared, scripted again."""

import pytest
import torch

from archrepair_core.ingest.model import ingest_model
from archrepair_core.ingest.outputs import largest_relative_difference, tensors_in
from tests.coverage.handwritten import ENTRIES

# More of the same kind of layer as Encoder and Text, which run by default: compiling them takes seconds.
SLOW = (
    *("Causal", "Decoder", "Encoder-gelu", "Encoder-norm-first", "Encoder-own-activation", "Encoder-sequence-first"),
    *("Text-norm-first", "Upscaling", "WholeTransformer"),
)
NETS = [
    pytest.param(entry, id=entry.name, marks=pytest.mark.slow if entry.name.endswith(SLOW) else ())
    for entry in ENTRIES
    if "scripted" in entry.kinds
]


@pytest.mark.parametrize("entry", NETS)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_scripted_net_comes_back_with_its_answers_names_and_gradients(entry, tmp_path):
    torch.manual_seed(0)
    torch.jit.save(torch.jit.script(entry.build().eval()), str(tmp_path / "net.pt"))
    ingested = ingest_model(tmp_path / "net.pt", tmp_path)
    reference, model = ingested.reference, ingested.model
    assert list(model.state_dict()) == list(reference.state_dict())
    with torch.no_grad():
        scripted = torch.jit.script(model)
        for count in entry.batch_sizes:
            expected = _seeded(reference, entry, count)
            assert tensors_in(expected)
            for again in (model, scripted):
                assert largest_relative_difference(_seeded(again, entry, count), expected) <= entry.tolerance
    assert _trained(model, entry) >= _trained(reference, entry)


def _seeded(model, entry, count):
    torch.manual_seed(count)
    return model(*entry.inputs(count))


def _trained(model, entry):
    """Names of the parameters that get a gradient."""
    answers = [
        tensor.float().square().sum()
        for tensor in tensors_in(_seeded(model, entry, 2)).values()
        if tensor.requires_grad
    ]
    torch.stack(answers).sum().backward()
    return {name for name, parameter in model.named_parameters() if parameter.grad is not None}
