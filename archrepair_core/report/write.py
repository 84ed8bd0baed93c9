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
from archrepair_core.evaluate import reliability
from archrepair_core.events import finite
from archrepair_core.export.subject import Export
from archrepair_core.localize.rank import Localization
from archrepair_core.report.evidence import Evidence
from archrepair_core.report.gallery import draw_examples, examples_of, narrowed
from archrepair_core.report.html import render_html
from archrepair_core.report.junit import render_junit
from archrepair_core.report.markdown import render_markdown
from archrepair_core.report.pairs import draw_pairs
from archrepair_core.report.schema import SCHEMA_VERSION, Completion
from archrepair_core.search.search import Trial

PAIRS_NAME = "recognition.png"


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
    draw_pairs(out_dir / PAIRS_NAME, recognition, known=replay.images, field=case.data.splits.repair.images)
    return PAIRS_NAME


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
    completion: Completion,
) -> dict[str, Any]:
    """Everything a doubter needs: verdict, paired counts, data audit, what was tried, cost, how to run it again.

    Returns what a reader of the file will find in it.
    """
    report = {
        "object": "report",
        "schema_version": SCHEMA_VERSION,
        "verdict": evidence.verdict,
        "outcome": evidence.outcome,
        "reason": evidence.reason,
        "completion": completion,
        "gates": [gate.to_json() for gate in evidence.gates],
        "chosen": describe_trial(evidence.chosen) if evidence.chosen else None,
        **evidence.splits,
        "reliability": _reliability(case, evidence),
        "examples": examples_of(case, evidence),
        "cost": dict(evidence.cost),
        "cells": list(evidence.cells),
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
        "limits": [*_cut_short(completion, seconds, resolved_spec), *limits_of(case, evidence)],
    }
    _write_json(path, report)
    return dict(json.loads(path.read_text("utf-8")))


def _reliability(case: Case, evidence: Evidence) -> dict[str, Any]:
    """Bins of confidence before and after, per split."""
    present = case.data.splits.present()
    return {
        role: {
            "before": reliability(case.baseline.logits[role], present[role].labels),
            "after": reliability(after, present[role].labels),
        }
        for role, after in evidence.logits.items()
    }


def write_views(out_dir: Path, report: Mapping[str, Any], case: Case) -> None:
    """The report as people and CI systems read it, beside report.json and made of nothing but it and some pictures."""
    pictures = draw_examples(report["examples"], case)
    pairs = out_dir / PAIRS_NAME
    if pairs.is_file():
        pictures["recognition"] = narrowed(pairs.read_bytes())
    (out_dir / "report.html").write_text(render_html(report, pictures), encoding="utf-8")
    (out_dir / "report.md").write_text(render_markdown(report), encoding="utf-8")
    (out_dir / "junit.xml").write_text(render_junit(report), encoding="utf-8")


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


def _cut_short(completion: Completion, seconds: Mapping[str, float], spec: Mapping[str, Any]) -> list[str]:
    if completion == "full":
        return []
    spent, budget = seconds["repairing"], spec["repair"]["budget_seconds"]
    return [
        f"The search was stopped on request after {spent:.0f} s of a budget of {budget:.0f} s: this is the best it had "
        "by then, measured like any other, and a longer search may find a better one."
    ]


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
