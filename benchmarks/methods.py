"""The ways to repair that are compared, each a change to the spec of a job. `auto` sets no knob but the seconds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Method:
    """Changes to the spec, the roles the job is not given, whether the repair set has labels, and gates of its own."""

    spec: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    without: tuple[str, ...] = ()
    labelled: bool = True
    gates: Sequence[str] | None = None


def _repair(method: str, **knobs: Any) -> Method:
    return Method({"repair": {"method": method, **knobs}})


# Room for the whole cell: within the default limits little of it would be left.
ROOMY = {"max_latency_ratio": 2, "max_params_ratio": 2, "max_macs_ratio": 2}
NETWORK = {"repair": {"method": "weights", "level": "network"}}

# What is compared on every case: the two of the mission, the parts of the first, and what an engineer would try.
COMPARED: dict[str, Method] = {
    "auto": Method(),
    "archrepair": _repair("archrepair", **ROOMY),
    "block search": _repair("block_search"),
    "network fine-tune": Method(NETWORK),
    "weights of one block": _repair("weights", level="block"),
    "batch-norm only": _repair("bn"),
}
# The other levels of the paper's empirical study, and the baselines of the literature: on one case of each kind.
LITERATURE: dict[str, Method] = {
    "weights of one layer": _repair("weights", level="layer"),
    "weights of some neurons": _repair("weights", level="neuron"),
    "arachne": _repair("arachne"),
    "apricot": _repair("apricot"),
    "mode": _repair("mode"),
    "sensei": _repair("sensei"),
    "few-shot mix": _repair("fewshot_mix"),
    "deeprepair": _repair("deeprepair"),
    "certify": _repair("certify"),
}
METHODS: dict[str, Method] = COMPARED | LITERATURE
# What `auto` is worth without its parts, and with less data.
ABLATIONS: dict[str, Method] = {
    "auto without replay": Method(without=("replay",)),
    "network fine-tune without replay": Method(NETWORK, without=("replay",)),
    "auto without field labels": Method(labelled=False),
    "align only, no labels": Method({"repair": {"method": "align"}}, labelled=False),
    "auto, at most 0.3 % broken": Method({}, gates=("test.accuracy > before", "test.broken_rate <= 0.003")),
    "auto, no match": Method({"repair": {"augment": "flip_crop"}}),
    "auto, no restoration": Method({"repair": {"restoration": 0}}),
    "auto, no distillation": Method({"repair": {"distillation": 0}}),
    "auto, no interpolation": Method({"repair": {"interpolate": False}}),
    "auto, no search": Method({"repair": {"level": "network"}}),
    "auto, blocks only": Method({"repair": {"level": "block"}}),
    "auto, random block only": Method({"repair": {"level": "block"}, "localization": {"method": "random"}}),
    "archrepair of one layer": _repair("archrepair", level="layer", **ROOMY),
    "auto, blocks only, no cache": Method({"repair": {"level": "block", "cache_gb": 0}}),
}
# The same repair of whichever block each way of localization blames (RQ3).
LOCALIZATIONS: dict[str, Method] = {
    f"block by {method}": Method(
        {"repair": {"method": "weights", "level": "block"}, "localization": {"method": method, "top_k": 1}}
    )
    for method in ("auto", "drift", "spectrum", "gradient", "spectrum+gradient", "random")
}
ROWS: dict[str, Method] = METHODS | ABLATIONS | LOCALIZATIONS
ONE_BLOCK = "block="


def method_of(row: str) -> Method:
    """The method of a row; `block=layer2.0` repairs the weights of that block."""
    if row.startswith(ONE_BLOCK):
        include = {"include": [row.removeprefix(ONE_BLOCK)], "top_k": 1}
        return Method({"repair": {"method": "weights", "level": "block"}, "localization": include})
    return ROWS[row]
