import hashlib
import os
from dataclasses import replace

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
