"""What a client would like best: the weights of an Accept header (RFC 9110, 12.5.1)."""

import re
from collections.abc import Mapping
from typing import Protocol, TypeVar

from starlette.requests import Request

from app.errors import ApiProblem

_WEIGHT = re.compile(r"^q=(0(?:\.\d{0,3})?|1(?:\.0{0,3})?)$", re.IGNORECASE)


class View(Protocol):
    """One way to show something."""

    @property
    def media_type(self) -> str:
        """As Accept names it."""


Views = TypeVar("Views", bound=View)


def view_for(request: Request, asked: str | None, views: Mapping[str, Views], *, noun: str) -> Views:
    """The view `asked` for by its name, else the one the request's Accept likes best; at equal weight the first.

    Raises ApiProblem `request.not_acceptable` where it likes none.
    """
    if asked is not None:
        return views[asked]
    accept = request.headers.get("accept", "*/*")
    weights = {name: weight_of(view.media_type, accept) for name, view in views.items()}
    best = max(weights, key=lambda name: weights[name])
    if not weights[best]:
        detail = f"The {noun} is made as {', '.join(view.media_type for view in views.values())}, not as {accept}."
        hint = f"Send one of them as Accept, or add ?format={best}."
        raise ApiProblem("request.not_acceptable", detail, hint=hint)
    return views[best]


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
