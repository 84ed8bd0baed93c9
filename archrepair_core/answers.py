"""What models answer to held-out data, and what is measured on it: one thing for repairs and evaluations."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from archrepair_core.data.images import LabelledImages
from archrepair_core.evaluate import predicted, summarize_split
from archrepair_core.robustness import DEFAULT_MAX_INPUTS, OnShare, drawn_rows, measure_robustness
from archrepair_core.slices import measure_slices
from archrepair_core.spec import Preprocessing, RepairSpec, resolve_controls, resolve_corruptions

MEASURED_ROLES = ("test", "regression")


@dataclass(frozen=True)
class Answers:
    """Held-out images by role, and logits [N, K] for them; `before` is None where one model is measured alone."""

    images: Mapping[str, LabelledImages]
    before: Mapping[str, Tensor] | None
    after: Mapping[str, Tensor]

    def summarize(self) -> dict[str, dict[str, Any]]:
        """The metrics of every role, as JSON data."""
        return {
            role: summarize_split(self.before[role] if self.before else None, after, self.images[role].labels)
            for role, after in self.after.items()
        }

    def slices(self, columns: Sequence[str], *, min_n: int) -> list[dict[str, Any]]:
        """The metrics of every slice of the test set by these columns."""
        before = right_of(self.before["test"], self.images["test"]) if self.before else None
        after = right_of(self.after["test"], self.images["test"])
        return measure_slices(self.images["test"], before, after, columns=columns, min_n=min_n)


def right_of(logits: Tensor, images: LabelledImages) -> np.ndarray:
    """Which images are answered right, bool [N]."""
    return (predicted(logits) == torch.as_tensor(images.labels)).numpy()


def measure_all(
    models: Mapping[str, nn.Module],
    answers: Answers,
    preprocessing: Preprocessing,
    spec: RepairSpec,
    *,
    device: torch.device | str,
    on_share: OnShare | None = None,
) -> dict[str, Any]:
    """Every metric of the models `after` and, where there is one, `before`: by role, and the `slices` and `corruptions`
    that the spec asks for. JSON data that gates speak of."""
    measured: dict[str, Any] = answers.summarize()
    if spec.evaluation.slices:
        measured["slices"] = answers.slices(spec.evaluation.slices, min_n=spec.evaluation.min_slice)
    if kinds := resolve_corruptions(spec):
        measured["corruptions"] = _measure_corruptions(
            models, answers, preprocessing, spec, kinds=kinds, device=device, on_share=on_share
        )
    return measured


def _measure_corruptions(
    models: Mapping[str, nn.Module],
    answers: Answers,
    preprocessing: Preprocessing,
    spec: RepairSpec,
    *,
    kinds: Sequence[str],
    device: torch.device | str,
    on_share: OnShare | None,
) -> dict[str, Any]:
    """`clean` is the accuracy on the same inputs as they are."""
    whole = answers.images["test"]
    rows = drawn_rows(len(whole), max_inputs=max_inputs_of(spec), seed=spec.seed)
    found = measure_robustness(
        models, whole.subset(rows), preprocessing, kinds=kinds, seed=spec.seed, device=device, on_share=on_share
    )
    clean = {
        name: float(right_of(logits["test"], whole)[rows].mean()) if logits else None
        for name, logits in (("before", answers.before), ("after", answers.after))
    }
    return {**found, "clean": clean}


def max_inputs_of(spec: RepairSpec) -> int:
    """How many test inputs go through corruptions."""
    asked = spec.evaluation.max_inputs
    return DEFAULT_MAX_INPUTS if asked == "auto" else asked


def resolved_evaluation(spec: RepairSpec) -> dict[str, Any]:
    """The section `evaluation` of a spec with every `auto` replaced by what it became."""
    kinds = resolve_corruptions(spec)
    corruptions = spec.evaluation.corruptions
    resolved = corruptions if isinstance(corruptions, list) else "common-15x5" if kinds else "none"
    return spec.evaluation.model_dump(mode="json") | {
        "corruptions": resolved,
        "max_inputs": max_inputs_of(spec),
        "controls": resolve_controls(spec) or "none",
    }
