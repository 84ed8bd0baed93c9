"""What a client would like best: the weights of an Accept header (RFC 9110, 12.5.1)."""

import re

_WEIGHT = re.compile(r"^q=(0(?:\.\d{0,3})?|1(?:\.0{0,3})?)$", re.IGNORECASE)


def weight_of(media_type: str, accept: str) -> float:
    """How much the header wants this type, 0 (not at all) to 1; the most exact of its ranges that fits decides."""
    kind = media_type.partition("/")[0]
    exactness = {media_type: 2, f"{kind}/*": 1, "*/*": 0}
    fitting = [(exactness[named], weight) for named, weight in map(_parse, accept.split(",")) if named in exactness]
    return max(fitting, default=(0, 0.0))[1]


def _parse(item: str) -> tuple[str, float]:
    named, *parameters = (part.strip().lower() for part in item.split(";"))
    weights = [float(match[1]) for match in map(_WEIGHT.match, parameters) if match]
    return named, weights[0] if weights else 1.0
