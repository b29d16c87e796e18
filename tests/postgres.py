"""A PostgreSQL of its own behind a socket, as an ordinary user: PostgreSQL refuses root."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PROGRAMS = ("initdb", "pg_ctl", "createdb", "psql")
USER = "mlflow"


@dataclass(frozen=True)
class Postgres:
    """A server that runs."""

    home: Path
    """Its socket lies here; whatever its user is to read may be put here."""

    @property
    def address(self) -> str:
        """Of the database `mlflow`, for SQLAlchemy."""
        return f"postgresql+psycopg2://{USER}@/mlflow?host={self.home}"

    def call(self, *command: str, **options: Any) -> str:
        """What a command says that runs as the server's user. CalledProcessError: it failed."""
        options = {"user": _user(), "cwd": self.home, "capture_output": True, "text": True, "check": True} | options
        return str(subprocess.run(command, **options).stdout)

    def ask(self, sql: str, role: str = USER, database: str = "mlflow") -> list[str]:
        """The rows that `role` gets for `sql`, as CSV. CalledProcessError: it is refused."""
        said = f"psql --host {self.home} --username {role} --dbname {database} --no-psqlrc --csv --tuples-only".split()
        return self.call(*said, "--set", "ON_ERROR_STOP=1", input=sql).splitlines()


def is_installed() -> bool:
    """Whether its programs are there."""
    return all(shutil.which(name) for name in PROGRAMS)


def _user() -> str | None:
    return "nobody" if os.geteuid() == 0 else None


@contextlib.contextmanager
def running(connections: int = 200) -> Iterator[Postgres]:
    """A new server with an empty database `mlflow`; all of it is gone afterwards."""
    # Not a folder of pytest's: each session that starts closes those to other users.
    home = Path(tempfile.mkdtemp(prefix="biovlm-postgres-"))
    server, data = Postgres(home), str(home / "data")
    if user := _user():
        shutil.chown(home, user)
    try:
        server.call("initdb", "--auth=trust", f"--username={USER}", "--no-sync", "--pgdata", data)
        options = f"-c listen_addresses= -c unix_socket_directories={home} -c fsync=off -c max_connections={connections}"
        # The server inherits what pg_ctl writes to: a pipe would be read for ever.
        quiet = {"capture_output": False, "stdout": subprocess.DEVNULL}
        server.call("pg_ctl", "--pgdata", data, "--wait", "--log", str(home / "log"), "--options", options, "start", **quiet)
        try:
            server.call("createdb", "--host", str(home), "--username", USER, "mlflow")
            yield server
        finally:
            server.call("pg_ctl", "--pgdata", data, "--mode", "immediate", "stop")
    finally:
        shutil.rmtree(home, ignore_errors=True)
