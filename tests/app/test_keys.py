import stat
from pathlib import Path

from sqlalchemy.orm import Session, sessionmaker

from app.keys import MAX_KNOWN, FoundKey, KnownKeys, create_api_key, ensure_key_file, find_api_key
from app.prepare import prepare
from app.shared.settings import Settings
from app.shared.tables import ApiKey


def test_a_key_is_found_again_and_its_secret_is_not_kept(sessions: sessionmaker[Session], project_id: str):
    with sessions.begin() as session:
        key = create_api_key(session, project_id=project_id, name="ci")
    with sessions() as session:
        found = find_api_key(session, key)
        assert found is not None
        row = found.row
        assert (row.project_id, row.name) == (project_id, "ci")
        stored = {column.name: getattr(row, column.name) for column in ApiKey.__table__.columns}
        assert key.split("_", 2)[2] not in repr(stored)
        assert find_api_key(session, key + "x") is None
        assert find_api_key(session, "") is None


def test_the_key_file_is_private_and_stays(settings: Settings):
    path = settings.state_dir / "api-key"
    key = path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert prepare(settings) == path
    assert path.read_text() == key


def test_a_key_file_stays_valid_for_a_new_database(settings: Settings, sessions: sessionmaker[Session], tmp_path: Path):
    path = tmp_path / "api-key"
    path.write_text("ar_0a1b2c3d_a-key-from-an-older_database\n")
    with sessions.begin() as session:
        assert ensure_key_file(session, path) == "ar_0a1b2c3d_a-key-from-an-older_database"
    with sessions() as session:
        assert find_api_key(session, "ar_0a1b2c3d_a-key-from-an-older_database") is not None


def test_what_is_known_of_keys_is_bounded_and_forgotten():
    found, known = FoundKey(ApiKey(id="key_1"), expired=False, to_note=False), KnownKeys(seconds=60)
    known.keep("ar_0_secret", found)
    assert known.get("ar_0_secret") is found
    assert known.get("ar_0_other") is None
    assert "secret" not in repr(vars(known))
    known.forget()
    assert known.get("ar_0_secret") is None
    for number in range(MAX_KNOWN + 1):
        known.keep(str(number), found)
    assert known.get("0") is None
    assert known.get(str(MAX_KNOWN)) is found
    past = KnownKeys(seconds=0)
    past.keep("ar_0_secret", found)
    assert past.get("ar_0_secret") is None
