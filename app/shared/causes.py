"""How an attempt can end, and which endings are followed by another attempt."""

# Until the job's own attempts are used up.
ALL = 1 << 30

# How often in one job an ending of this cause is followed by another attempt.
RETRIES = {
    "succeeded": 0,
    "cancelled": 0,
    "deadline": 0,
    "user_error": 0,  # the same model and data would be refused again
    "oom": 0,  # the same job needs the same memory again, and may take its neighbours with it
    "platform_error": 0,
    "platform_outage": ALL,  # a platform_error whose reason passes
    "engine_crashed": 1,  # a cosmic ray, or a defect that the model meets every time; killed by somebody too
    "worker_lost": ALL,
    "preempted": ALL,  # not counted either
}
CAUSES = tuple(cause for cause in RETRIES if cause != "platform_outage")
OUTAGES = ("platform.database_unavailable", "platform.store_unavailable", "worker.disk_full")
_CAUSE_OF_CODE = {
    "job.deadline_exceeded": "deadline",
    "worker.engine_crashed": "engine_crashed",
    "worker.engine_killed": "engine_crashed",
    "worker.out_of_memory": "oom",
}


def cause_of(code: str, category: str) -> str:
    """The cause of a failure with this problem."""
    return _CAUSE_OF_CODE.get(code, "user_error" if category == "user" else "platform_error")


def retries_of(cause: str, code: str) -> int:
    """How often such an ending is followed by another attempt."""
    return RETRIES["platform_outage" if code in OUTAGES else cause]
