"""A Dask cluster: one that is there, or one of several processes on this machine."""

from __future__ import annotations

import contextlib
import os
import queue
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from repro_callbacks.study.engines.base import Site
from repro_callbacks.study.engines.launcher import Nursery, run_one
from repro_callbacks.study.problems import require
from repro_callbacks.study.task import RECORD, Context, Outcome, Task

# By default, in `distributed` 2026.1 and 2026.8: its `nanny.pre-spawn-environ`, a hash seed, and a mark of the parent.
_SET_BY_DASK = {
    *("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MALLOC_TRIM_THRESHOLD_"),
    *("PYTHONHASHSEED", "DASK_PARENT", "__DASK_PARENT_PID"),
}


class DaskEngine:
    """Runs seeds on the workers of a Dask cluster, each in a process of its own beside the worker that was given it.

    Args:
        site: What to run. ``workers`` is the number of processes of the cluster that is started here, if none is given.
        client: A ``dask.distributed.Client``; it is left open.
        address: The address of a scheduler, instead of a client.
        cluster: Keyword arguments for ``dask.distributed.LocalCluster``, instead of either.

    Raises:
        ImportError: If Dask is not installed.
        ValueError: If more than one of ``client``, ``address`` and ``cluster`` is given.
    """

    def __init__(
        self,
        site: Site,
        client: Any = None,
        address: str | None = None,
        cluster: dict[str, Any] | None = None,
    ) -> None:
        distributed = require("distributed", "dask", "engine='dask'")
        if sum(given is not None for given in (client, address, cluster)) > 1:
            raise ValueError("engine='dask' takes one of client, address and cluster")
        self._context = site.context
        self._cluster = self._own = None
        self._environment = dict(os.environ)
        if client is None and address is None:
            try:
                self._cluster = _local_cluster(distributed, site.workers, cluster or {})
            except BaseException:
                self._clear_environment()
                raise
        if client is None:
            self._own = client = distributed.Client(address or self._cluster, set_as_default=False)
        self._client = client
        self._ended: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._running: dict[str, tuple[Task, Any]] = {}

    @property
    def slots(self) -> int:
        """As many as the cluster has threads now, and some more to be there when one ends."""
        threads = int(sum(self._client.nthreads().values()))
        return max(1, threads + threads // 4)

    def submit(self, task: Task) -> None:
        """Give a run to the cluster."""
        key = f"repro-callbacks-{self._context.study}-{task.name}-{task.attempt}-{time.time_ns()}"
        future = self._client.submit(_run, self._context, task, key=key, pure=False, retries=0)
        self._running[future.key] = task, future
        future.add_done_callback(self._ended.put)

    def wait(self, timeout: float) -> list[Outcome]:
        """Return what has ended."""
        ended = []
        with contextlib.suppress(queue.Empty):
            ended.append(self._outcome(self._ended.get(timeout=timeout)))
            while True:
                ended.append(self._outcome(self._ended.get_nowait()))
        return ended

    def close(self) -> None:
        """Take back what still runs; the workers kill it. Then end what was started here."""
        if self._running:
            self._client.cancel([future for _, future in self._running.values()], force=True)
        if self._own is not None:
            self._own.close()
        if self._cluster is not None:
            self._cluster.close()
            self._clear_environment()

    def _clear_environment(self) -> None:
        """Put back what Dask sets in this process for the workers that it starts, and leaves there."""
        for name in _SET_BY_DASK & os.environ.keys():
            if name in self._environment:
                os.environ[name] = self._environment[name]
            else:
                del os.environ[name]

    def _outcome(self, future: Any) -> Outcome:
        task, _ = self._running.pop(future.key)
        if future.status != "finished":
            error = future.exception() if future.status == "error" else "the scheduler has lost or cancelled the task"
            text = " ".join(f"{type(error).__name__}: {error}".split()) if isinstance(error, Exception) else error
            return Outcome(task.name, task.attempt, "failed", "lost", f"Dask: {text[:300]}")
        ran: _Ran = future.result()
        if ran.record is not None and not Path(task.folder, RECORD).exists():  # no file system in common
            Path(task.folder).mkdir(parents=True, exist_ok=True)
            Path(task.folder, RECORD).write_bytes(ran.record)
        return ran.outcome


@dataclass(frozen=True)
class _Ran:
    outcome: Outcome
    record: bytes | None


def _local_cluster(distributed: Any, workers: int, options: dict[str, Any]) -> Any:
    import dask

    # By default the scheduler gives a run whose worker has died to another worker, three times and silently.
    with dask.config.set({"distributed.scheduler.allowed-failures": 0}):
        given = {"n_workers": workers, "threads_per_worker": 1, "processes": True, "dashboard_address": None, **options}
        return distributed.LocalCluster(**given)


_idle: dict[tuple[str, bytes], list[Nursery]] = {}
_lock = threading.Lock()


def _run(context: Context, task: Task) -> _Ran:
    """Run a task beside the Dask worker that this is called in, in a fork of a nursery that stays for the next task."""
    kind = (context.study, context.payload)
    with _lock:
        nurseries = _idle.setdefault(kind, [])
        nursery = nurseries.pop() if nurseries else Nursery(context)
    outcome = run_one(nursery, task, _wanted)
    with _lock:
        _idle[kind].append(nursery)
    if outcome is None:
        outcome = Outcome(task.name, task.attempt, "failed", "lost", "taken back by the study")
    record = Path(task.folder, RECORD)
    return _Ran(outcome, record.read_bytes() if record.exists() else None)


def _wanted() -> bool:
    """Say whether the study still waits for the task that this thread runs; no once it was stopped or killed."""
    from distributed import get_worker

    worker = get_worker()
    state = worker.state.tasks.get(worker.get_current_task())
    return state is not None and state.state == "executing"
