"""A repair from files to files, on a small net with a fault that was put there."""

import json
import warnings
from typing import NamedTuple

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from archrepair_core.errors import ArchRepairError
from archrepair_core.events import finite
from archrepair_core.gates import evaluate_gates, verdict_of
from archrepair_core.ingest.model import ingest_model
from archrepair_core.repair import repair_model
from archrepair_core.request import RepairRequest
from archrepair_core.search.supernet import TRAINED_SHARE
from archrepair_core.spec import RepairSpec
from tests.archrepair_core.report.reports import assert_follows_schema

WITHOUT_CONTROLS = {"controls": "none"}  # which test_controls.py is about
SETS = ("repair", "validation", "test")


@pytest.fixture
def run(digits, tmp_path):
    def run_spec(model=digits / "model.pt", files=None, model_output="auto", reference=None, stop_when=None, **spec):
        (tmp_path / "work").mkdir(exist_ok=True)
        (tmp_path / "out").mkdir(exist_ok=True)
        files = files or {f"upload:{name}": digits / f"{name}.npz" for name in SETS}
        asked = {
            "datasets": {name: f"upload:{name}" for name in SETS},
            "seed": 3,
            "evaluation": WITHOUT_CONTROLS,
        } | spec
        asked["model"] = {"output": model_output, "reference": reference and "upload:reference"}
        files |= {"upload:reference": reference} if reference else {}
        told = []
        request = RepairRequest(model, files, RepairSpec.model_validate(asked), tmp_path / "work", tmp_path / "out")
        options = {"stopped": lambda: stop_when(told)} if stop_when else {}
        outcome = repair_model(request, told.append, **options)
        if outcome.result["outcome"] != "localized":
            assert_follows_schema(tmp_path / "out")
            assert_judged_again_alike(outcome)
        return outcome, tmp_path / "out", told

    return run_spec


def assert_judged_again_alike(outcome):
    """What is stored of a result is enough for its gates, to the last digit."""
    stored = json.loads(json.dumps(finite(outcome.result)))
    gates = evaluate_gates([gate["expression"] for gate in stored["gates"]], stored)
    assert json.loads(json.dumps([gate.to_json() for gate in gates])) == stored["gates"]
    assert verdict_of(gates, chosen=stored["repair"] is not None) == outcome.verdict


