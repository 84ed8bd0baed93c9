"""URLs that a request names to be called later, as a route meets them."""

from app.deps import Gateway
from app.errors import ApiProblem
from app.shared.egress import EgressError, EgressPolicy, check_url


def require_callable(gateway: Gateway, url: str, *, pointer: str) -> None:
    """Refuse what will never be called, as far as the text of the URL tells. Raises ApiProblem."""
    try:
        check_url(url, EgressPolicy(gateway.settings.egress_allow), schemes=("https", "http"))
    except EgressError as error:
        errors = [{"pointer": pointer, "detail": str(error)}]
        raise ApiProblem("webhook.url_refused", str(error), hint=error.hint, errors=errors) from None
