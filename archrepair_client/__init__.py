"""ArchRepair for Python and for the shell. `ArchRepair` and `AsyncArchRepair` are the way in; see docs/sdk.md."""

from archrepair_client.client import ArchRepair, AsyncArchRepair
from archrepair_client.errors import (
    APIError,
    ArchRepairError,
    AuthenticationFailed,
    BadInput,
    Conflict,
    DigestMismatch,
    InvalidRequest,
    NoApiKey,
    NoConnection,
    NotConfigured,
    NotFound,
    PermissionDenied,
    QuotaExceeded,
    ServiceFailed,
    WaitTimedOut,
)

__all__ = [
    "APIError",
    "ArchRepair",
    "ArchRepairError",
    "AsyncArchRepair",
    "AuthenticationFailed",
    "BadInput",
    "Conflict",
    "DigestMismatch",
    "InvalidRequest",
    "NoApiKey",
    "NoConnection",
    "NotConfigured",
    "NotFound",
    "PermissionDenied",
    "QuotaExceeded",
    "ServiceFailed",
    "WaitTimedOut",
]
