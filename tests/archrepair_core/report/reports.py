"""Reports to render: of any number of classes, and with every name as hostile as it can be."""

import json
from dataclasses import replace

import numpy as np
import torch

from archrepair_core.answers import right_of
from archrepair_core.controls import SUMMARY
from archrepair_core.data.columns import encode_column
from archrepair_core.data.images import DIGEST_DTYPE, labelled_images
from archrepair_core.evaluate import reliability, summarize_split
from archrepair_core.report.gallery import choose_examples
from archrepair_core.report.schema import SCHEMA_VERSION, AnyReport
from archrepair_core.robustness import summarize_robustness
from archrepair_core.slices import measure_slices
from archrepair_core.spec import RepairSpec

HOSTILE = "<script>alert(1)</script>\"'&|`$x$ [a](http://x) @all \u202e\x07]]>"


def assert_follows_schema(out):
    """What a repair left in `out`: a report in which the schema knows every field, and the views of it."""
    report = json.loads((out / "report.json").read_text("utf-8"))
    read = AnyReport.validate_python(report)
    assert read.model_dump(mode="json", by_alias=True, exclude_unset=True) == report
    for name in ("report.html", *(["report.md"] if report["gates"] else []), "junit.xml"):
        assert report["verdict"] in (out / name).read_text("utf-8").replace("not evaluated", "not_evaluated")


