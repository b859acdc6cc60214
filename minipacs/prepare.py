"""What has to be true before the first edge starts, in a process of its own, so that the supervisor stays small.

Prints one JSON object to stdout: `password` of the first account when it was just made; or `refused` and `code`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import migrations
from archive import tls
from archive.accounts import assertions, ensure_first_account
from archive.config import ConfigError, Settings, load
from archive.core import open_archive
from archive.errors import ArchiveError
from archive.heartbeat import follow
from archive.rebuild import catch_up
from minipacs import logs
from minipacs.terminal import exit_code


def prepare(settings: Settings) -> str | None:
    """Make the data folder, the schema of an empty database, and the first account; returns its password, once.

    A database that is older than the journal of facts (a backup was restored) is brought up to date.

    Raises:
        ConfigError: a certificate, a key or an authority of `tls`, or the keys of `dicom.jwt`, cannot be used.
        Unavailable: the database cannot be reached, or its schema is older or newer, or it is empty beside the files
            of an archive (the message says what to run); or a volume is away.
    """
    tls.check(settings)
    assertions.check(settings.dicom.jwt)
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    if migrations.current(settings.database_url) is None:
        migrations.upgrade(settings.database_url)
    with open_archive(settings, process="serve") as archive:
        follow(archive)
        catch_up(archive)
        return ensure_first_account(archive)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="minipacs.prepare")
    parser.add_argument("--config", type=Path)
    parser.add_argument("--log", type=logs.Form, choices=list(logs.Form), default=logs.Form.TEXT)
    options = parser.parse_args(argv)
    logs.configure(options.log, process="serve")
    try:
        said: dict[str, object] = {"password": prepare(load(options.config))}
    except (ConfigError, ArchiveError) as error:
        said = {"refused": str(error), "code": exit_code(error)}
    except OSError as error:
        said = {"refused": f"{error.filename}: {error.strerror}", "code": exit_code(error)}
    print(json.dumps(said))


if __name__ == "__main__":
    main()
