"""What can go wrong in the engine, in words a customer can act on. Torch-free and knows nothing of HTTP.

ArchRepairError
├── SpecError        spec.*      the request contradicts itself or the data
├── ModelError       model.*     the upload is unsafe, unreadable or not repairable
├── DatasetError     dataset.*   the data cannot be read, or does not fit the model
└── EngineError      platform.*  our fault: the engine broke one of its own promises

Every error carries `code` (stable, for programs), `detail` (what was wrong, with the value) and `hint` (what to do).
"""


class ArchRepairError(Exception):
    """Root of everything the engine raises on purpose; `category` says whose turn it is, the user's or ours."""

    family = "platform"
    category = "platform"

    def __init__(self, code: str, detail: str, *, hint: str = "") -> None:
        super().__init__(detail)
        self.code = f"{self.family}.{code}"
        self.detail = detail
        self.hint = hint

    def to_problem(self) -> dict[str, str]:
        """The error as the fields a failed job shows: code, detail, hint, category."""
        return {"code": self.code, "detail": self.detail, "hint": self.hint, "category": self.category}


class SpecError(ArchRepairError, ValueError):
    """The spec contradicts itself, or asks for something this model or data cannot give."""

    family = "spec"
    category = "user"


class ModelError(ArchRepairError, ValueError):
    """The uploaded model is unsafe, unreadable, or cannot be made editable."""

    family = "model"
    category = "user"


class DatasetError(ArchRepairError, ValueError):
    """The data cannot be read, or does not fit the model or the other splits."""

    family = "dataset"
    category = "user"


class EngineError(ArchRepairError):
    """The engine broke a promise of its own, e.g. an export that does not reproduce the eager model."""
