"""Four processes on this machine that talk through gloo, started once and given one task after another."""

from __future__ import annotations

import io
import os
import queue
import socket
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import forkserver
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp
from torch import Tensor
from torch.utils._pytree import tree_flatten_with_path, tree_map_with_path

WORLD = 4
PATIENCE = 120.0  # seconds after which a task counts as hanging


def _serve(rank: int, port: int, inbox: Any, outbox: Any) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), OMP_NUM_THREADS="1", LOCAL_RANK=str(rank))
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=WORLD)
    while (task := inbox.get()) is not None:
        function, given = task
        try:
            answer = _bytes(function(**given))
            outbox.put((rank, True, answer))
        except BaseException:  # whatever it is, the test has to hear of it
            outbox.put((rank, False, traceback.format_exc()))


@dataclass(frozen=True)
class Piece:
    """What one process has of a tensor.

    mesh: the ranks among which the tensor is cut.
    dims: for each dimension of the mesh the dimension of the tensor that it cuts, None where it has replicas.
    """

    local: Tensor
    mesh: Tensor
    dims: tuple[int | None, ...]

    def whole(self, rank: int, pieces: dict[int, Piece]) -> Tensor:
        """The tensor as a process has it, from the pieces of all."""

        def part(mesh: Tensor, dims: tuple[int | None, ...]) -> Tensor:
            if not dims:
                return pieces[int(mesh)].local
            if dims[0] is None:
                return part(next((row for row in mesh if rank in row), mesh[0]), dims[1:])  # any replica will do
            return torch.cat([part(row, dims[1:]) for row in mesh], dims[0])

        return part(self.mesh, self.dims)


def joined(results: list[Any]) -> list[Any]:
    """The processes' results with whole tensors in place of pieces, which lie at the same place of each result."""
    leaves = [dict(tree_flatten_with_path(result)[0]) for result in results]

    def whole(rank: int, path: Any, x: Any) -> Any:
        if not isinstance(x, Piece):
            return x
        return x.whole(rank, {other: leaves[other][path] for other in x.mesh.flatten().tolist()})

    return [
        tree_map_with_path(lambda path, x, rank=rank: whole(rank, path, x), result)
        for rank, result in enumerate(results)
    ]


def _bytes(value: Any) -> bytes:
    """A value as a file: torch's own queues share the memory of every tensor by itself, which takes longer."""
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


def _context() -> Any:
    """Processes that start as copies of one that has imported what they run."""
    context = mp.get_context("forkserver")
    context.set_forkserver_preload(["helpers.spread", "torch.distributed.checkpoint.state_dict"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))  # not every Python hands its own path on
        forkserver.ensure_running()
    return context


class Processes:
    """The processes; what they run are functions of these helpers, called with the same arguments on each.

    After a failure, which leaves the others waiting, all are ended, and new ones started for the next task.
    """

    def __init__(self) -> None:
        self._running: list[Any] = []

    def _start(self) -> None:
        context = _context()
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

    def run(self, function: Callable[..., Any], /, **given: Any) -> list[Any]:
        """What the function returned on each process, by rank.

        A connection that breaks is gloo's affair, so there is a second try then, which is said aloud.

        Raises:
            AssertionError: with the traceback of the first that failed, or if one did not answer in time.
        """
        try:
            return self._run(function, given)
        except AssertionError as error:
            if "Connection closed by peer" not in str(error):
                raise
            print(f"tried again, for a connection broke: {error}", file=sys.stderr)
            return self._run(function, given)

    def _run(self, function: Callable[..., Any], given: dict[str, Any]) -> list[Any]:
        if not self._running:
            self._start()
        for inbox in self._inboxes:
            inbox.put((function, given))
        found: dict[int, Any] = {}
        try:
            for _ in range(WORLD):
                rank, fine, value = self._outbox.get(timeout=PATIENCE)
                if not fine:
                    raise AssertionError(f"rank {rank}: {value}")
                found[rank] = torch.load(io.BytesIO(value), weights_only=False)
        except queue.Empty:
            self.stop()
            missing = sorted(set(range(WORLD)) - set(found))
            raise AssertionError(f"no answer from ranks {missing} within {PATIENCE:g} s") from None
        except AssertionError as error:
            ended = {rank: process.exitcode for rank, process in enumerate(self._running) if not process.is_alive()}
            self.stop()
            raise AssertionError(f"{error}\nprocesses that had ended by then, with their codes: {ended}") from None
        return joined([found[rank] for rank in range(WORLD)])

    def stop(self) -> None:
        """End them."""
        for process in self._running:
            process.kill()
        for process in self._running:
            process.join()
        self._running = []
