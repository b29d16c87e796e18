"""The workers of one run, as much of `torch.distributed` as the loop needs.

1. `Ranks.current()` reads the process group that the launcher opened; without one it is a world of one, and every method is free.
2. `sum` adds tensors over all ranks; `same` and `told` give all ranks rank 0's number or text; `gather` collects equal tensors in rank
   order.
3. `together` runs something on rank 0 alone, and lets the other ranks fail with it instead of waiting for it for ever.
4. `ending_together` does the same for everything else: a rank that fails alone leaves its letter in the group's store, where the
   others look while they wait, and they fail with it.
5. No wait is for ever: a rank that does not come for `patience_seconds`, or whose connection is gone, ends the others with
   InternalError (exit 70), and the stacks of those who waited are on their stderr.
6. `joined` opens the process group where torchrun is the launcher; Ray opens its own.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar

import torch
from torch import distributed

from model.errors import BiovlmError, ExitCode, InternalError, kind_named, kind_of
from model.training.watchdog import dump_stacks

PATIENCE_SECONDS = 900.0
KEY = "biovlm/run"
POLL_SECONDS = 0.0002
LOOK_SECONDS = 0.5
P = ParamSpec("P")
R = TypeVar("R")


@contextlib.contextmanager
def joined(gpu: bool) -> Iterator[None]:
    """Inside, the processes that torchrun started are one group, each with a GPU of its own if asked; one alone stays alone."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        gpu = gpu and torch.cuda.is_available()  # without one the stage refuses, in its own words
        if gpu:
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        distributed.init_process_group("nccl" if gpu else "gloo")
    try:
        yield
    finally:
        if distributed.is_initialized():  # also the group of one that DeepSpeed wants
            distributed.destroy_process_group()


@dataclass(frozen=True)
class Ranks:
    """This process among its equals."""

    rank: int = 0
    world_size: int = 1
    device: torch.device = torch.device("cpu")
    """Where tensors that travel must be: the GPU under NCCL."""
    patience_seconds: float = PATIENCE_SECONDS
    """Longest wait for another rank."""

    @classmethod
    def current(cls, device: torch.device, patience_seconds: float = PATIENCE_SECONDS) -> Ranks:
        """The present process group, or a world of one."""
        if not (distributed.is_available() and distributed.is_initialized()):
            return cls(patience_seconds=patience_seconds)
        carrier = device if distributed.get_backend() == "nccl" else torch.device("cpu")
        return cls(distributed.get_rank(), distributed.get_world_size(), carrier, patience_seconds)

    @property
    def leads(self) -> bool:
        """True on rank 0, which alone writes and reports."""
        return self.rank == 0

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """`tensor` (any shape, equal on all ranks) added over all ranks, on its own device. The input may be changed."""
        if self.world_size == 1:
            return tensor
        travelling = tensor.to(self.device)
        self._wait(distributed.all_reduce(travelling, async_op=True))
        return travelling.to(tensor.device)

    def same(self, number: int) -> int:
        """Rank 0's `number` on every rank."""
        return int(self.sum(torch.tensor([number if self.leads else 0], dtype=torch.int64))[0])

    def told(self, text: str) -> str:
        """Rank 0's `text` on every rank; what the others give is not looked at."""
        content = text.encode() if self.leads else b""
        letters = torch.zeros(self.same(len(content)), dtype=torch.int32)
        if self.leads:
            letters[:] = torch.tensor(list(content), dtype=torch.int32)
        return bytes(self.sum(letters).tolist()).decode()

    def gather(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        """`tensor` of every rank in rank order, on the CPU; all have one shape."""
        if self.world_size == 1:
            return [tensor.cpu()]
        parts = [torch.empty_like(tensor, device=self.device) for _ in range(self.world_size)]
        self._wait(distributed.all_gather(parts, tensor.to(self.device), async_op=True))
        return [part.cpu() for part in parts]

    def together(self, act: Callable[[], int]) -> int:
        """Run `act` on rank 0 and give its result (0 or more) to all; if it fails, all ranks fail."""
        if self.world_size == 1:
            return act()
        failure: BiovlmError | None = None
        result = 0
        if self.leads:
            try:
                result = act()
            except BiovlmError as error:
                failure, result = error, -int(error.exit_code)
        result = self.same(result)
        if failure is not None:
            raise failure
        if result < 0:
            raise _like(ExitCode(-result))
        return result

    def tell(self, letter: BiovlmError) -> None:
        """Leave a letter for the others, who look for one while they wait. The first one stays."""
        if self.world_size > 1:
            _leave(_store(), letter)

    def _wait(self, work: Any) -> None:
        """Wait for a message of all ranks, or raise the letter of one that will never send its part."""
        store, began = _store(), time.monotonic()
        look = began + LOOK_SECONDS
        while not work.is_completed():
            if time.monotonic() > look:
                _raise_letter(store)
                look = time.monotonic() + LOOK_SECONDS
                if look > began + self.patience_seconds:
                    dump_stacks()
                    raise InternalError(
                        f"rank {self.rank} waited {self.patience_seconds:,.0f} s for the other workers, and one did not come",
                        "that worker stands still or is gone, its own log says where; the same command goes on from the last "
                        "checkpoint. resources.stall_seconds is how long they wait",
                    )
            time.sleep(POLL_SECONDS)
        try:
            work.wait()
        except RuntimeError as error:  # the connection to a rank is gone
            time.sleep(LOOK_SECONDS)  # its letter, if it left one, may be just behind
            _raise_letter(store)
            raise InternalError(
                f"rank {self.rank} lost its connection to another worker",
                "that worker died; the same command goes on from the last checkpoint",
            ) from error


def ending_together(run: Callable[P, R]) -> Callable[P, R]:
    """`run` in every process of the group, so that one that fails ends those that wait for it, with its letter."""

    @functools.wraps(run)
    def telling(*args: P.args, **kw: P.kwargs) -> R:
        if not (distributed.is_available() and distributed.is_initialized()):
            return run(*args, **kw)
        store, rank = _store(), distributed.get_rank()
        store.add(f"{KEY}/{rank}", 1)
        try:
            return run(*args, **kw)
        except Exception as error:
            unknown = InternalError(f"{type(error).__name__} on rank {rank}", "its own log says more")
            letter = error if isinstance(error, BiovlmError) else unknown
            _leave(store, letter)
            raise

    return telling


def _store() -> Any:
    return distributed.distributed_c10d._get_default_store()


def _leave(store: Any, letter: BiovlmError) -> None:
    """Put the letter into the group's store, unless one is there."""
    text = json.dumps([type(letter).__name__, letter.message, letter.hint])
    with contextlib.suppress(RuntimeError):  # the process that holds the store may be gone
        store.compare_set(_place(store), "", text)


def _place(store: Any) -> str:
    """Where a letter of this run lies in the group's store; one group may see several runs, and all ranks count them alike."""
    return f"{KEY}/letter/{store.add(f'{KEY}/{distributed.get_rank()}', 0)}"


def _raise_letter(store: Any) -> None:
    try:
        if not store.check([_place(store)]):
            return
    except RuntimeError:  # the process that holds the store is gone, and its letter with it
        return
    name, message, hint = json.loads(store.get(_place(store)))
    raise kind_named(name)(message, hint) from None


def _like(code: ExitCode) -> BiovlmError:
    """An error with rank 0's exit code, so that every rank's process ends with the same one."""
    return kind_of(code)("rank 0 failed", "its own log says why")
