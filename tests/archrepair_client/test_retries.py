"""What is tried again and after how long, and files in parts: the steps by hand, without any network."""

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import httpx
import pytest

from archrepair_client import NoConnection, QuotaExceeded, ServiceFailed
from archrepair_client.events import EventStream
from archrepair_client.retries import Options, answered, pause_seconds, retry_after_seconds
from archrepair_client.steps import Request, Send, Sleep
from archrepair_client.transfers import MAX_PARTS, PART_BYTES, part_bytes_for, served_name, slices_of

ASKED = Request("POST", "/jobs")


def answer(status, *, headers=(), **problem):
    request = httpx.Request("POST", "http://service/v1/jobs")
    return httpx.Response(status, headers=dict(headers), json=problem, request=request)


def drive(steps, answers):
    """(what the steps return, the requests they sent, the seconds they slept)."""
    sent, slept = [], []
    effect = next(steps)
    while True:
        try:
            if isinstance(effect, Sleep):
                slept.append(effect.seconds)
                effect = steps.send(None)
                continue
            assert isinstance(effect, Send)
            sent.append(effect.request)
            found = answers.pop(0)
            effect = steps.throw(found) if isinstance(found, Exception) else steps.send(found)
        except StopIteration as stop:
            return stop.value, sent, slept


def test_a_post_is_sent_again_with_the_same_key_until_it_is_answered():
    answers = [httpx.ConnectError("refused"), answer(503), httpx.ReadTimeout("late"), answer(202)]
    response, sent, slept = drive(answered(ASKED, Options()), answers)
    assert response.status_code == 202
    assert len({request.headers["Idempotency-Key"] for request in sent}) == 1
    assert [len(sent), len(slept)] == [4, 3]
    other = drive(answered(ASKED, Options()), [answer(202)])[1][0]
    assert other.headers["Idempotency-Key"] != sent[0].headers["Idempotency-Key"]


def test_pauses_grow_to_a_bound_and_are_not_all_the_same():
    for attempt in range(60):
        longest = min(0.5 * 2**attempt, 8.0)
        assert longest / 2 <= pause_seconds(attempt) <= longest
    assert len({pause_seconds(3) for _ in range(20)}) > 1


def test_retry_after_is_obeyed_and_too_long_a_one_is_an_error():
    _, _, slept = drive(answered(ASKED, Options()), [answer(429, headers={"Retry-After": "17"}), answer(202)])
    assert slept == [17.0]
    with pytest.raises(QuotaExceeded):
        drive(answered(ASKED, Options()), [answer(429, headers={"Retry-After": "121"})])
    when = format_datetime(datetime.now(UTC) + timedelta(seconds=60), usegmt=True)
    assert 57 < retry_after_seconds(answer(503, headers={"Retry-After": when})) <= 60
    assert retry_after_seconds(answer(503, headers={"Retry-After": "soon"})) is None


@pytest.mark.parametrize("status", [400, 401, 404, 409, 422])
def test_a_refusal_is_not_tried_again(status):
    with pytest.raises(Exception, match=f"HTTP {status}"):
        drive(answered(ASKED, Options()), [answer(status)])


def test_what_the_service_calls_final_is_final():
    with pytest.raises(QuotaExceeded):
        drive(answered(ASKED, Options()), [answer(429, code="quota.stored_bytes", retryable=False)])
    with pytest.raises(ServiceFailed, match="gone"):
        drive(
            answered(ASKED, Options()), [answer(500, code="platform.content_missing", detail="gone", retryable=False)]
        )


def test_it_is_given_up_after_so_many_attempts():
    with pytest.raises(NoConnection, match="3 attempts"):
        drive(answered(ASKED, Options(max_retries=2)), [httpx.ConnectError("refused")] * 3)
    with pytest.raises(ServiceFailed):
        drive(answered(ASKED, Options(max_retries=0)), [answer(503)])


def test_a_deletion_whose_answer_was_lost_has_succeeded():
    deletion = Request("DELETE", "/jobs/job_1")
    lost = [httpx.ReadError("reset"), answer(404)]
    assert drive(answered(deletion, Options()), lost)[0].status_code == 404


def test_parts_cover_a_file_and_are_never_too_many(tmp_path):
    for size in (1, PART_BYTES, PART_BYTES + 1, 8 * 1024**3, 50 * 1024**3):
        part_bytes = part_bytes_for(size)
        parts = slices_of(size, part_bytes, tmp_path)
        assert sum(part.size_bytes for part in parts) == size
        assert [part.offset for part in parts] == [number * part_bytes for number in range(len(parts))]
        assert len(parts) <= MAX_PARTS


@pytest.mark.parametrize(
    ("header", "name"),
    [
        ('attachment; filename="model.pt"', "model.pt"),
        ('attachment; filename="../../etc/passwd"', "passwd"),
        ('attachment; filename="C:\\\\x.pt"', "x.pt"),
        ('attachment; filename=".."', "download"),
        ("", "download"),
    ],
)
def test_a_served_name_is_no_path(header, name):
    assert served_name(httpx.Response(200, headers={"Content-Disposition": header})) == name


def test_events_are_cut_wherever_the_chunks_are():
    text = 'retry: 3000\n\nevent: a\ndata: {"seq":1,"type":"ä"}\nid: 1\n\n'
    text += ': ping\n\ndata: {"seq":2,\r\ndata: "type":"b"}\r\n\r\n'
    for size in (1, 2, 3, 7, 1000):
        stream, content = EventStream(), text.encode()
        events = [event for at in range(0, len(content), size) for event in stream.feed(content[at : at + size])]
        assert [(event.seq, event.type) for event in events] == [(1, "ä"), (2, "b")]
