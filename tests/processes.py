"""Four processes on this machine that talk through gloo, started once and given one task after another."""

from __future__ import annotations

import importlib
import os
import queue
import socket
import sys
import traceback
from pathlib import Path
from typing import Any

import torch.multiprocessing as mp

WORLD = 4
PATIENCE = 120.0  # seconds after which a task counts as hanging


def _serve(rank: int, port: int, inbox: Any, outbox: Any) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), OMP_NUM_THREADS="1", LOCAL_RANK=str(rank))
    sys.path.insert(0, str(Path(__file__).parent))
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=WORLD)
    while (task := inbox.get()) is not None:
        module, name, given = task
        try:
            outbox.put((rank, True, getattr(importlib.import_module(module), name)(**given)))
        except BaseException:  # noqa: BLE001: whatever it is, the test has to hear of it
            outbox.put((rank, False, traceback.format_exc()))


class Processes:
    """The processes; what they run are functions of modules in this folder, called with the same arguments on each.

    After a failure, which leaves the others waiting, all are ended, and new ones started for the next task.
    """

    def __init__(self) -> None:
        self._running: list[Any] = []

    def _start(self) -> None:
        context = mp.get_context("spawn")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self._inboxes = [context.SimpleQueue() for _ in range(WORLD)]
        self._outbox = context.Queue()
        self._running = [
            context.Process(target=_serve, args=(rank, port, inbox, self._outbox), daemon=True)
            for rank, inbox in enumerate(self._inboxes)
        ]
        for process in self._running:
            process.start()

    def run(self, module: str, function: str, /, **given: Any) -> list[Any]:
        """What the function returned on each process, by rank.

        A connection that breaks is gloo's affair, so there is a second try then, which is said aloud.

        Raises:
            AssertionError: with the traceback of the first that failed, or if one did not answer in time.
        """
        try:
            return self._run(module, function, given)
        except AssertionError as error:
            if "Connection closed by peer" not in str(error):
                raise
            print(f"tried again, for a connection broke: {error}", file=sys.stderr)
            return self._run(module, function, given)

    def _run(self, module: str, function: str, given: dict[str, Any]) -> list[Any]:
        if not self._running:
            self._start()
        for inbox in self._inboxes:
            inbox.put((module, function, given))
        found: dict[int, Any] = {}
        try:
            for _ in range(WORLD):
                rank, fine, value = self._outbox.get(timeout=PATIENCE)
                if not fine:
                    raise AssertionError(f"rank {rank}: {value}")
                found[rank] = value
        except queue.Empty:
            self.stop()
            missing = sorted(set(range(WORLD)) - set(found))
            raise AssertionError(f"no answer from ranks {missing} within {PATIENCE:g} s") from None
        except AssertionError as error:
            ended = {rank: process.exitcode for rank, process in enumerate(self._running) if not process.is_alive()}
            self.stop()
            raise AssertionError(f"{error}\nprocesses that had ended by then, with their codes: {ended}") from None
        return [found[rank] for rank in range(WORLD)]

    def stop(self) -> None:
        """End them."""
        for process in self._running:
            process.kill()
        for process in self._running:
            process.join()
        self._running = []
