import subprocess
import sys
import zipfile

import pytest
import torch

from archrepair_core.errors import EngineError
from archrepair_core.export import export_model
from archrepair_core.export.subject import Subject, two_batches
from archrepair_core.ingest.model import ingest_model
from archrepair_core.ingest.outputs import largest_difference


def write(subject, directory):
    (export,) = export_model(subject, directory, "out", formats=["torch_export"], required="torch_export")
    return export, directory / "out.pt2"


@pytest.mark.parametrize("answer", ["tensor", "tuple", "dict"])
def test_any_batch_size_and_every_nesting_comes_back(make_subject, answer, tmp_path):
    subject = make_subject(answer)
    export, path = write(subject, tmp_path)
    assert (export.method, export.written.agreement.batch_sizes) == ("export", (1, 3))
    reread = torch.export.load(path).module()
    many = torch.randn(7, 3, 6, 6)
    assert largest_difference(reread(many), subject.module(many)) == 0
    assert type(reread(many)) is type(subject.module(many))


def test_a_named_tuple_becomes_a_plain_one_and_the_note_keeps_its_names(make_subject, inputs, tmp_path):
    subject = make_subject("named")
    export, path = write(subject, tmp_path)
    reread = torch.export.load(path).module()(inputs)
    assert type(reread) is tuple
    assert largest_difference(reread, subject.module(inputs)) == 0
    assert "a NamedTuple became a tuple in the order logits, features" in export.note
    assert subject.module(inputs)._fields == ("logits", "features"), "the model itself still names them"


def test_names_and_untouched_tensors_survive(make_subject, tmp_path):
    subject = make_subject()
    export, path = write(subject, tmp_path)
    program = torch.export.load(path)
    assert program.module_call_graph[0].signature.forward_arg_names == ["image"]
    assert set(program.state_dict) == set(subject.original.state_dict())
    assert export.written.changes.changed == ("head.weight",)
    assert export.written.changes.added == export.written.changes.removed == ()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_stay_what_they_are(make_subject, dtype, tmp_path):
    export, path = write(make_subject(dtype=dtype), tmp_path)
    assert torch.export.load(path).state_dict["conv.weight"].dtype == dtype
    assert export.written.agreement.max_relative_diff == 0


@pytest.mark.slow
def test_a_plain_python_runs_it(make_subject, inputs, tmp_path):
    subject = make_subject()
    _, path = write(subject, tmp_path)
    torch.save(inputs, tmp_path / "inputs.pt")
    code = (
        "import sys, torch\n"
        "x = torch.load(sys.argv[2])\n"
        "torch.save(torch.export.load(sys.argv[1]).module()(x).detach(), sys.argv[3])\n"
    )
    files = [str(path), str(tmp_path / "inputs.pt"), str(tmp_path / "answer.pt")]
    subprocess.run([sys.executable, "-I", "-W", "ignore", "-c", code, *files], check=True, cwd="/")
    assert torch.equal(torch.load(tmp_path / "answer.pt"), subject.module(inputs).detach())


def test_neither_the_images_nor_our_paths_are_in_the_file(make_subject, tmp_path):
    subject = make_subject()
    _, path = write(subject, tmp_path)
    image = subject.batches[0].numpy().tobytes()
    with zipfile.ZipFile(path) as archive:
        content = b"".join(archive.read(name) for name in archive.namelist())
    assert image not in content
    assert torch.export.load(path).example_inputs is None
    assert b"stack_trace" not in content
    assert b"archrepair_decompiled" not in content


class OneAtATime(torch.nn.Module):
    def forward(self, x):
        if x.shape[0] > 2:
            return x * 1.0
        return x + 0.0


def test_a_model_that_looks_at_its_batch_size_is_fixed_to_one_and_says_so(make_subject, tmp_path):
    subject = make_subject()
    subject.module._modules["drop"] = OneAtATime()
    export, path = write(subject, tmp_path)
    assert "batches of 1 only" in export.note
    assert export.written.agreement.batch_sizes == (1,)
    one = subject.batches[0]
    assert torch.equal(torch.export.load(path).module()(one), subject.module(one))


class Undecided(torch.nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


def test_what_does_not_export_is_refused_and_leaves_no_file(make_subject, tmp_path):
    subject = make_subject()
    subject.module._modules["drop"] = Undecided()
    before = set(tmp_path.iterdir())
    with pytest.raises(EngineError) as caught:
        write(subject, tmp_path)
    assert caught.value.code == "platform.export_failed"
    assert set(tmp_path.iterdir()) == before


def test_a_pt2_upload_comes_back_as_it_was_sent_and_as_torchscript(make_subject, inputs, tmp_path):
    _, upload = write(make_subject(), tmp_path)
    ingested = ingest_model(upload, tmp_path)
    subject = Subject(ingested.model.eval(), ingested.reference, two_batches(inputs, ingested.model))
    exports = export_model(
        subject, tmp_path, "again", formats=["torch_export", "torchscript"], required=ingested.format
    )
    before, after = torch.export.load(upload), torch.export.load(tmp_path / "again.pt2")
    assert after.module_call_graph[0].signature.forward_arg_names == ["image"]
    assert before.state_dict.keys() == after.state_dict.keys()
    many = torch.randn(5, 3, 6, 6)
    for export in exports:
        assert export.written.agreement.max_abs_diff == 0
        assert (export.written.changes.changed, export.written.changes.added) == ((), ())
    assert torch.equal(after.module()(many), before.module()(many))
    assert torch.equal(torch.jit.load(tmp_path / "again.pt")(image=many), before.module()(many))
