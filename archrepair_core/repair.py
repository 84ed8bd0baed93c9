"""The whole story of a repair, on one page: ingest → baseline → localize → repair → verify → package.

No service needed: `repair_model` takes files and a spec and leaves files. Progress leaves through one callable.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from archrepair_core.answers import resolved_evaluation
from archrepair_core.arena import make_arena
from archrepair_core.case import (
    Case,
    Data,
    Host,
    examine_host,
    examine_reference,
    inspection_of,
    measure_baseline,
    question,
    read_data,
    vary_data,
)
from archrepair_core.certificate import write_certificate
from archrepair_core.controls import compare_with_controls
from archrepair_core.determinism import fix_seeds
from archrepair_core.errors import DatasetError
from archrepair_core.evaluation import evaluate_model
from archrepair_core.export import export_model
from archrepair_core.export.subject import Export, Subject, two_batches
from archrepair_core.facts import Inspection
from archrepair_core.gates import DEFAULT_GATES
from archrepair_core.ingest.model import ingest_model
from archrepair_core.interface import restore_
from archrepair_core.localize.localize import localize, suspects_of
from archrepair_core.localize.rank import Localization
from archrepair_core.pace import Pace, set_pace
from archrepair_core.processes import clock, never
from archrepair_core.progress import Narrator, OnProgress
from archrepair_core.repairers import METHODS
from archrepair_core.report.evidence import Evidence, gather_evidence
from archrepair_core.report.schema import Completion
from archrepair_core.report.write import write_localization, write_pairs, write_predictions, write_report, write_views
from archrepair_core.request import REPORT_FILES, Artifact, RepairOutcome, RepairRequest
from archrepair_core.restoration import Restoration, measure_restoration, restoration_weight
from archrepair_core.search.drawing import draw_svg
from archrepair_core.search.trials import Arena, Trial
from archrepair_core.spec import resolve_outputs
from archrepair_core.training import distillation_weight

# Probe repairs that localize may use this share of a repair's time.
PROBING_SHARE = 0.25
# Of the bar of verifying, the choice itself has this share, and the controls the rest.
MEASURED_SHARE = 0.2
# Controls are not begun where they would go on into the last part of what the job may take.
USABLE_SHARE = 0.9
# Inputs of the larger of the two batches on which a written file must answer as the model does.
EXPORT_BATCH = 8
OnInspected = Callable[[Inspection], None]
OnLocalized = Callable[[Localization], None]


def repair_model(
    request: RepairRequest,
    on_progress: OnProgress,
    *,
    on_inspected: OnInspected | None = None,
    on_localized: OnLocalized = lambda _localization: None,
    stopped: Callable[[], bool] = never,
) -> RepairOutcome:
    """Run one job from files to files; `on_inspected` hears what the model is once its blocks are known,
    `on_localized` which of them is to blame.

    Once `stopped()`, nothing more is searched: the best so far is measured and packaged as the best of all would be.
    Raises ArchRepairError with what the customer can do about it.
    """
    if request.spec.kind == "evaluate":
        return evaluate_model(request, on_progress, on_inspected=on_inspected)
    spec, narrator, ends = request.spec, Narrator(on_progress), clock() + USABLE_SHARE * request.max_seconds
    fix_seeds(spec.seed)

    narrator.begin("ingesting", "checking the model and reading the data")
    ingested = ingest_model(request.model, request.work_dir)
    data = read_data(request.datasets, spec, work_dir=request.work_dir)
    host = examine_host(ingested, data.splits.present(), data.preprocessing, output=spec.model.output)
    if on_inspected is not None:
        on_inspected(inspection_of(ingested, host, data.tensors("repair", slice(0, 1))))

    narrator.begin("baseline", f"running the original on {sum(map(len, data.splits.present().values()))} inputs")
    data, augmentation = vary_data(host, data, spec, work_dir=request.work_dir)
    baseline = measure_baseline(host, data, augmentation)
    data = question(host, data, baseline, spec)
    case = Case(spec, host, data, baseline, _reference(request, host, data))

    pace = set_pace(case, request.work_dir)
    narrator.begin("localizing", f"observing {len(host.blocks)} blocks on passing and failing inputs")
    on_probe = narrator.during("localizing", pace.budget_seconds)
    arena = make_arena(case, request.work_dir, on_probe, pace, stopped=stopped)
    share = 1.0 if spec.kind == "localize" else PROBING_SHARE
    localization = localize(case, arena, until=pace.deadline - (1.0 - share) * pace.budget_seconds)
    on_localized(localization)
    if spec.kind == "localize":
        return _package_localization(request, case, localization, pace)

    narrator.begin("repairing", f"repairing for at most {pace.budget_seconds:.0f} seconds")
    arena = replace(
        arena,
        fault=localization.kind,
        restoration=_restoration(case, arena),
        on_progress=narrator.during("repairing", pace.budget_seconds),
    )
    trials = _search(case, localization, arena, pace.deadline)
    completion: Completion = "partial" if arena.is_stopped else "full"
    spent = min(pace.spent_seconds, pace.budget_seconds)

    narrator.begin("verifying", "measuring the choice on data nothing was chosen on")
    evidence = _verify(case, arena, trials, narrator, seconds=spent, until=ends)

    narrator.begin("packaging", "writing the model and the report")
    return _package(request, case, localization, trials, evidence, narrator=narrator, pace=pace, completion=completion)


def _verify(
    case: Case, arena: Arena, trials: Sequence[Trial], narrator: Narrator, *, seconds: float, until: float
) -> Evidence:
    """What the choice is worth, beside controls of as many `seconds`, none of which goes on beyond `until`."""
    told = partial(narrator.reached, "verifying")
    evidence = gather_evidence(case, trials, on_share=lambda share, what: told(MEASURED_SHARE * share, what))
    arena = replace(arena, on_progress=narrator.during("verifying", max(1.0, 2 * seconds)))
    controls = compare_with_controls(case, arena, trials, evidence, seconds=seconds, until=until)
    return replace(evidence, controls=controls)


def _reference(request: RepairRequest, host: Host, data: Data) -> nn.Module | None:
    """The earlier version of the model that the spec names, through the same gate as the model itself."""
    path = request.reference_model()
    if path is None:
        return None
    work_dir = request.work_dir / "reference"
    work_dir.mkdir(exist_ok=True)
    return examine_reference(ingest_model(path, work_dir), host, data, output=request.spec.model.output)


def _search(case: Case, localization: Localization, arena: Arena, deadline: float) -> list[Trial]:
    """Every trial of the method asked for, the chosen one first; none when the model fails on no repair input."""
    if _num_failing(case) == 0:
        return []
    spec = case.spec.repair
    suspects = suspects_of(localization, case.host.blocks, top_k=case.spec.localization.top_k)
    epochs = None if spec.epochs == "auto" else spec.epochs
    return METHODS[spec.method](arena, suspects, level=spec.level, deadline=deadline, epochs=epochs)


def _restoration(case: Case, arena: Arena) -> Restoration | None:
    """What known images are to be like again, where they are replayed through a corruption."""
    weight, replay = restoration_weight(case.spec.repair, bold=case.little_works), case.data.splits.replay
    if case.baseline.augmentation.name != "match" or not weight or replay is None or not replay.labelled:
        return None
    return measure_restoration(arena.starts["original"], weight=weight)


def _num_failing(case: Case) -> int | None:
    """Repair inputs that the original gets wrong; None where nobody knows, without labels."""
    repair = case.data.splits.repair
    if not repair.labelled:
        return None
    return int((case.baseline.logits["repair"].argmax(1).numpy() != repair.labels).sum())


def _package(
    request: RepairRequest,
    case: Case,
    localization: Localization,
    trials: list[Trial],
    evidence: Evidence,
    *,
    narrator: Narrator,
    pace: Pace,
    completion: Completion,
) -> RepairOutcome:
    """Leave the files; a repair the gates refused is a `candidate`, never the `model`."""
    artifacts = [Artifact(name, kind) for name, kind in REPORT_FILES.items()]
    artifacts.append(Artifact("localization.json", "localization"))
    artifacts.append(Artifact("predictions.npz", "predictions"))
    artifacts += _draw(evidence.chosen, request.out_dir)
    artifacts += _certify(evidence.chosen, request)
    exports = _export(case, evidence, request.out_dir) if evidence.chosen else []
    kind = "model" if evidence.outcome == "repaired" else "candidate"
    artifacts += [Artifact(export.file, kind) for export in exports if export.file]
    pairs = write_pairs(request.out_dir, case)
    artifacts += [Artifact(pairs, "pairs")] if pairs else []
    resolved = _resolved_spec(case, localization, pace)
    out = request.out_dir
    write_localization(out / "localization.json", localization, case)
    write_predictions(out / "predictions.npz", evidence.answers)
    report = write_report(
        out / "report.json",
        case,
        evidence,
        localization=localization,
        trials=trials,
        exports=exports,
        resolved_spec=resolved,
        seconds=narrator.seconds(),
        completion=completion,
    )
    write_views(out, report, case.data.splits.present()["test"])
    result = _result(evidence, exports, narrator.seconds(), completion) | {"warnings": report["data"]["warnings"]}
    return RepairOutcome(result, evidence.verdict, resolved, tuple(artifacts))


def _draw(chosen: Trial | None, out_dir: Path) -> list[Artifact]:
    """The cells of the chosen genotype as a figure; nothing where the architecture is as it was."""
    if chosen is None or not chosen.genotype.edits:
        return []
    (out_dir / "genotype.svg").write_text(draw_svg(chosen.genotype.edits), encoding="utf-8")
    return [Artifact("genotype.svg", "genotype")]


def _certify(chosen: Trial | None, request: RepairRequest) -> list[Artifact]:
    """What the chosen model proves of the inputs it was made for; nothing where it was made for none."""
    if chosen is None or chosen.certifies is None:
        return []
    write_certificate(request.out_dir / "certificate.npz", chosen.model, chosen.certifies, seed=request.spec.seed)
    return [Artifact("certificate.npz", "certificate")]


def _export(case: Case, evidence: Evidence, out_dir: Path) -> list[Export]:
    """The chosen model in every format asked for, as `repaired.*` or, where a gate refused it, `candidate.*`."""
    chosen, own, interface = evidence.chosen, case.host.format, case.host.interface
    assert chosen is not None
    model = restore_(chosen.model.cpu(), interface)
    inputs = case.data.tensors("repair", slice(0, EXPORT_BATCH)).to(interface.dtype)
    return export_model(
        Subject(model, case.host.reference, two_batches(inputs, model), chosen.genotype.to_json()),
        out_dir,
        "repaired" if evidence.outcome == "repaired" else "candidate",
        formats=resolve_outputs(case.spec.outputs, own),
        required=own,
    )


def _result(
    evidence: Evidence, exports: list[Export], seconds: dict[str, float], completion: Completion
) -> dict[str, Any]:
    chosen = evidence.chosen
    return {
        "outcome": evidence.outcome,
        "completion": completion,
        "recommended": evidence.verdict == "pass",
        "reason": evidence.reason,
        "repair": chosen.genotype.to_json() | {"name": chosen.genotype.name, "alpha": chosen.alpha} if chosen else None,
        "blocks_repaired": chosen.genotype.to_json()["scope"] if chosen else [],
        **evidence.measured,
        "cost": dict(evidence.cost),
        "gates": [gate.to_json() for gate in evidence.gates],
        "controls": list(evidence.controls),
        "exports": [export.summary() for export in exports],
        "seconds": seconds,
    }


def _package_localization(request: RepairRequest, case: Case, localization: Localization, pace: Pace) -> RepairOutcome:
    if _num_failing(case) == 0:
        raise DatasetError(
            "no_failing_inputs",
            f"the model answers all {len(case.data.splits.repair)} repair inputs correctly",
            hint="send inputs it fails on: localization contrasts them with inputs it gets right",
        )
    write_localization(request.out_dir / "localization.json", localization, case)
    blocks = [{"name": row.name, "score": row.score, "score_sd": row.score_sd} for row in localization.blocks]
    result = {
        "outcome": "localized",
        "recommended": False,
        "kind": localization.kind,
        "method": localization.method,
        "evidence": dict(localization.evidence),
        "blocks": blocks,
        "stability": localization.stability,
        "stable": localization.is_stable,
        "warnings": [asdict(warning) for warning in case.data.warnings],
    }
    resolved = _resolved_spec(case, localization, pace)
    return RepairOutcome(result, "not_evaluated", resolved, (Artifact("localization.json", "localization"),))


def _resolved_spec(case: Case, localization: Localization, pace: Pace) -> dict[str, Any]:
    """The spec with every `auto` replaced by what it became."""
    spec = case.spec.model_dump(mode="json")
    spec["model"]["output"] = case.host.interface.output
    spec["preprocessing"] = case.data.preprocessing.model_dump(mode="json")
    spec["localization"]["method"] = localization.method
    spec["repair"] |= {"augment": case.baseline.augmentation.name, "budget_seconds": round(pace.budget_seconds, 1)}
    distillation = distillation_weight(case.spec.repair, bold=case.little_works)
    spec["repair"] |= {"distillation": distillation, "precision": pace.precision}
    spec["repair"]["restoration"] = restoration_weight(case.spec.repair, bold=case.little_works)
    spec["outputs"] = resolve_outputs(case.spec.outputs, case.host.format)
    spec["evaluation"] = resolved_evaluation(case.spec)
    spec["gates"] = list(DEFAULT_GATES) if case.spec.gates == "auto" else spec["gates"]
    return spec
