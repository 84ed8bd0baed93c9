"""Parts that go straight to a real S3 store, by signed URLs; and what happens when they do not get there."""

import asyncio
import hashlib
import os
from urllib.parse import urlsplit

import pytest

from archrepair_client import ArchRepair, AsyncArchRepair
from tests.servers import free_port

LARGE_BYTES = 20_000_000  # three parts
pytestmark = pytest.mark.parametrize("stack", ["production"], indirect=True)


@pytest.fixture(scope="module")
def line(stack, bad_line_to):
    """How clients reach the store."""
    with bad_line_to(urlsplit(os.environ["AWS_ENDPOINT_URL"]).port) as line:
        yield line


@pytest.fixture(scope="module")
def service(stack, line, start_gateway, tmp_path_factory):
    directory = tmp_path_factory.mktemp("signing")
    with start_gateway(stack.fresh(directory / "state", store_public_endpoint=line.url)) as running:
        yield running


@pytest.fixture
def signed_client(service):
    with ArchRepair(base_url=service.url, api_key=service.key) as client:
        yield client


@pytest.fixture
def large(tmp_path):
    path = tmp_path / "large.npz"
    path.write_bytes(os.urandom(LARGE_BYTES))
    return path


def recorded(http):
    """Where each PUT will go, and whether the key goes with it."""
    puts = []

    def note(request):
        if request.method == "PUT":
            puts.append((f"http://127.0.0.1:{request.url.port}", "authorization" in request.headers))

    async def note_async(request):
        note(request)

    http.event_hooks = {"request": [note if hasattr(http, "close") else note_async]}
    return puts


def is_whole(upload, path):
    return (upload.state, upload.sha256) == ("completed", hashlib.sha256(path.read_bytes()).hexdigest())


@pytest.mark.slow
def test_parts_go_to_the_store_and_the_key_does_not(signed_client, service, line, large):
    puts = recorded(signed_client._http)
    assert is_whole(signed_client.uploads.send(large), large)
    assert puts == [(line.url, False)] * 3
    large.write_bytes(b"x" * 1_000_000)
    assert is_whole(signed_client.uploads.send(large), large), "one part is not worth another address"
    assert puts[3:] == [(service.url, True)]


def test_the_async_client_does_the_same(service, line, large):
    async def send():
        async with AsyncArchRepair(base_url=service.url, api_key=service.key) as client:
            puts = recorded(client._http)
            return await client.uploads.send(large), puts

    upload, puts = asyncio.run(send())
    assert is_whole(upload, large)
    assert puts == [(line.url, False)] * 3


def test_another_process_goes_on_and_vouches_for_what_lies_in_the_store(signed_client, line, large):
    def die_after_a_part(transfer):
        if transfer.done_bytes:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        signed_client.uploads.send(large, parallel=1, on_transfer=die_after_a_part)
    puts, told = recorded(signed_client._http), []
    upload = signed_client.uploads.send(large, on_transfer=told.append)
    assert is_whole(upload, large)
    assert told[0].done_bytes > LARGE_BYTES // 3
    assert puts == [(line.url, False)] * (3 - told[0].done_bytes // upload.part_bytes)


@pytest.mark.slow
def test_what_is_cut_on_the_way_to_the_store_goes_through_the_service(signed_client, service, line, large):
    puts = recorded(signed_client._http)
    cuts, line.cut_after["up"] = line.cuts, line.passed["up"] + LARGE_BYTES * 7 // 10
    assert is_whole(signed_client.uploads.send(large), large)
    assert line.cuts == cuts + 1
    assert 1 <= puts.count((service.url, True)) <= 3
    assert puts.count((line.url, False)) == 3, "the store is asked once for each"


def test_what_is_damaged_on_the_way_to_the_store_is_noticed_there(signed_client, service, line, large):
    puts = recorded(signed_client._http)
    line.damage_after["up"] = line.passed["up"] + LARGE_BYTES // 2
    assert is_whole(signed_client.uploads.send(large), large)
    assert not line.damage_after
    assert puts.count((service.url, True)) == 1


@pytest.mark.slow
def test_a_store_that_clients_cannot_reach_is_asked_once(stack, start_gateway, large, tmp_path, caplog):
    nobody = f"http://127.0.0.1:{free_port()}"
    settings = stack.fresh(tmp_path / "service" / "state", store_public_endpoint=nobody)
    with start_gateway(settings) as running, ArchRepair(base_url=running.url, api_key=running.key) as client:
        puts = recorded(client._http)
        with caplog.at_level("INFO", logger="archrepair_client"):
            assert is_whole(client.uploads.send(large, parallel=1), large)
    assert puts == [(nobody, False), *[(running.url, True)] * 3]
    assert "ConnectError; sent to the service" in caplog.text


def test_a_key_that_may_not_look_at_uploads_still_sends_them(signed_client, service, large):
    key = signed_client.keys.create("writer", scopes=["uploads:write"])
    with ArchRepair(base_url=service.url, api_key=key.key) as writer:
        puts = recorded(writer._http)
        assert is_whole(writer.uploads.send(large), large)
    assert puts == [(service.url, True)] * 3
