"""moto's S3 server, with conditional puts as S3 has them. `python -m tests.s3` prints its port and serves until it is killed."""

from __future__ import annotations

import contextlib
import threading
import time
from typing import Any

from moto.server import DomainDispatcherApplication, ThreadedMotoServer

HOST = "127.0.0.1"


def server() -> ThreadedMotoServer:
    """A server on a free port, not started. moto looks whether a key is there and then writes it; S3's conditional put is one act, so two
    never both succeed: puts come one after the other."""
    answer, turn = DomainDispatcherApplication.__call__, threading.Lock()

    def in_turn(self: Any, environ: dict[str, Any], start_response: Any) -> Any:
        with turn if environ["REQUEST_METHOD"] == "PUT" else contextlib.nullcontext():
            return answer(self, environ, start_response)

    DomainDispatcherApplication.__call__ = in_turn
    return ThreadedMotoServer(ip_address=HOST, port=0, verbose=False)


if __name__ == "__main__":
    here = server()
    here.start()
    print(here.get_host_and_port()[1], flush=True)
    time.sleep(1e9)