def load(path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.load(str(path)).eval()


def accuracy(model, path):
    with np.load(path) as arrays, torch.inference_mode():
        inputs = torch.from_numpy(arrays["images"]).float().unsqueeze(1) / 255
        return (model(inputs).argmax(1).numpy() == arrays["labels"]).mean()


def test_auto_repairs_a_real_fault_and_the_report_tells_the_truth(run, digits):
    gates = ["test.accuracy >= before + 0.05", "test.mcnemar_p < 0.05"]
    outcome, out, told = run(gates=gates, repair={"budget_seconds": 12})
    assert (outcome.verdict, outcome.result["outcome"], outcome.result["recommended"]) == ("pass", "repaired", True)

    report = json.loads((out / "report.json").read_text())
    before, after = (
        accuracy(load(digits / "model.pt"), digits / "test.npz"),
        accuracy(load(out / "repaired.pt"), digits / "test.npz"),
    )
    assert report["test"]["accuracy"]["before"] == pytest.approx(before)
    assert report["test"]["accuracy"]["after"] == pytest.approx(after)
    assert after > before + 0.05
    assert (report["ingest"]["format"], report["ingest"]["output"]) == ("torchscript", "output")
    assert "torch" in report["ingest"]["written_by"]

    assert (outcome.result["completion"], report["completion"]) == ("full", "full")
    phases = [progress.phase for progress in told]
    assert list(dict.fromkeys(phases)) == ["ingesting", "baseline", "localizing", "repairing", "verifying", "packaging"]
    percents = [progress.percent for progress in told]
    assert percents == sorted(percents)
    spec = outcome.resolved_spec
    assert "auto" not in (spec["localization"]["method"], spec["repair"]["augment"], spec["repair"]["budget_seconds"])
    assert spec["repair"]["augment"] in ("none", "crop"), "digits must not be mirrored"
    assert RepairSpec.model_validate(spec).model_dump(mode="json") == spec, "what came out can be asked for again"


LONG = {"budget_seconds": 3600}


def while_training(told):
    return sum("step" in progress.message for progress in told if progress.phase == "repairing") >= 3


@pytest.mark.slow
@pytest.mark.parametrize("repair", [{"method": "weights", "level": "network", "epochs": 1000}, {"method": "auto"}])
def test_a_stopped_repair_hands_over_the_best_it_has_and_says_so(run, digits, repair):
    outcome, out, told = run(gates=["test.accuracy > before"], repair=LONG | repair, stop_when=while_training)
    result, report = outcome.result, json.loads((out / "report.json").read_text())
    assert (result["completion"], report["completion"]) == ("partial", "partial")
    assert result["seconds"]["repairing"] < 600
    assert "stopped on request" in report["limits"][0]
    assert "stopped on request" in (out / "report.md").read_text()
    assert [progress.phase for progress in told][-1] == "packaging"
    trainings = [progress for progress in told if ": step " in progress.message]
    assert all(0 < progress.step <= progress.total_steps and progress.loss > 0 for progress in trainings)
    assert len(report["trials"]) >= 1
    before = accuracy(load(digits / "model.pt"), digits / "test.npz")
    assert result["test"]["accuracy"]["before"] == pytest.approx(before)
    # Whether so little training helped is for the gates to say; what did not help is never the model.
    assert (out / "repaired.pt").exists() == (result["outcome"] == "repaired")
    if result["outcome"] == "repaired":
        assert accuracy(load(out / "repaired.pt"), digits / "test.npz") > before


def test_stopped_before_anything_was_tried_the_original_stays(run):
    outcome, out, _ = run(repair=LONG | {"method": "weights"}, stop_when=lambda told: True)
    assert (outcome.result["completion"], outcome.result["outcome"], outcome.verdict) == (
        "partial", "no_improvement", "fail")  # fmt: skip
    assert json.loads((out / "report.json").read_text())["trials"] == []
    assert not list(out.glob("*.pt"))


@pytest.mark.slow
def test_a_block_repair_leaves_every_other_parameter_bit_identical(run, digits):
    outcome, out, _ = run(gates=["test.accuracy > before"], repair={"method": "weights", "level": "block", "epochs": 4})
    block = outcome.result["blocks_repaired"][0]
    original, repaired = (
        load(digits / "model.pt").state_dict(),
        load(out / f"{'repaired' if outcome.result['outcome'] == 'repaired' else 'candidate'}.pt").state_dict(),
    )
    assert original.keys() == repaired.keys()
    changed = {name for name in original if not torch.equal(original[name], repaired[name])}
    assert changed
    assert all(name.startswith(f"{block}.") for name in changed)


@pytest.mark.slow
def test_block_search_may_add_a_branch_and_still_exports(run):
    outcome, out, _ = run(
        gates=["test.accuracy > before"],
        localization={"include": ["blocks.0"], "top_k": 1},
        repair={
            "method": "block_search",
            "epochs": 1,
            "budget_seconds": 60,
            "max_latency_ratio": 10,
            "max_params_ratio": 10,
        },
    )
    report = json.loads((out / "report.json").read_text())
    assert any(trial["genotype"]["edits"] for trial in report["trials"])
    assert all(trial["genotype"]["scope"] == ["blocks.0"] for trial in report["trials"])
    assert outcome.result["repair"] is None or (out / outcome.artifacts[-1].name).exists()


def test_a_cell_is_searched_derived_trained_and_reported(run):
    outcome, out, _ = run(
        gates=["test.accuracy > 0"],
        localization={"include": ["blocks.1"]},
        repair={
            "method": "archrepair",
            "epochs": 1,
            "budget_seconds": 120,
            "max_latency_ratio": 10,
            "max_params_ratio": 10,
        },
    )
    report = json.loads((out / "report.json").read_text())
    (trial,) = report["trials"]
    (edit,) = trial["genotype"]["edits"]
    assert edit["block"] == "blocks.1"
    shares = trial["search"]["shares"]
    assert len(shares) >= 2
    assert all(max(edge.values()) == TRAINED_SHARE for edge in shares[0].values())
    assert shares[0] != shares[-1], "the alphas were trained"
    for edge in edit["edges"]:
        mixed = shares[-1][f"{edge['from']} → {edge['to']}"]
        # The shares shown are those of the last look: of two that are as good as equal either may lead in the end.
        assert mixed[edge["operation"]] >= max(mixed[name] for name in mixed if name != "none") - 0.01
    assert 0 <= trial["search"]["derived_accuracy"] <= 1
    assert outcome.result["outcome"] in ("repaired", "no_improvement")
    assert report["localization"]["method"] == "spectrum+gradient"


@pytest.mark.slow
def test_limits_keep_branches_out(run):
    _, out, _ = run(
        localization={"include": ["blocks.0"], "top_k": 1},
        repair={"method": "block_search", "epochs": 1, "budget_seconds": 600, "max_params_ratio": 1.0},
    )
    trials = json.loads((out / "report.json").read_text())["trials"]
    assert trials
    edges = [edge for trial in trials for edit in trial["genotype"]["edits"] for edge in edit["edges"]]
    # Whether a separable convolution in the block's place is fast enough is a matter of the machine; it is smaller.
    assert {edge["operation"] for edge in edges} <= {"skip_connect", "sep_conv_3x3"}, "nothing stands beside the block"


@pytest.mark.slow
def test_batch_norm_re_estimation_changes_statistics_only(run, digits):
    outcome, out, _ = run(gates=["test.accuracy > before"], repair={"method": "bn"})
    name = outcome.artifacts[-1].name
    assert name in ("repaired.pt", "candidate.pt")
    original, repaired = load(digits / "model.pt").state_dict(), load(out / name).state_dict()
    changed = {name.rsplit(".", 1)[1] for name in original if not torch.equal(original[name], repaired[name])}
    assert changed == {"running_mean", "running_var", "num_batches_tracked"} or changed == {
        "running_mean",
        "running_var",
    }


@pytest.mark.slow
def test_the_formats_asked_for_are_written_and_auto_is_the_uploads_own(run):
    gates = ["test.accuracy > before"]
    outcome, out, _ = run(gates=gates, repair={"method": "bn"}, outputs=["safetensors", "torchscript"])
    assert outcome.resolved_spec["outputs"] == ["torchscript", "safetensors"], "the upload's own comes first"
    report = json.loads((out / "report.json").read_text())
    exports = outcome.result["exports"]
    assert [export["format"] for export in exports] == [export["format"] for export in report["exports"]]
    assert [export["file"] for export in exports] == [artifact.name for artifact in outcome.artifacts[-2:]]
    assert all((out / export["file"]).is_file() for export in exports)
    assert "head.weight" in report["exports"][0]["unchanged"]
    outcome, _, _ = run(gates=gates, repair={"method": "bn"})
    assert outcome.resolved_spec["outputs"] == ["torchscript"]


def test_a_gate_that_refuses_leaves_a_candidate_and_no_model(run):
    outcome, out, _ = run(gates=["test.accuracy >= 0.9999"], repair={"method": "bn"})
    assert (outcome.verdict, outcome.result["outcome"]) == ("fail", "no_improvement")
    assert not (out / "repaired.pt").exists()
    assert "test.accuracy >= 0.9999" in outcome.result["reason"]
    assert [artifact.kind for artifact in outcome.artifacts][-1] == "candidate"


def test_a_model_without_failures_is_given_back_untouched(run, digits, tmp_path):
    with np.load(digits / "repair.npz") as arrays:
        images = arrays["images"]
    with torch.inference_mode():
        answers = load(digits / "model.pt")(torch.from_numpy(images).float().unsqueeze(1) / 255).argmax(1).numpy()
    np.savez(tmp_path / "easy.npz", images=images, labels=answers)
    files = {"upload:repair": tmp_path / "easy.npz"}
    outcome, out, _ = run(files=files, datasets={"repair": "upload:repair"})
    assert (outcome.verdict, outcome.result["outcome"]) == ("fail", "no_improvement")
    assert not list(out.glob("*.pt"))


def test_localize_ranks_every_block(run):
    outcome, out, _ = run(kind="localize")
    assert (outcome.verdict, outcome.result["outcome"]) == ("not_evaluated", "localized")
    ranking = json.loads((out / "localization.json").read_text())
    assert {"blocks.0", "blocks.1", "blocks.2"} <= {row["name"] for row in ranking["blocks"]}
    assert ranking["n_failing"] > 0


def spoil(net):
    """Half the filters of one convolution are lost."""
    with torch.no_grad():
        net.get_submodule("blocks.1.conv2").weight[::2] = 0.0
    return net


def test_damaged_weights_are_named_with_and_without_an_earlier_version(run, digits, rewritten):
    for reference in (None, digits / "model.pt"):
        outcome, out, _ = run(model=rewritten(spoil), kind="localize", reference=reference)
        result = outcome.result
        assert (result["kind"], result["method"], result["blocks"][0]["name"]) == (
            "damaged_weights",
            "drift",
            "blocks.1",
        )
        evidence = json.loads((out / "localization.json").read_text())["evidence"]
        assert evidence["drift_block"] == "blocks.1"
    assert (evidence["reference_block"], evidence["reference_median"]) == ("blocks.1", 0.0)


@pytest.mark.slow
def test_probes_rank_blocks_by_what_repairing_them_gained(run):
    outcome, out, _ = run(kind="localize", localization={"method": "probe"})
    ranking = json.loads((out / "localization.json").read_text())
    gains = ranking["methods"]["probe"]
    assert outcome.result["method"] == "probe"
    assert gains.keys() == {"blocks.0", "blocks.1", "blocks.2"}
    scores = [row["score"] for row in ranking["blocks"]]
    assert scores == sorted(scores, reverse=True)
    assert max(gains.values()) > 0, "repairing some block helps"


def test_a_reference_of_another_architecture_is_refused_by_name(run, rewritten):
    with pytest.raises(ArchRepairError, match=r"another architecture: 'blocks\.0\.bn1\.bias' is \(16,\)") as error:
        run(kind="localize", reference=rewritten(Wrapped))
    assert error.value.code == "model.reference_differs"


def test_a_pattern_that_leaves_no_block_names_the_blocks(run):
    with pytest.raises(ArchRepairError, match="leave no block") as error:
        run(localization={"include": ["layer9*"]})
    assert error.value.code == "spec.no_block_selected"
    assert "blocks.0" in error.value.hint


def test_images_the_model_cannot_take_are_a_clear_error(run, tmp_path):
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "wide.npz", images=rng.integers(0, 255, (40, 8, 24), dtype=np.uint8), labels=np.arange(40) % 10)
    with pytest.raises(ArchRepairError) as error:
        run(files={"upload:repair": tmp_path / "wide.npz"}, datasets={"repair": "upload:repair"})
    assert error.value.code == "dataset.shape_mismatch"


