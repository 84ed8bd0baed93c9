import base64
import hashlib
import http.server
import json
import os
import threading
from dataclasses import replace
from typing import ClassVar
from urllib.parse import unquote

import obstore
import pytest
from sqlalchemy import select, update

from app.shared.cache import cache_key
from app.shared.datasets import settle_datasets, submit_ingest
from app.shared.ids import new_id
from app.shared.jobs import submit_job
from app.shared.references import parse_reference
from app.shared.tables import Dataset, Job, JobInput
from tests.tls import make_authority, tls_server
from worker.references import FetchFailed, fetch_reference
from worker.supervisor import run_next_job

DATA = b"images and labels"
SHA256 = hashlib.sha256(DATA).hexdigest()


@pytest.fixture
def root(tmp_path):
    (tmp_path / "data" / "signs").mkdir(parents=True)
    (tmp_path / "data" / "signs" / "a.npz").write_bytes(DATA)
    (tmp_path / "secret").write_text("not yours")
    return tmp_path / "data"


@pytest.fixture
def opened(service, root):
    """The service of a worker that may read `root`, and the bucket its own store is in."""
    settings = service.bench.settings
    bucket = settings.store_url if settings.store_url.startswith("s3://") else "s3://none"
    settings = settings.model_copy(
        update={"dataset_roots": (str(root),), "dataset_buckets": (bucket,), "dataset_bytes": 1000}
    )
    return replace(service, bench=replace(service.bench, settings=settings))


def submit(service, reference, behave="succeed"):
    with service.bench.sessions.begin() as session:
        spec = {"behave": behave, "datasets": {"repair": reference, "test": reference}}
        return submit_job(
            session, project_id=service.project_id, spec=spec, kind="repair", model_id=service.model_id
        ).id


def inputs(service, job_id):
    with service.bench.sessions() as session:
        return session.scalars(select(JobInput).where(JobInput.job_id == job_id)).all()


def test_a_file_reference_is_fetched_kept_and_told(opened, root):
    reference = (root / "signs" / "a.npz").as_uri()
    job_id = submit(opened, reference)
    run_next_job(opened.bench)
    job = opened.job(job_id)
    assert job.status == "succeeded", job.error
    (kept,) = inputs(opened, job_id)
    assert (kept.name, kept.filename, kept.sha256, kept.size_bytes) == (reference, "a.npz", SHA256, len(DATA))
    assert bytes(obstore.get(opened.bench.store, kept.storage_key).bytes()) == DATA
    assert job.resolved_spec["inputs"] == {reference: {"sha256": SHA256, "size_bytes": len(DATA)}}
    assert opened.artifacts(job_id)["repaired.pt"][1] == b"MODEL" + DATA
    assert "fetching file:///" in opened.events(job_id, "job.progress")[0].data["message"]


def test_a_later_attempt_works_on_the_bytes_of_the_first(opened, root):
    reference = (root / "signs" / "a.npz").as_uri()
    job_id = submit(opened, reference)
    run_next_job(opened.bench)
    (root / "signs" / "a.npz").write_bytes(b"changed since")
    with opened.bench.sessions.begin() as session:  # as if the worker had been lost before it wrote the end
        session.execute(update(Job).values(status="queued", owner=None, finished_at=None, priority=9))
    run_next_job(opened.bench)
    assert opened.job(job_id).attempt == 2
    assert opened.artifacts(job_id)["repaired.pt"][1] == b"MODEL" + DATA


def test_what_a_worker_has_fetched_may_be_asked_for_by_its_digest(opened, root):
    """A path alone says nothing of its content, but a job that has read it does."""
    reference = (root / "signs" / "a.npz").as_uri()
    job_id = submit(opened, reference)
    assert opened.job(job_id).cache_key is None
    run_next_job(opened.bench)
    job = opened.job(job_id)
    asked = {"model_sha256": "0", "hardware": "auto", "digests": {}}
    same = {"datasets": dict.fromkeys(("repair", "test"), f"{reference}#sha256={SHA256}")}
    assert cache_key(job.spec, **asked) is None
    assert job.cache_key == cache_key(job.spec | same, **asked)


def test_data_that_has_changed_fails_the_job_with_both_digests(opened, root):
    reference = f"{(root / 'signs' / 'a.npz').as_uri()}#sha256={'0' * 64}"
    job_id = submit(opened, reference)
    run_next_job(opened.bench)
    job = opened.job(job_id)
    assert (job.status, job.error["code"], job.error["category"]) == ("failed", "dataset.digest_mismatch", "user")
    assert SHA256 in job.error["detail"]
    assert "0" * 64 in job.error["detail"]
    assert job.error["phase"] == "ingesting"
    assert inputs(opened, job_id) == []


