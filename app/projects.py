"""`python -m app.projects`: the operator's projects, their quotas, and the first key of each."""

import argparse
import sys
from collections.abc import Sequence

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from app.keys import KEYS_WRITE, create_api_key, ensure_project, live_keys
from app.shared.db import make_engine, make_sessions
from app.shared.quotas import QUOTAS
from app.shared.settings import Settings
from app.shared.tables import ApiKey, Project


def main(words: Sequence[str] | None = None) -> None:
    """Do one command and print its answer. A refusal is one line on stderr, with exit code 1."""
    asked = _parser().parse_args(words)
    engine = make_engine(Settings().database_url)
    try:
        with make_sessions(engine).begin() as session:
            print(asked.command(session, asked))  # noqa: T201  the answer of this command
    except ValueError as error:
        sys.exit(f"error: {error}")
    finally:
        engine.dispose()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m app.projects", description="Projects, their quotas and first keys."
    )
    commands = parser.add_subparsers(required=True)
    create = commands.add_parser("create", help="make a project")
    quota = commands.add_parser("quota", help="change quotas of a project; NAME= gives the service's own back")
    for command, do in ((create, _create), (quota, _set_quotas)):
        command.add_argument("project")
        command.set_defaults(command=do)
    for command, flag in ((create, "--quota"), (quota, "quota")):
        command.add_argument(flag, nargs="*", default=[], metavar="NAME=N", help=", ".join(QUOTAS))
    commands.add_parser("list", help="all projects").set_defaults(command=_list)
    key = commands.add_parser("key", help="print the first key of a project, once")
    key.add_argument("project")
    key.add_argument("--another", action="store_true", help="also when it has one that can make keys, which was lost")
    key.set_defaults(command=_key)
    return parser


def _create(session: Session, asked: argparse.Namespace) -> str:
    if session.scalar(select(Project.id).where(Project.name == asked.project)) is not None:
        raise ValueError(f"there is a project {asked.project!r} already")
    if not asked.project.isprintable() or not 0 < len(asked.project) <= 200:
        raise ValueError(f"{asked.project!r} cannot be a project's name: 1 to 200 printable characters can")
    project = ensure_project(session, asked.project)
    return _set_quotas(session, asked) if asked.quota else project.id


def _set_quotas(session: Session, asked: argparse.Namespace) -> str:
    project = _project(session, asked.project)
    quotas = dict(project.quotas)
    for word in asked.quota:
        name, _, number = word.partition("=")
        if name not in QUOTAS:
            raise ValueError(f"there is no quota {name!r}; there are {', '.join(QUOTAS)}")
        if number and not number.isdecimal():
            raise ValueError(f"{word!r}: a quota is a whole number, e.g. {name}=2")
        quotas.pop(name, None)
        quotas |= {name: int(number)} if number else {}
    project.quotas = quotas
    return _line(project)


def _list(session: Session, _asked: argparse.Namespace) -> str:
    rows_of_keys = session.execute(select(ApiKey.project_id, func.count()).group_by(ApiKey.project_id))
    counts: dict[str, int] = {row[0]: row[1] for row in rows_of_keys}
    rows = session.scalars(select(Project).order_by(Project.created_at, Project.id))
    return "\n".join(f"{_line(row)}  keys made: {counts.get(row.id, 0)}" for row in rows)


def _key(session: Session, asked: argparse.Namespace) -> str:
    project = _project(session, asked.project)
    makers = [row.prefix for row in session.scalars(live_keys(project.id)) if KEYS_WRITE in row.scopes]
    if makers and not asked.another:
        known = ", ".join(f"ar_{prefix}_…" for prefix in makers)
        raise ValueError(f"the project has {known}: POST /v1/api-keys makes more; --another, if it is lost")
    return create_api_key(session, project_id=project.id, name="first")


def _project(session: Session, name: str) -> Project:
    project = session.scalar(select(Project).where(Project.name == name).with_for_update(key_share=True))
    if project is None:
        raise ValueError(f"there is no project {name!r}: `create` makes it")
    return project


def _line(project: Project) -> str:
    quotas = " ".join(f"{name}={number}" for name, number in sorted(project.quotas.items())) or "the service's"
    return f"{project.id}  {project.name}  quotas: {quotas}"


if __name__ == "__main__":
    main()
