"""Signatures of the SDK as its callers see them: a method written as `Steps[Job]` returns a Job."""

from typing import Any

import griffe

SEEN_AS = {"Steps": None, "Listing": "Iterator"}


class SeenByCallers(griffe.Extension):
    """Takes the wrapper off what operations return."""

    def on_function_instance(self, *, func: griffe.Function, **_: Any) -> None:
        """Called for every function that is read."""
        returns = func.returns
        if isinstance(returns, griffe.ExprSubscript) and str(returns.left) in SEEN_AS:
            outer = SEEN_AS[str(returns.left)]
            func.returns = f"{outer}[{returns.slice}]" if outer else returns.slice
