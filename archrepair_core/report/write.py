"""Write what a job leaves: report.json, which is the truth every other view derives from, and localization.json."""

import json
import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from archrepair_core.case import Case, Data
from archrepair_core.events import finite
from archrepair_core.export.subject import Export
from archrepair_core.localize.rank import Localization
from archrepair_core.report.evidence import Evidence
from archrepair_core.report.pairs import draw_pairs
from archrepair_core.search.search import Trial


def write_localization(path: Path, localization: Localization, case: Case) -> None:
    """The ranking with each block's shape and cost."""
    described = {name: asdict(block) for name, block in case.host.blocks.items()}
    rows = [asdict(row) | {"block": described[row.name]} for row in localization.blocks]
    _write_json(
        path, {"object": "localization", **asdict(localization), "stable": localization.is_stable, "blocks": rows}
    )


def write_pairs(out_dir: Path, case: Case) -> str | None:
    """The example pairs of what was recognised; the name of the file, None where there is nothing to show."""
    recognition, replay = case.baseline.augmentation.recognition, case.data.splits.replay
    if recognition is None or recognition.corruption is None or replay is None:
        return None
    name = "recognition.png"
    draw_pairs(out_dir / name, recognition, known=replay.images, field=case.data.splits.repair.images)
    return name


def write_predictions(path: Path, evidence: Evidence, case: Case) -> None:
    """Logits before and after with labels, per split, so that other gates can be asked without the model."""
    arrays = {}
    for role, after in evidence.logits.items():
        arrays[f"{role}_before"] = case.baseline.logits[role].numpy()
        arrays[f"{role}_after"] = after.numpy()
        arrays[f"{role}_labels"] = case.data.splits.present()[role].labels
    np.savez_compressed(path, allow_pickle=False, **arrays)


def write_report(
    path: Path,
    case: Case,
    evidence: Evidence,
    *,
    localization: Localization,
    trials: Sequence[Trial],
    exports: Sequence[Export],
    resolved_spec: Mapping[str, Any],
    seconds: Mapping[str, float],
) -> None:
    """Everything a doubter needs: verdict, paired counts, data audit, what was tried, cost, how to run it again."""
    report = {
        "object": "report",
        "verdict": evidence.verdict,
        "outcome": evidence.outcome,
        "reason": evidence.reason,
        "gates": [gate.to_json() for gate in evidence.gates],
        "chosen": describe_trial(evidence.chosen) if evidence.chosen else None,
        **evidence.splits,
        "cost": dict(evidence.cost),
        "seconds": dict(seconds),
        "localization": asdict(localization),
        "blocks": [asdict(block) for block in case.host.blocks.values()],
        "trials": [describe_trial(trial) for trial in trials],
        "data": audit(case.data),
        "recognition": recognition.to_json() if (recognition := case.baseline.augmentation.recognition) else None,
        "ingest": {
            "format": case.host.format,
            "written_by": case.host.written_by,
            "output": case.host.interface.output,
            **asdict(case.host.parity),
        },
        "exports": [export.to_json() for export in exports],
        "spec": resolved_spec,
        "environment": environment(case),
        "limits": limits_of(case, evidence),
    }
    _write_json(path, report)


def describe_trial(trial: Trial) -> dict[str, Any]:
    """One trial as plain data."""
    return {
        "name": trial.genotype.name,
        "genotype": trial.genotype.to_json(),
        "alpha": trial.alpha,
        "validation": trial.score.to_json(),
        "training": asdict(trial.run),
        "search": asdict(trial.search) if trial.search else None,
    }


def audit(data: Data) -> dict[str, Any]:
    """Per role: size, digest of the content and class counts; what was cut or dropped."""
    splits = {
        role: {
            "n": len(images),
            "digest": images.digest,
            "source": images.source,
            "labelled": images.labelled,
            "classes": {str(label): count for label, count in sorted(Counter(images.labels.tolist()).items())},
        }
        for role, images in data.splits.present().items()
    }
    return {"splits": splits, "notes": list(data.splits.notes)}


def environment(case: Case) -> dict[str, Any]:
    """What the numbers were measured on."""
    return {
        "archrepair": version("archrepair"),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "device": str(case.host.device),
        "threads": torch.get_num_threads(),
    }


def limits_of(case: Case, evidence: Evidence) -> list[str]:
    """What this result does not show, in sentences."""
    limits = ["The verdict holds for inputs like the test set; other inputs were not measured."]
    if case.spec.datasets.test is None:
        limits.append("No test set was given: it was cut from the repair set, so both come from the same collection.")
    if "regression" not in evidence.splits:
        limits.append("No regression set was given: what the repair does to inputs without the fault is unknown.")
    validation = case.data.splits.validation
    if validation and not validation.labelled:
        limits.append("Repair inputs had no labels: statistics of their activations, not answers, made the choice.")
    elif validation and len(validation) < 200:
        limits.append(f"Choices were made on {len(validation)} validation inputs only.")
    return limits


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(finite(dict(content)), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