@pytest.mark.slow
def test_the_same_seed_gives_the_same_model(run):
    repair = {"method": "weights", "level": "network", "epochs": 2}
    states = []
    for _ in range(2):
        outcome, out, _ = run(repair=repair, gates=["test.accuracy > before"])
        states.append(load(out / outcome.artifacts[-1].name).state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


class Answer(NamedTuple):
    features: torch.Tensor
    logits: torch.Tensor


class Wrapped(torch.nn.Module):
    """The demo's network, answering in another shape."""

    def __init__(self, net: torch.nn.Module):
        super().__init__()
        self.net = net

    def forward(self, x: torch.Tensor) -> Answer:
        logits = self.net(x)
        return Answer(logits[:, None].softmax(2), logits)


class Ambiguous(Wrapped):
    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        logits = self.net(x)
        return {"logits": logits, "probabilities": logits.softmax(1)}


class TwoInputs(Wrapped):
    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return self.net(x * mask)


@pytest.fixture
def rewritten(digits, tmp_path):
    """`rewritten(wrapper, dtype)` saves the demo's model anew, and gives the path."""

    def save(wrapper=None, dtype=torch.float32):
        net = ingest_model(digits / "model.pt", tmp_path).model.to(dtype)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.jit.save(torch.jit.script(wrapper(net) if wrapper else net), str(tmp_path / "rewritten.pt"))
        return tmp_path / "rewritten.pt"

    return save


def repaired_file(outcome, out):
    (name,) = [artifact.name for artifact in outcome.artifacts if artifact.kind in ("model", "candidate")]
    return load(out / name)


WEIGHTS = {"repair": {"method": "weights", "level": "block", "epochs": 2}, "gates": ["test.accuracy > before"]}


@pytest.mark.slow
def test_a_named_tuple_comes_back_whole_and_its_logits_are_repaired(run, rewritten):
    outcome, out, _ = run(model=rewritten(Wrapped), **WEIGHTS)
    assert outcome.resolved_spec["model"]["output"] == "logits"
    answer = repaired_file(outcome, out)(torch.rand(3, 1, 8, 8))
    assert answer._fields == ("features", "logits")
    assert (answer.features.shape, answer.logits.shape) == ((3, 1, 10), (3, 10))
    report = json.loads((out / "report.json").read_text())
    assert report["test"]["accuracy"]["after"] > report["test"]["accuracy"]["before"]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_a_model_comes_back_in_its_own_number_format(run, rewritten, dtype):
    path = rewritten(dtype=dtype)
    outcome, out, _ = run(model=path, **WEIGHTS)
    original, repaired = load(path).state_dict(), repaired_file(outcome, out).state_dict()
    assert {name: tensor.dtype for name, tensor in repaired.items()} == {
        name: tensor.dtype for name, tensor in original.items()
    }
    (block,) = outcome.result["blocks_repaired"]
    changed = {name for name in original if not torch.equal(original[name], repaired[name])}
    assert changed
    assert all(name.startswith(f"{block}.") for name in changed)
    assert repaired_file(outcome, out)(torch.rand(3, 1, 8, 8, dtype=dtype)).dtype == dtype


def test_two_outputs_that_could_be_logits_must_be_told_apart(run, rewritten):
    path = rewritten(Ambiguous)
    with pytest.raises(ArchRepairError, match="'probabilities'") as error:
        run(model=path)
    assert error.value.code == "model.output_ambiguous"
    assert "model.output" in error.value.hint
    with pytest.raises(ArchRepairError, match="'logits'") as error:
        run(model=path, model_output="scores")
    assert error.value.code == "spec.unknown_output"


def test_a_model_of_several_inputs_is_refused_by_their_names(run, rewritten):
    with pytest.raises(ArchRepairError, match="x, mask") as error:
        run(model=rewritten(TwoInputs))
    assert error.value.code == "model.needs_several_inputs"


@pytest.fixture
def with_replay(digits, tmp_path):
    """The sharp digits the network learned from, given back beside the blurred ones."""
    known = load_digits()
    np.savez(tmp_path / "replay.npz", images=np.rint(known.images * (255 / 16)).astype(np.uint8), labels=known.target)
    files = {f"upload:{name}": digits / f"{name}.npz" for name in SETS}
    return files | {"upload:replay": tmp_path / "replay.npz"}, {name: f"upload:{name}" for name in (*SETS, "replay")}


def test_the_fault_is_recognised_and_known_images_are_replayed_through_it(run, with_replay):
    files, datasets = with_replay
    outcome, out, _ = run(files=files, datasets=datasets, repair={"budget_seconds": 3, "augment": "match"})
    recognition = json.loads((out / "report.json").read_text())["recognition"]
    assert recognition["fits"], recognition["summary"]
    assert "blur" in recognition["kind"] or recognition["kind"] == "resample", recognition["summary"]
    assert outcome.resolved_spec["repair"]["augment"] == "match"
    assert "recognition.png" in [artifact.name for artifact in outcome.artifacts]
    assert (out / "recognition.png").read_bytes().startswith(b"\x89PNG")


def test_match_without_known_images_says_what_is_missing(run):
    with pytest.raises(ArchRepairError, match="no replay set") as refused:
        run(repair={"augment": "match"})
    assert refused.value.code == "dataset.no_match"


@pytest.mark.slow
def test_a_policy_is_a_way_to_augment(run):
    outcome, _, _ = run(repair={"method": "weights", "level": "block", "epochs": 1, "augment": "trivial"})
    assert outcome.resolved_spec["repair"]["augment"] == "trivial"
