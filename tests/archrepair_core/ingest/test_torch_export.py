import inspect
import warnings
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from archrepair_core.blocks import find_blocks
from archrepair_core.cut import cut_at
from archrepair_core.errors import ModelError
from archrepair_core.ingest.model import IngestedModel, ingest_model
from archrepair_core.ingest.outputs import tensors_in
from archrepair_core.ingest.verify import verify_decompiled
from tests.archrepair_core.ingest.exported import (
    Answer,
    BatchBound,
    FromBuffer,
    Gradless,
    Named,
    Nested,
    SmallNet,
    Tied,
    Tokens,
    TwoInputs,
    Unlike,
    rewritten,
    save_export,
)


def settled(model: nn.Module) -> nn.Module:
    """With running statistics that are not those of a new model."""
    generator = torch.Generator().manual_seed(7)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.copy_(torch.rand(module.num_features, generator=generator))
            module.running_var.copy_(torch.rand(module.num_features, generator=generator) + 0.5)
    return model


@pytest.fixture(scope="module")
def small() -> nn.Module:
    torch.manual_seed(0)
    return settled(SmallNet()).eval()


@pytest.fixture(scope="module")
def small_path(small: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_export(small, tmp_path_factory.mktemp("exports") / "small.pt2", torch.rand(2, 3, 9, 9))


@pytest.fixture
def ingested(small_path: Path, tmp_path: Path) -> IngestedModel:
    return ingest_model(small_path, tmp_path)


def ingest(model: nn.Module, tmp_path: Path, *examples: object, dynamic: bool = True, mode: str = "eval"):
    path = save_export(model, tmp_path / "model.pt2", *examples, dynamic=dynamic, mode=mode)
    return ingest_model(path, tmp_path)


def same(found: object, expected: object) -> bool:
    ours, theirs = tensors_in(found), tensors_in(expected)
    return ours.keys() == theirs.keys() and all(torch.allclose(ours[k], theirs[k], rtol=1e-5, atol=1e-6) for k in ours)


def test_a_program_becomes_the_model_it_was_exported_from(small, ingested):
    inputs = torch.rand(5, 3, 9, 9)
    parity = verify_decompiled(ingested.reference, ingested.model, inputs)
    assert (ingested.format, parity.max_abs_diff, parity.untrained) == ("torch_export", 0.0, ())
    assert torch.equal(ingested.model(inputs), small(inputs))
    assert torch.equal(ingested.reference(inputs), small(inputs))
    assert ingested.model.state_dict().keys() == small.state_dict().keys()
    assert all(torch.equal(tensor, small.state_dict()[name]) for name, tensor in ingested.model.state_dict().items())
    ours = {name: type(module).__name__ for name, module in ingested.model.named_modules()}
    assert ours == {name: type(module).__name__ for name, module in small.named_modules()}
    assert isinstance(ingested.model.blocks[1].norm, nn.BatchNorm2d)
    assert ingested.model.blocks[1].dropout.p == 0.25


def test_the_file_is_answered_as_torch_export_answers_it(small_path, ingested):
    inputs = torch.rand(3, 3, 9, 9)
    assert torch.equal(ingested.reference(inputs), torch.export.load(small_path).module()(inputs))


def test_batch_norm_and_dropout_train_as_in_the_original(small, ingested):
    inputs = torch.rand(4, 3, 9, 9)
    answers = []
    small = settled(SmallNet())
    small.load_state_dict(ingested.model.state_dict())
    for model in (small, ingested.model):
        torch.manual_seed(3)
        answers.append(model.train()(inputs))
    assert torch.equal(*answers)
    assert torch.equal(ingested.model.blocks[0].norm.running_mean, small.blocks[0].norm.running_mean)
    assert not torch.equal(ingested.model(inputs), ingested.model(inputs))


def test_blocks_and_cuts_are_those_of_the_original(small, ingested):
    inputs = torch.rand(4, 3, 9, 9)
    named = [(block.name, block.kind, block.num_params) for block in find_blocks(ingested.model, inputs)]
    assert named == [(block.name, block.kind, block.num_params) for block in find_blocks(small, inputs)]
    assert cut_at(ingested.model, "blocks.1", inputs) is not None


def test_a_rebuilt_program_scripts_and_exports_again(ingested, tmp_path):
    inputs = torch.rand(3, 3, 9, 9)
    expected = ingested.model(inputs)
    torch.jit.save(torch.jit.script(ingested.model), tmp_path / "again.pt")
    again = ingest_model(tmp_path / "again.pt", tmp_path)
    assert torch.equal(again.model.eval()(inputs), expected)
    exported = ingest_model(save_export(ingested.model, tmp_path / "again.pt2", inputs), tmp_path)
    assert torch.equal(exported.model(inputs), expected)
    assert [n for n, _ in exported.model.named_modules()] == [n for n, _ in ingested.model.named_modules()]


def test_one_batch_size_baked_into_the_program_is_found_and_undone(small, tmp_path):
    for size in (1, 2, 4):
        model = ingest(small, tmp_path, torch.rand(size, 3, 9, 9), dynamic=False).model
        assert torch.allclose(model(torch.rand(5, 3, 9, 9)).sum(1).isnan(), torch.zeros(5, dtype=torch.bool))
        inputs = torch.rand(7, 3, 9, 9)
        assert torch.allclose(model(inputs), small(inputs), atol=1e-6)


@pytest.mark.parametrize("size", [1, 2])
def test_attention_exported_for_one_batch_size_takes_any(tmp_path, size):
    torch.manual_seed(1)
    inputs = torch.rand(5, 6, 8)
    for original in (Tokens().eval(), nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()):
        model = ingest(original, tmp_path, torch.rand(size, 6, 8), dynamic=False).model
        assert torch.allclose(model(inputs), original(inputs), atol=1e-6)


def test_a_program_that_mixes_its_batch_names_the_size_and_the_remedy(tmp_path):
    with pytest.raises(ModelError, match="exactly 3") as caught:
        ingest(BatchBound(), tmp_path, torch.rand(3, 6), dynamic=False)
    assert caught.value.code == "model.fixed_batch_size"
    assert "dynamic_shapes" in caught.value.hint


def test_tied_weights_stay_one_parameter(tmp_path):
    model = ingest(Tied(), tmp_path, torch.rand(2, 6)).model
    assert model.encode.weight is model.decode.weight
    assert isinstance(model.decode, nn.Linear)
    assert list(model.state_dict()) == ["encode.weight", "decode.weight"]


def test_a_module_called_for_two_things_gets_two_methods(tmp_path):
    original = Unlike().eval()
    model = ingest(original, tmp_path, torch.rand(2, 6)).model
    inputs = torch.rand(4, 6)
    assert torch.equal(model(inputs), original(inputs))
    assert torch.equal(torch.jit.script(model)(inputs), original(inputs))
    assert isinstance(model.part.inner, nn.Linear)


def test_several_inputs_and_a_dict_keep_their_names(tmp_path):
    original = TwoInputs().eval()
    ingested = ingest(original, tmp_path, torch.rand(2, 3), torch.rand(2, 5))
    arguments = torch.rand(4, 3), torch.rand(4, 5)
    expected = original(*arguments)
    for model in (ingested.reference, ingested.model):
        assert same(model(*arguments), expected)
        assert same(model(image=arguments[0], context=arguments[1]), expected)
        assert list(inspect.signature(model.forward).parameters) == ["image", "context"]
    assert list(ingested.model(*arguments)) == ["logits", "norm"]
    assert same(torch.jit.script(ingested.model)(*arguments), expected)


def test_nested_answers_keep_their_structure(tmp_path):
    original = Nested().eval()
    ingested = ingest(original, tmp_path, torch.rand(2, 4))
    inputs = torch.rand(3, 4)
    answer = ingested.model(inputs)
    assert (type(answer), type(answer[1]), answer[2]) == (tuple, tuple, None)
    assert same(answer, original(inputs))
    assert same(ingested.reference(inputs), original(inputs))


def test_a_sequential_fed_with_a_buffer_computes_the_same(tmp_path):
    original = FromBuffer().eval()
    ingested = ingest(original, tmp_path, torch.rand(2, 4))
    inputs = torch.rand(3, 4)
    assert torch.equal(ingested.model(inputs), original(inputs))
    assert verify_decompiled(ingested.reference, ingested.model, inputs).untrained == ()
    assert ingested.model.state_dict().keys() == original.state_dict().keys()


def test_named_tuples_and_nested_arguments_keep_their_structure(tmp_path):
    torch.utils._pytree._register_namedtuple(Answer, serialized_type_name="exported.Answer")
    original = Named().eval()
    arguments = torch.rand(2, 4), (torch.rand(2, 3), {"shift": torch.rand(2, 3)})
    ingested = ingest(original, tmp_path, *arguments, dynamic=False)
    expected = original(*arguments)
    for model in (ingested.reference, ingested.model):
        answer = model(*arguments)
        assert (type(answer).__name__, answer._fields) == ("Answer", ("logits", "features"))
        assert torch.equal(answer.logits, expected.logits)
        assert torch.equal(answer.features, expected.features)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_precisions_stay_what_they_are(tmp_path, dtype):
    layers = {"conv": nn.Conv2d(3, 4, 3), "act": nn.GELU(), "flat": nn.Flatten(), "head": nn.Linear(196, 5)}
    original = nn.Sequential(OrderedDict(layers)).to(dtype).eval()
    example = torch.rand(2, 3, 9, 9, dtype=dtype)
    model = ingest(original, tmp_path, example).model
    assert model.head.weight.dtype == dtype
    assert torch.equal(model(example), original(example))


def test_batch_norm_exported_in_train_mode_stays_as_it_was_deployed(tmp_path):
    original = settled(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()))
    ingested = ingest(original, tmp_path, torch.rand(4, 3, 6, 6), mode="train")
    inputs = torch.rand(5, 3, 6, 6)
    verify_decompiled(ingested.reference, ingested.model, inputs)
    expected = original.train()(inputs)
    assert torch.allclose(ingested.model(inputs), expected, atol=1e-6)
    assert ingested.model.state_dict().keys() == original.state_dict().keys()