@pytest.mark.parametrize(
    ("make", "code"),
    [
        (lambda root: os.symlink(root.parent / "secret", root / "x"), "dataset.not_there"),
        (lambda root: os.symlink(root.parent, root / "x"), "dataset.not_there"),
        (lambda root: (root / "x").mkdir(), "dataset.not_there"),
        (lambda root: os.mkfifo(root / "x"), "dataset.not_there"),
        (lambda root: None, "dataset.not_there"),
        (lambda root: (root / "x").write_bytes(b"x" * 1001), "dataset.too_large"),
    ],
)
def test_only_a_plain_file_within_the_limit_is_read(opened, root, tmp_path, make, code):
    make(root)
    with pytest.raises(FetchFailed) as caught:
        fetch_reference(parse_reference((root / "x").as_uri()), tmp_path / "to", opened.bench.settings)
    assert caught.value.problem["code"] == code
    assert caught.value.problem["hint"]


def test_a_link_on_the_way_leads_nowhere(opened, root, tmp_path):
    os.symlink(root.parent, root / "out")
    with pytest.raises(FetchFailed, match="link"):
        fetch_reference(parse_reference((root / "out" / "secret").as_uri()), tmp_path / "to", opened.bench.settings)


@pytest.mark.parametrize("host", ["127.0.0.1", "10.0.0.1", "no-such-host.invalid", "localhost"])
def test_a_signature_in_a_url_is_not_repeated_in_what_failed(service, tmp_path, host):
    reference = parse_reference(f"https://{host}/data.npz?signature=SECRET-9c1#sha256={SHA256}")
    with pytest.raises(FetchFailed) as caught:
        fetch_reference(reference, tmp_path / "to", service.bench.settings)
    assert "SECRET-9c1" not in f"{caught.value} {caught.value.problem}"
    assert "SECRET-9c1" not in reference.shown + reference.filename


def test_the_worker_checks_places_again(service, tmp_path):
    for text in ("file:///etc/passwd", "s3://acme/a.npz", f"https://127.0.0.1/a#sha256={SHA256}"):
        with pytest.raises(FetchFailed) as caught:
            fetch_reference(parse_reference(text), tmp_path / "to", service.bench.settings)
        assert caught.value.problem["code"] in ("dataset.reference_not_allowed", "dataset.url_refused")


@pytest.mark.parametrize("stack", ["production"], indirect=True)
def test_an_object_of_an_opened_bucket_is_read_with_the_operators_credentials(opened, tmp_path):
    obstore.put(opened.bench.store, "customers/a.npz", DATA)
    url = f"{opened.bench.settings.store_url}/customers/a.npz"
    fetched = fetch_reference(parse_reference(url), tmp_path / "to", opened.bench.settings)
    assert (fetched.sha256, (tmp_path / "to").read_bytes()) == (SHA256, DATA)
    with pytest.raises(FetchFailed) as caught:
        fetch_reference(parse_reference(f"{url}.gone"), tmp_path / "to", opened.bench.settings)
    assert caught.value.problem["code"] == "dataset.not_there"


class Cloud(http.server.BaseHTTPRequestHandler):
    """What both clouds' protocols have in common: GET of a name that may be escaped. Azure's wants to know who asks."""

    objects: ClassVar[dict[str, bytes]] = {}

    def do_GET(self):
        path = unquote(self.path)
        content = self.objects.get(path)
        if "x-ms-version" in self.headers and not self.headers["Authorization"].startswith("SharedKey acme:"):
            content = None
        self.send_response(404 if content is None else 200)
        self.send_header("Content-Length", str(len(content or b"")))
        self.send_header("Last-Modified", "Fri, 27 Nov 2026 01:00:00 GMT")
        self.send_header("ETag", '"1"')
        self.end_headers()
        self.wfile.write(content or b"")

    def log_message(self, *_):
        """Say nothing."""


