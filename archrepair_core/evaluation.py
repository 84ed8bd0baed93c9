"""An evaluation, on one page: ingest → answer → measure → report. Nothing is learned, and the model stays as it is.

With `model.reference` the same inputs are also put to that model, and everything is measured as a change from it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor

from archrepair_core.answers import MEASURED_ROLES, Answers, measure_all, resolved_evaluation
from archrepair_core.case import BATCH_SIZE, Host, examine_host, inspection_of, load_role
from archrepair_core.cost import latency_ratio, latency_seconds
from archrepair_core.data.images import LabelledImages
from archrepair_core.data.preprocessing import resolve_preprocessing, to_tensor
from archrepair_core.data.split import prepare_measured
from archrepair_core.determinism import fix_seeds
from archrepair_core.errors import ModelError
from archrepair_core.evaluate import predict
from archrepair_core.facts import Inspection, num_parameters
from archrepair_core.gates import DEFAULT_GATES, GateResult, evaluate_gates, verdict_of
from archrepair_core.ingest.model import ingest_model
from archrepair_core.progress import Narrator, OnProgress
from archrepair_core.report.evidence import Evidence
from archrepair_core.report.write import write_evaluation, write_predictions, write_views
from archrepair_core.request import REPORT_FILES, Artifact, RepairOutcome, RepairRequest
from archrepair_core.spec import SPLITS, Preprocessing, RepairSpec

# The phases of a repair that an evaluation has, and where each begins on the progress bar.
PHASE_PERCENT = {"ingesting": 0.0, "baseline": 10.0, "verifying": 20.0, "packaging": 97.0}
LATENCY_BATCH = 32


@dataclass(frozen=True)
class Subject:
    """What is evaluated: the model, maybe the one it is compared with, and held-out images by role."""

    host: Host
    earlier: Host | None
    images: Mapping[str, LabelledImages]
    preprocessing: Preprocessing

    def inputs(self, count: int) -> Tensor:
        """The first test images as model input, [N, C, H, W]."""
        return to_tensor(self.images["test"].images[:count], self.preprocessing).to(self.host.device)


def evaluate_model(
    request: RepairRequest, on_progress: OnProgress, *, on_inspected: Callable[[Inspection], None] | None = None
) -> RepairOutcome:
    """Run one evaluation from files to files. Raises ArchRepairError with what the customer can do about it."""
    spec, narrator = request.spec, Narrator(on_progress, PHASE_PERCENT)
    fix_seeds(spec.seed)

    narrator.begin("ingesting", "checking the model and reading the data")
    subject = _ingest(request, on_inspected)

    num_inputs = sum(map(len, subject.images.values()))
    narrator.begin("baseline", f"running the model{'s' if subject.earlier else ''} on {num_inputs} inputs")
    answers = _answer(subject)

    narrator.begin("verifying", "measuring")
    models = {"after": subject.host.model} | ({"before": subject.earlier.model} if subject.earlier else {})
    measured = measure_all(
        models,
        answers,
        subject.preprocessing,
        spec,
        device=subject.host.device,
        on_share=partial(narrator.reached, "verifying"),
    )
    evidence = _judge(subject, answers, measured, spec)

    narrator.begin("packaging", "writing the report")
    return _package(request, subject, evidence, narrator)


def _ingest(request: RepairRequest, on_inspected: Callable[[Inspection], None] | None) -> Subject:
    spec, files = request.spec, request.datasets
    ingested = ingest_model(request.model, request.work_dir)
    loaded = {}
    for role in MEASURED_ROLES:
        reference = getattr(spec.datasets, role)
        if reference is not None:
            columns = spec.evaluation.slices if role == "test" else ()
            loaded[role] = load_role(role, reference, files, spec, work_dir=request.work_dir, columns=columns)
    images = prepare_measured(loaded, spec)
    preprocessing = resolve_preprocessing(spec.preprocessing, images["test"])
    host = examine_host(ingested, images, preprocessing, output=spec.model.output, needs_blocks=False)
    subject = Subject(host, _earlier(request, images, preprocessing), images, preprocessing)
    if on_inspected is not None:
        on_inspected(inspection_of(ingested, host, subject.inputs(1)))
    return subject


def _earlier(request: RepairRequest, images: Mapping[str, LabelledImages], preprocessing: Preprocessing) -> Host | None:
    """The model to compare with, through the same gate; of whatever architecture, but of the same classes."""
    path = request.reference_model()
    if path is None:
        return None
    work_dir = request.work_dir / "reference"
    work_dir.mkdir(exist_ok=True)
    output = request.spec.model.output
    return examine_host(ingest_model(path, work_dir), images, preprocessing, output=output, needs_blocks=False)


def _answer(subject: Subject) -> Answers:
    def logits_of(host: Host) -> dict[str, Tensor]:
        return {
            role: predict(host.model, part, subject.preprocessing, batch_size=BATCH_SIZE, device=host.device)
            for role, part in subject.images.items()
        }

    after = logits_of(subject.host)
    before = logits_of(subject.earlier) if subject.earlier else None
    if before is not None and before["test"].shape[1] != after["test"].shape[1]:
        raise ModelError(
            "reference_differs",
            f"the model has {after['test'].shape[1]} outputs, and model.reference has {before['test'].shape[1]}",
            hint="compare models of the same classes in the same order, or leave model.reference out",
        )
    return Answers(subject.images, before, after)


def _judge(subject: Subject, answers: Answers, measured: Mapping[str, Any], spec: RepairSpec) -> Evidence:
    cost = _ratios(subject)
    gates = evaluate_gates(_gates(spec), {**measured, "cost": cost})
    return Evidence(None, answers, measured, cost, (), gates, verdict_of(gates), "evaluated", _reason(measured, gates))


def _gates(spec: RepairSpec) -> Any:
    """The gates asked for. By default a comparison has those of a repair; one model alone has nothing to pass."""
    return [] if spec.gates == "auto" and spec.model.reference is None else spec.gates


def _ratios(subject: Subject) -> dict[str, float]:
    if subject.earlier is None:
        return {}
    before, after = subject.earlier.model, subject.host.model
    return {
        "latency_ratio": latency_ratio(before, after, subject.inputs(LATENCY_BATCH)),
        "params_ratio": num_parameters(after) / num_parameters(before),
    }


def _reason(measured: Mapping[str, Any], gates: tuple[GateResult, ...]) -> str:
    test = measured["test"]
    accuracy = test["accuracy"]
    if accuracy["before"] is None:
        low, high = accuracy["after_ci95"]
        said = f"test accuracy {accuracy['after']:.4f} of {test['n']} inputs, 95 % interval {low:.4f} to {high:.4f}"
    else:
        said = (
            f"test accuracy {accuracy['before']:.4f} → {accuracy['after']:.4f}, {test['fixed']} fixed, "
            f"{test['broken']} broken of {test['n']}"
        )
    missed = [f"{gate.expression} ({gate.reason})" for gate in gates if gate.state in ("fail", "inconclusive")]
    return f"{said}; not passed: {'; '.join(missed)}" if missed else said


def _package(request: RepairRequest, subject: Subject, evidence: Evidence, narrator: Narrator) -> RepairOutcome:
    out, resolved = request.out_dir, _resolved_spec(request.spec, subject)
    write_predictions(out / "predictions.npz", evidence.answers)
    report = write_evaluation(
        out / "report.json",
        evidence,
        subject.host,
        size=_size(subject),
        notes=_unread(request.spec),
        resolved_spec=resolved,
        seconds=narrator.seconds(),
    )
    write_views(out, report, subject.images["test"])
    result = {
        "outcome": "evaluated",
        "recommended": False,
        "reason": evidence.reason,
        **evidence.measured,
        "cost": dict(evidence.cost),
        "gates": [gate.to_json() for gate in evidence.gates],
        "seconds": narrator.seconds(),
    }
    artifacts = [Artifact(name, kind) for name, kind in REPORT_FILES.items()]
    artifacts.append(Artifact("predictions.npz", "predictions"))
    return RepairOutcome(result, evidence.verdict, resolved, tuple(artifacts))


def _size(subject: Subject) -> dict[str, Any]:
    """Parameters and the seconds of one batch, before and after."""
    inputs = subject.inputs(LATENCY_BATCH)
    hosts = {"before": subject.earlier, "after": subject.host}
    sizes = {
        name: {"num_params": num_parameters(host.model), "latency_seconds": latency_seconds(host.model, inputs)}
        for name, host in hosts.items()
        if host is not None
    }
    return {"before": None, **sizes, "batch": len(inputs)}


def _unread(spec: RepairSpec) -> list[str]:
    unread = [role for role in SPLITS if role not in MEASURED_ROLES and getattr(spec.datasets, role) is not None]
    return [f"{', '.join(unread)}: given, and not read by an evaluation"] if unread else []


def _resolved_spec(spec: RepairSpec, subject: Subject) -> dict[str, Any]:
    """The spec with every `auto` that an evaluation looks at replaced by what it became."""
    resolved = spec.model_dump(mode="json")
    resolved["model"]["output"] = subject.host.interface.output
    resolved["preprocessing"] = subject.preprocessing.model_dump(mode="json")
    resolved["evaluation"] = resolved_evaluation(spec)
    gates = _gates(spec)
    resolved["gates"] = list(DEFAULT_GATES) if gates == "auto" else list(gates)
    return resolved
