"""The schema's history, and the way up (STYLE §9). Found by the package's own path, never by the working directory."""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from archive.core import schema_revision
from archive.engines import make_engine
from archive.errors import IndexUnavailable

LOCK_SECONDS = 10  # patience for a lock on PostgreSQL: better a clear refusal than a blocked archive
_ADVISORY_LOCK = 0x6D696E69  # one migration at a time per database


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    return config


def head() -> str:
    """The revision that `upgrade` brings a schema to."""
    revision = ScriptDirectory.from_config(_config()).get_current_head()
    assert revision is not None
    return revision


def current(url: str) -> str | None:
    """The revision of the database's schema; None: it is empty. Raises IndexUnavailable."""
    engine = make_engine(url)
    try:
        return schema_revision(engine)
    finally:
        engine.dispose()


def upgrade(url: str) -> None:
    """Bring an empty or older schema to `head`, in one transaction. Does nothing when it is there already.

    Raises:
        IndexUnavailable: the database cannot be reached, is locked for too long, or its schema is newer than this
            version. Nothing was changed.
    """
    _make_folder(url)
    engine = make_engine(url).execution_options(minipacs_write=True)
    config = _config()
    try:
        with engine.begin() as conn:
            if conn.dialect.name == "postgresql":
                conn.execute(text(f"SET LOCAL lock_timeout = '{LOCK_SECONDS}s'"))
                conn.execute(text(f"SELECT pg_advisory_xact_lock({_ADVISORY_LOCK})"))
            config.attributes["connection"] = conn
            command.upgrade(config, "head")
    except CommandError:
        raise IndexUnavailable(  # not `from`: the database is there and answers, it is this version that does not fit
            f"the schema of the database is not one that this version ({head()}) knows: "
            "start the version of minipacs that made it, or a newer one"
        ) from None
    except SQLAlchemyError as error:
        raise IndexUnavailable("the database cannot be reached, or is locked by somebody else") from error
    finally:
        engine.dispose()


def _make_folder(url: str) -> None:
    """SQLite makes its file, not the file's folder."""
    path = url.removeprefix("sqlite:///")
    if path != url:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