def logits(num_inputs, num_classes, labels, *, right, seed):
    """Answers that are right for about that share of the inputs."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(num_inputs, num_classes, generator=generator)
    lucky = torch.rand(num_inputs, generator=generator) < right
    values[lucky, torch.as_tensor(labels)[lucky]] += 6
    return values


def make_measured(before, after, labels, *, name, num_kinds=3):
    """Slices and corruptions over random answers, as the engine measures them; `before` is None for one model."""
    count = len(labels)
    images = labelled_images(np.zeros((count, 1, 1, 1), np.uint8), labels, np.zeros(count, DIGEST_DTYPE),
                             name="test", source="test")  # fmt: skip
    column = encode_column(name, [(name, "dusk", None, "rare")[min(row % 7, 3) if row < 40 else row % 3]
                                  for row in range(count)])  # fmt: skip
    right = [None if logits is None else right_of(logits, images) for logits in (before, after)]
    sliced = replace(images, columns={name: column})
    found = {"slices": measure_slices(sliced, *right, columns=[name], min_n=30)}
    rng = np.random.default_rng(0)
    wrong = [None if each is None else rng.binomial(5, np.where(each, 0.2, 0.8)[:, None], (count, num_kinds))
             for each in right]  # fmt: skip
    corruptions = summarize_robustness(*(None if each is None else each.astype(np.uint8) for each in wrong))
    for place, row in enumerate(corruptions["kinds"]):
        cells = [None if each is None else rng.random(5).tolist() for each in right]
        row |= {"kind": f"{name}{place}", "unit": name, "parameters": [1.0, 2.0, 3.0, 4.0, 5.0], "before": cells[0],
                "after": cells[1]}  # fmt: skip
    clean = {side: None if each is None else float(each.mean())
             for side, each in zip(("before", "after"), right, strict=True)}  # fmt: skip
    extra = {"n": count, "seed": 7, "severities": [1, 2, 3, 4, 5], "clean": clean, "seconds": 1.5}
    return json.loads(json.dumps(found | {"corruptions": corruptions | extra}))


def make_evaluation(num_classes=10, *, compared, name="layer1.0", gates=True, num_kinds=3):
    """The report of an evaluation, of one model alone or compared with another one."""
    report = make_report(num_classes, name=name, measured=False)
    labels = np.arange(600) % num_classes
    before = logits(600, num_classes, labels, right=0.6, seed=1) if compared else None
    after = logits(600, num_classes, labels, right=0.9, seed=2)
    size = {"num_params": 4672, "latency_seconds": 0.0125}
    dropped = {"completion", "chosen", "cells", "controls", "localization", "trials", "recognition", "exports"}
    return {key: value for key, value in report.items() if key not in dropped} | {
        "verdict": report["verdict"] if gates else "not_evaluated",
        "outcome": "evaluated",
        "gates": report["gates"] if gates else [],
        "test": json.loads(json.dumps(summarize_split(before, after, labels))),
        **make_measured(before, after, labels, name=name, num_kinds=num_kinds),
        "reliability": {"test": {"before": reliability(before, labels) if compared else None,
                                 "after": reliability(after, labels)}},
        "examples": choose_examples(before, after, labels),
        "cost": report["cost"] if compared else {},
        "size": {"before": size if compared else None, "after": size, "batch": 32},
    }  # fmt: skip


def make_report(num_classes=10, *, num_inputs=600, name="layer1.0", cell=True, measured=True):
    """A report as the engine writes it, over random answers; `name` is what every name in it is."""
    labels = np.arange(num_inputs) % num_classes
    before = logits(num_inputs, num_classes, labels, right=0.6, seed=1)
    after = torch.where(torch.rand(num_inputs, 1, generator=torch.Generator().manual_seed(3)) < 0.8, before,
                        logits(num_inputs, num_classes, labels, right=0.9, seed=2))  # fmt: skip
    split = summarize_split(before, after, labels)
    split = json.loads(json.dumps(split))  # intervals are lists in what a reader gets
    edges = [{"from": "input", "to": "output", "operation": "original"},
             {"from": "input", "to": "1", "operation": name},
             {"from": "1", "to": "output", "operation": name}]  # fmt: skip
    training = {"losses": [2.5, 1.25, 0.75], "learning_rate": 0.01, "steps": 30, "seconds": 1.5, "diverged": False}
    shares = [{"input → 1": {name: share, "skip_connect": 1 - share}} for share in (0.5, 0.625, 0.75)]
    edits = [{"block": name, "edges": edges}] if cell else []
    trial = {
        "name": f"{name} + cell",
        "genotype": {"scope": [name], "start": "original", "align": 0.0, "edits": edits},
        "alpha": 0.7,
        "validation": {"accuracy": 0.75, "change": 0.1, "broken": 0.01, "expected_broken": 0.012, "utility": 0.09},
        "training": training,
        "search": {"select": "argmax", "shares": shares, "supernet_accuracy": 0.5, "derived_accuracy": 0.4,
                   "seconds": 3.5, "training": training},
    }  # fmt: skip
    block = {"name": name, "kind": name, "input_shape": [16, 32, 32], "output_shape": [16, 32, 32],
             "num_params": 4672, "macs": 4718592, "latency_share": 0.25, "depth": 0, "level": "block",
             "arguments": ["input"], "borrowed": []}  # fmt: skip
    accuracy = split["accuracy"]
    told = {"reason": name, "allowed_seconds": 12.5, "seconds": 12.25}
    summary = {key: split[key] for key in ("n", *SUMMARY)}
    against = {"only_repair_right": 40, "only_control_right": 25, "difference": 0.025,
               "difference_ci95": [-0.0015, 0.052], "mcnemar_p": 0.08}  # fmt: skip
    controls = [
        {"name": "weights", "ran": True, "repaired": [name], "test": summary, "regression": None,
         "repair_against_it": against, **told},
        {"name": "random_block", "ran": False, "repaired": [], "test": None, "regression": None,
         "repair_against_it": None, **told},
    ]  # fmt: skip
    gates = [
        {"expression": "test.accuracy > before", "state": "pass", "reason": name, "observed": accuracy["change"],
         "limit": 0.0, "interval": accuracy["change_ci95"]},
        {"expression": "test.broken_rate <= 0.02", "state": "fail", "reason": name,
         "observed": split["broken_rate"]["value"], "limit": 0.02, "interval": split["broken_rate"]["ci95"]},
        {"expression": "test.repair_rate >= 0.4", "state": "inconclusive", "reason": name, "observed": 0.41,
         "limit": 0.4, "interval": [0.38, 0.44]},
        {"expression": "regression.accuracy >= before", "state": "not_evaluated", "reason": name, "observed": None,
         "limit": None, "interval": None},
    ]  # fmt: skip
    data = {"n": num_inputs, "digest": "ab" * 32, "source": name, "labelled": True,
            "classes": {str(label): int((labels == label).sum()) for label in range(num_classes)},
            "skipped": [{"row": 7, "name": name, "reason": name}]}  # fmt: skip
    duplicates = [{"first": "repair", "second": second, "exact": 3, "near": 2, "compared": num_inputs,
                   "examples": [[1, 9], [2, 19]]} for second in (None, "test")]  # fmt: skip
    return {
        "object": "report",
        "schema_version": SCHEMA_VERSION,
        "verdict": "fail",
        "outcome": "no_improvement",
        "reason": name,
        "completion": "full",
        "gates": gates,
        "chosen": trial,
        "test": split,
        **(make_measured(before, after, labels, name=name) if measured else {}),
        "reliability": {"test": {"before": reliability(before, labels), "after": reliability(after, labels)}},
        "examples": choose_examples(before, after, labels),
        "controls": controls,
        "cost": {"latency_ratio": 1.25, "params_ratio": 1.0625},
        "cells": [{"block": name, "params": {"before": 4672, "after": 5000},
                   "macs": {"before": 4718592, "after": 4800000}}] if cell else [],
        "seconds": {"ingesting": 0.5, "total": 12.25},
        "localization": {
            "method": "drift", "formula": "none", "stability": 0.875, "n_passing": 10, "n_failing": 5,
            "blocks": [{"name": name, "score": 0.5, "score_sd": 0.125, "top_share": 1.0},
                       {"name": "layer2", "score": -0.25, "score_sd": None, "top_share": 0.0}],
            "layers": [], "kind": "input_shift", "evidence": {"class": name}, "passes": 3,
            "drift": [{"layer": f"{name}{place}", "divergence": place / 8, "jump": 0.125} for place in range(20)],
            "methods": {"drift": {name: 0.5}},
        },
        "blocks": [block],
        "trials": [trial],
        "data": {"splits": {"repair": data, "test": data}, "notes": [name], "duplicates": duplicates,
                 "warnings": [{"code": "near_duplicates", "detail": name, "hint": name}]},
        "recognition": {
            "kind": "jpeg_compression", "parameter": 75.0, "unit": "quality", "fits": True, "sureness": 1.0,
            "distance": 2.5, "identity_distance": 158.5, "divergences": {"identity": 0.01}, "num_field": 200,
            "ranking": [{"kind": name, "parameter": 75.0, "distance": 2.5}], "summary": name,
        },
        "ingest": {"format": "torchscript", "written_by": name, "output": name, "batch_sizes": [1, 8],
                   "max_abs_diff": 0.0, "num_state_entries": 12, "num_trainable": 6, "untrained": []},
        "exports": [{"format": "torchscript", "file": "candidate.pt", "method": "script", "note": name}],
        "spec": RepairSpec.model_validate({"datasets": {"repair": "upload:repair", "test": name}}).model_dump(
            mode="json"
        ),
        "environment": {"archrepair": "0.1.0", "torch": "2.14.1", "python": "3.11.7", "machine": name,
                        "device": "cpu", "threads": 1},
        "limits": [name],
    }  # fmt: skip