def test_frozen_parameters_stay_frozen(tmp_path):
    original = SmallNet().eval()
    original.stem.weight.requires_grad_(False)
    model = ingest(original, tmp_path, torch.rand(2, 3, 9, 9)).model
    assert [name for name, p in model.named_parameters() if not p.requires_grad] == ["stem.weight"]


def test_reference_and_model_share_no_tensor(ingested):
    theirs = {tensor.data_ptr() for tensor in ingested.reference.state_dict().values()}
    assert not theirs & {tensor.data_ptr() for tensor in ingested.model.state_dict().values()}


def test_the_file_tells_which_torch_wrote_it_and_for_what_inputs(ingested):
    assert ingested.written_by == f"torch {torch.__version__}"
    assert ingested.input_shapes == ((3, 9, 9),)


def test_a_block_without_gradients_is_refused_by_its_operator(tmp_path):
    with pytest.raises(ModelError, match="set_grad_enabled") as caught:
        ingest(Gradless(), tmp_path, torch.rand(2, 4))
    assert caught.value.code == "model.operator_not_allowed"


def test_a_model_is_told_by_its_content_not_its_name(small_path, tmp_path):
    renamed = rewritten(small_path, tmp_path / "model.pt")
    assert ingest_model(renamed, tmp_path).format == "torch_export"


def test_nothing_of_torch_reads_the_file(small_path, tmp_path, monkeypatch):
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("torch's loader was called")

    for owner, function in ((torch, "load"), (torch.export, "load"), (torch.jit, "load")):
        monkeypatch.setattr(owner, function, refuse)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert isinstance(ingest_model(small_path, tmp_path).model(torch.rand(1, 3, 9, 9)), Tensor)
