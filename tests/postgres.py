"""A PostgreSQL of its own behind a socket, as an ordinary user: PostgreSQL refuses root."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path


def is_installed() -> bool:
    """Whether its programs are there."""
    return all(shutil.which(name) for name in ("initdb", "pg_ctl", "createdb"))


@contextlib.contextmanager
def running(connections: int = 200) -> Iterator[str]:
    """The address of an empty database of a new server; all of it is gone afterwards."""
    user = "nobody" if os.geteuid() == 0 else None
    # Not a folder of pytest's: each session that starts closes those to other users.
    home = Path(tempfile.mkdtemp(prefix="biovlm-postgres-"))
    if user:
        shutil.chown(home, user)

    def call(*command: str) -> None:
        subprocess.run(command, user=user, cwd=home, stdout=subprocess.DEVNULL, check=True)

    call("initdb", "--auth=trust", "--username=mlflow", "--no-sync", "--pgdata", str(home / "data"))
    options = f"-c listen_addresses= -c unix_socket_directories={home} -c fsync=off -c max_connections={connections}"
    call("pg_ctl", "--pgdata", str(home / "data"), "--wait", "--log", str(home / "log"), "--options", options, "start")
    try:
        call("createdb", "--host", str(home), "--username", "mlflow", "mlflow")
        yield f"postgresql+psycopg2://mlflow@/mlflow?host={home}"
    finally:
        call("pg_ctl", "--pgdata", str(home / "data"), "--mode", "immediate", "stop")
        shutil.rmtree(home, ignore_errors=True)