@pytest.fixture
def clouds(service, monkeypatch):
    """A server to which the operator's environment points `gs://` and `az://`, and a worker that may read a bucket."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Cloud)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    url = f"http://127.0.0.1:{server.server_port}"
    google = {"gcs_base_url": url, "disable_oauth": True, "client_email": "", "private_key": "", "private_key_id": ""}
    monkeypatch.setenv("GOOGLE_SERVICE_ACCOUNT_KEY", json.dumps(google))
    azure = {"ENDPOINT": url, "ACCOUNT_NAME": "acme", "ACCOUNT_KEY": base64.b64encode(b"0" * 32).decode()}
    for name, value in azure.items():
        monkeypatch.setenv(f"AZURE_STORAGE_{name}", value)
    monkeypatch.setenv("AZURE_ALLOW_HTTP", "true")
    Cloud.objects = {}
    yield service.bench.settings.model_copy(update={"dataset_buckets": ("gs://signs/open", "az://signs/open")})
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.parametrize("kind", ["gs", "az"])
def test_clouds_are_read_with_the_operators_settings(clouds, tmp_path, kind):
    Cloud.objects["/signs/open/a b.npz"] = DATA
    fetched = fetch_reference(parse_reference(f"{kind}://signs/open/a%20b.npz"), tmp_path / "to", clouds)
    assert (fetched.sha256, (tmp_path / "to").read_bytes()) == (SHA256, DATA)
    for path, code in (("open/none.npz", "not_there"), ("closed/a.npz", "reference_not_allowed")):
        with pytest.raises(FetchFailed) as caught:
            fetch_reference(parse_reference(f"{kind}://signs/{path}"), tmp_path / "to", clouds)
        assert caught.value.problem["code"] == f"dataset.{code}"


@pytest.mark.parametrize("kind", ["gs", "az"])
def test_shards_of_a_cloud_are_joined_in_order(clouds, tmp_path, kind):
    for number in range(8, 12):
        Cloud.objects[f"/signs/open/s-{number:02}.tar"] = b"%d " % number
    sha256 = hashlib.sha256(b"8 9 10 11 ").hexdigest()
    reference = parse_reference(f"{kind}://signs/open/s-{{08..11}}.tar#sha256={sha256}")
    assert fetch_reference(reference, tmp_path / "to", clouds).sha256 == sha256
    assert (tmp_path / "to").read_bytes() == b"8 9 10 11 "
    with pytest.raises(FetchFailed, match=r"no object .*s-12\.tar"):
        fetch_reference(parse_reference(f"{kind}://signs/open/s-{{08..12}}.tar"), tmp_path / "to", clouds)


def test_shards_of_a_directory_become_one_input_within_the_limit(opened, root):
    for number in range(3):
        (root / f"s-{number}.tar").write_bytes(b"%d" % number * 300)
    reference = f"{root.as_uri()}/s-{{0..2}}.tar"
    job_id = submit(opened, reference)
    run_next_job(opened.bench)
    assert opened.job(job_id).status == "succeeded", opened.job(job_id).error
    (kept,) = inputs(opened, job_id)
    assert (kept.name, kept.size_bytes) == (reference, 900)
    assert opened.artifacts(job_id)["repaired.pt"][1] == b"MODEL" + b"".join(b"%d" % n * 300 for n in range(3))
    (root / "s-3.tar").write_bytes(b"3" * 300)
    with pytest.raises(FetchFailed, match="more than the 1,000 bytes"):
        fetch_reference(parse_reference(f"{root.as_uri()}/s-{{0..3}}.tar"), root.parent / "to", opened.bench.settings)


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return make_authority(tmp_path_factory.mktemp("tls"))


@pytest.fixture
def over_tls(service, authority, monkeypatch):
    """A server of TLS on this machine, its authority trusted, and a worker whose operator lets it be called."""
    monkeypatch.setenv("SSL_CERT_FILE", str(authority))
    settings = service.bench.settings.model_copy(update={"egress_allow": ("127.0.0.1", "localhost")})
    with tls_server(authority.parent, {"/a.npz": DATA}) as server:
        yield replace(service, bench=replace(service.bench, settings=settings)), server


@pytest.mark.parametrize("path", ["/a.npz?signature=1", "/moved"])
def test_a_url_is_fetched_over_tls_kept_and_told(over_tls, path):
    service, server = over_tls
    server.files |= {"/a.npz?signature=1": DATA}
    server.redirects["/moved"] = "/a.npz"
    job_id = submit(service, f"{server.url(path)}#sha256={SHA256}")
    run_next_job(service.bench)
    job = service.job(job_id)
    assert job.status == "succeeded", job.error
    (kept,) = inputs(service, job_id)
    assert (kept.sha256, kept.size_bytes) == (SHA256, len(DATA))
    assert service.artifacts(job_id)["repaired.pt"][1] == b"MODEL" + DATA
    assert "signature" not in service.events(job_id, "job.progress")[0].data["message"]


def test_a_redirect_to_another_host_is_not_followed_though_it_may_be_called(over_tls):
    service, server = over_tls
    server.redirects["/away"] = server.url("/a.npz", host="localhost")
    job_id = submit(service, f"{server.url('/away')}#sha256={SHA256}")
    run_next_job(service.bench)
    job = service.job(job_id)
    assert (job.status, job.error["code"], job.error["category"]) == ("failed", "dataset.redirect_refused", "user")
    assert server.asked == [(f"127.0.0.1:{server.port}", "/away")]
    assert inputs(service, job_id) == []


def register(service, reference):
    with service.bench.sessions.begin() as session:
        row = Dataset(id=new_id("ds"), project_id=service.project_id, name="d", reference=reference, labels={})
        session.add(row)
        session.flush()
        submit_ingest(session, row, content=None)
    return row.id


def dataset(service, dataset_id):
    with service.bench.sessions() as session:
        return session.get_one(Dataset, dataset_id)


def test_a_registered_reference_becomes_a_dataset_with_its_bytes_in_the_store(opened, root):
    dataset_id = register(opened, (root / "signs" / "a.npz").as_uri())
    run_next_job(opened.bench)
    found = dataset(opened, dataset_id)
    assert (found.state, found.sha256, found.filename) == ("ready", SHA256, "a.npz"), found.error
    assert found.facts["num_samples"] == len(DATA)
    assert bytes(obstore.get(opened.bench.store, found.storage_key).bytes()) == DATA


def test_a_reference_that_leads_nowhere_rejects_the_dataset(opened, root):
    dataset_id = register(opened, (root / "nothing").as_uri())
    run_next_job(opened.bench)
    found = dataset(opened, dataset_id)
    assert (found.state, found.error["code"]) == ("rejected", "dataset.not_there")
    with opened.bench.sessions.begin() as session:
        assert settle_datasets(session) == []
