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

from archrepair_core.answers import Answers
from archrepair_core.case import Case, Host
from archrepair_core.data.duplicates import find_duplicates, warn_of
from archrepair_core.data.images import LabelledImages
from archrepair_core.data.split import DataWarning
from archrepair_core.evaluate import reliability
from archrepair_core.events import finite
from archrepair_core.export.subject import Export
from archrepair_core.localize.rank import Localization
from archrepair_core.report.evidence import Evidence
from archrepair_core.report.gallery import draw_examples, examples_of, narrowed
from archrepair_core.report.html import render_html
from archrepair_core.report.junit import render_junit
from archrepair_core.report.markdown import render_markdown
from archrepair_core.report.numbers import CONTROL_NAMES
from archrepair_core.report.pairs import draw_pairs
from archrepair_core.report.schema import SCHEMA_VERSION, Completion
from archrepair_core.search.trials import Trial

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


def write_predictions(path: Path, answers: Answers) -> None:
    """Logits before and after with labels, per split, so that other gates can be asked without the model."""
    arrays = {}
    for role, after in answers.after.items():
        if answers.before is not None:
            arrays[f"{role}_before"] = answers.before[role].numpy()
        arrays[f"{role}_after"] = after.numpy()
        arrays[f"{role}_labels"] = answers.images[role].labels
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
        **_measured_part(evidence, case.host),
        "completion": completion,
        "chosen": describe_trial(evidence.chosen) if evidence.chosen else None,
        "cells": list(evidence.cells),
        "controls": list(evidence.controls),
        "seconds": dict(seconds),
        "localization": asdict(localization),
        "trials": [describe_trial(trial) for trial in trials],
        "data": audit(case.data.splits.present(), case.data.splits.notes, case.data.warnings),
        "recognition": recognition.to_json() if (recognition := case.baseline.augmentation.recognition) else None,
        "exports": [export.to_json() for export in exports],
        "spec": resolved_spec,
        "limits": [*_cut_short(completion, seconds, resolved_spec), *limits_of(case, evidence)],
    }
    _write_json(path, report)
    return dict(json.loads(path.read_text("utf-8")))


def write_evaluation(
    path: Path,
    evidence: Evidence,
    host: Host,
    *,
    size: Mapping[str, Any],
    notes: Sequence[str],
    resolved_spec: Mapping[str, Any],
    seconds: Mapping[str, float],
) -> dict[str, Any]:
    """The report of an evaluation: what a repair's says of what was measured, and nothing of causes and changes.

    Returns what a reader of the file will find in it.
    """
    report = {
        **_measured_part(evidence, host),
        "size": dict(size),
        "seconds": dict(seconds),
        "data": audit(evidence.answers.images, notes),
        "spec": resolved_spec,
        "limits": measured_limits(evidence),
    }
    _write_json(path, report)
    return dict(json.loads(path.read_text("utf-8")))


def _measured_part(evidence: Evidence, host: Host) -> dict[str, Any]:
    """What every report says: the verdict, what was measured, of which model and on what machine."""
    return {
        "object": "report",
        "schema_version": SCHEMA_VERSION,
        "verdict": evidence.verdict,
        "outcome": evidence.outcome,
        "reason": evidence.reason,
        "gates": [gate.to_json() for gate in evidence.gates],
        **evidence.measured,
        "reliability": _reliability(evidence.answers),
        "examples": examples_of(evidence.answers),
        "cost": dict(evidence.cost),
        "blocks": [asdict(block) for block in host.blocks.values()],
        "ingest": {
            "format": host.format,
            "written_by": host.written_by,
            "output": host.interface.output,
            **asdict(host.parity),
        },
        "environment": environment(host),
    }


def _reliability(answers: Answers) -> dict[str, Any]:
    """Bins of confidence before and after, per split."""
    labels = {role: images.labels for role, images in answers.images.items()}
    return {
        role: {
            "before": reliability(answers.before[role], labels[role]) if answers.before else None,
            "after": reliability(after, labels[role]),
        }
        for role, after in answers.after.items()
    }


def write_views(out_dir: Path, report: Mapping[str, Any], test: LabelledImages) -> None:
    """The report as people and CI systems read it, beside report.json and made of nothing but it and some pictures."""
    pictures = draw_examples(report["examples"], test)
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


def audit(
    images_by_role: Mapping[str, LabelledImages], notes: Sequence[str], warnings: Sequence[DataWarning] = ()
) -> dict[str, Any]:
    """Per role: size, digest of the content, class counts, duplicates and skipped images; what is doubtful."""
    splits = {
        role: {
            "n": len(images),
            "digest": images.digest,
            "source": images.source,
            "labelled": images.labelled,
            "classes": {str(label): count for label, count in sorted(Counter(images.labels.tolist()).items())},
            "skipped": [asdict(image) for image in images.skipped],
        }
        for role, images in images_by_role.items()
    }
    duplicates = find_duplicates(images_by_role)
    return {
        "splits": splits,
        "notes": list(notes),
        "duplicates": [asdict(found) for found in duplicates],
        "warnings": [asdict(warning) for warning in (*warnings, *warn_of(duplicates))],
    }


def environment(host: Host) -> dict[str, Any]:
    """What the numbers were measured on."""
    return {
        "archrepair": version("archrepair"),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "device": str(host.device),
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
    limits = measured_limits(evidence)
    limits += [_beaten_by(control) for control in evidence.controls if _is_beaten_by(control)]
    if case.spec.datasets.test is None:
        limits.append("No test set was given: it was cut from the repair set, so both come from the same collection.")
    if "regression" not in evidence.measured:
        limits.append("No regression set was given: what the repair does to inputs without the fault is unknown.")
    validation = case.data.splits.validation
    if validation and not validation.labelled:
        limits.append("Repair inputs had no labels: statistics of their activations, not answers, made the choice.")
    elif validation and len(validation) < 200:
        limits.append(f"Choices were made on {len(validation)} validation inputs only.")
    return limits


def _is_beaten_by(control: Mapping[str, Any]) -> bool:
    against = control["repair_against_it"]
    return against is not None and against["difference_ci95"][1] < 0


def _beaten_by(control: Mapping[str, Any]) -> str:
    lost = -100 * control["repair_against_it"]["difference"]
    return f"A control did better on the test inputs by {lost:.2f} points ({CONTROL_NAMES[control['name']]})."


def measured_limits(evidence: Evidence) -> list[str]:
    """What measuring as it was done does not show."""
    limits = ["This holds for inputs like the test set; other inputs were not measured."]
    corruptions, num_test = evidence.measured.get("corruptions"), evidence.measured["test"]["n"]
    if corruptions:
        drawn = f"; {corruptions['n']} of {num_test} test inputs were drawn" if corruptions["n"] < num_test else ""
        limits.append(f"Corruptions are made by a program, seeded, not photographed{drawn}.")
    hidden = sum(column["not_shown"]["values"] for column in evidence.measured.get("slices", []))
    if hidden:
        limits.append(f"{hidden} values of the sliced columns have too few inputs to say anything about.")
    return limits


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(finite(dict(content)), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
