"""Work units over processes or threads of this machine, or tasks of Ray; the same results in the same order.

The work is a callable and a unit is its argument; both must pickle. A process gets the work once and keeps it, so that
a teacher which the work opens stays open for all units. A unit must be done whole or not at all, and may be begun
twice: Ray repeats the units of a lost process or node elsewhere.

RAY_ADDRESS names the cluster (`ray job submit` sets it). Without it, this command starts Ray on loopback.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import secrets
import signal
import socket
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sized
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal, TypeVar

from hmsa_core.io.errors import ConfigError, HmsaError, InputError, needs_extra, one_line
from hmsa_core.io.process import leave_signals_to_parent

Kind = Literal["local", "ray"]
T = TypeVar("T")
U = TypeVar("U")
Work = Callable[[T], U]
_LOSSES = 20  # processes or nodes that Ray may lose under one batch of units
_POLL_S = 0.5  # between looks at a stop request
_AHEAD = 2  # units of a thread that are done, or begun, before the caller wants them
_STORE_BYTES = 128 << 20  # shared memory of a Ray that this process starts: work and results are small


@dataclass(frozen=True)
class Engine:
    """The processes that run the units.

    Attributes:
        kind: "local", a pool of processes on this machine; "threads" of this process; or "ray".
        workers: units (for "ray": batches) that run at once; with "local" and 1, this process runs them.
        threads: CPU cores that Ray sets aside for a unit.
        gpus: GPUs that Ray sets aside for a unit.
    """

    kind: Kind | Literal["threads"] = "local"
    workers: int = 1
    threads: int = 1
    gpus: int = 0

    def map(
        self,
        work: Work[T, U],
        units: Iterable[T],
        *,
        what: str,
        batch: int = 1,
        check_stop: Callable[[], None] = lambda: None,
    ) -> Generator[U]:
        """Results in the order of the units.

        Args:
            work, units: the callable, and its arguments.
            what: the work as a verb phrase, for messages: "a process that WHAT died".
            batch: units that travel together.
            check_stop: called often; raises to stop. Results of running units are then discarded.

        Raises:
            ConfigError: Ray is not installed, or cannot be reached.
            InputError: processes died (for "local": one process).
        """
        check_stop()
        if self.kind == "ray":
            yield from self._on_ray(work, iter(units), what, batch, check_stop)
        elif self.kind == "threads":
            with closing(read_ahead(units, work, self.workers)) as results:
                for result in results:
                    yield result
                    check_stop()
        elif self.workers > 1 and not (isinstance(units, Sized) and len(units) < 2):
            yield from self._in_pool(work, units, what, batch, check_stop)
        else:
            for unit in units:
                yield work(unit)
                check_stop()

    def _in_pool(
        self, work: Work[T, U], units: Iterable[T], what: str, batch: int, check_stop: Callable[[], None]
    ) -> Iterator[U]:
        # Not "fork": locks that threads of this process (pyarrow, BLAS) hold would stay locked in the child.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([type(work).__module__])
        others = set(multiprocessing.active_children())
        pool = ProcessPoolExecutor(self.workers, context, _begin, (work,))
        try:
            for result in _handed_in(pool, units, batch):
                yield result
                check_stop()
        except BrokenProcessPool as error:
            # The pool sends the other workers SIGTERM, which they ignore; they may wait for a lock of the dead worker.
            for worker in set(multiprocessing.active_children()) - others:
                worker.kill()
            raise _died(what) from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _on_ray(
        self, work: Work[T, U], units: Iterator[T], what: str, batch: int, check_stop: Callable[[], None]
    ) -> Iterator[U]:
        with _ray(self) as ray:
            task = ray.remote(num_cpus=self.threads, num_gpus=self.gpus, max_retries=_LOSSES)(_on_worker)
            box = [ray.put(work)]  # in a list, so that Ray does not fetch it for each task
            batches = enumerate(iter(lambda: list(islice(units, batch)), []))
            running: dict[Any, int] = {}
            finished: dict[int, list[U]] = {}
            due = 0
            try:
                while True:
                    for number, these in islice(batches, self.workers - len(running)):
                        running[task.remote(box, these)] = number
                    if not running:
                        return
                    for ref in ray.wait(list(running), timeout=_POLL_S)[0]:
                        finished[running.pop(ref)] = _result(ray, ref, what)
                    while due in finished:
                        yield from finished.pop(due)
                        due += 1
                    check_stop()
            finally:
                # Ray aborts this process if a task ends during its cancellation: short tasks may end first.
                late = ray.wait(list(running), num_returns=len(running), timeout=_POLL_S)[1] if running else []
                for ref in late:
                    ray.cancel(ref, force=True)


HERE = Engine()  # this process alone


def read_ahead(sources: Iterable[T], read: Callable[[T], U], threads: int = 1) -> Generator[U]:
    """Read sources in other threads, up to `_AHEAD` for each ahead of the caller, whose thread iterates over them."""
    with ThreadPoolExecutor(threads, "reader") as reader:
        waiting: deque[Future[U]] = deque()
        for source in sources:
            waiting.append(reader.submit(read, source))
            if len(waiting) > _AHEAD * threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _died(what: str) -> InputError:
    return InputError(f"a process that {what} died (out of memory?)", hint="run again with fewer workers")


# ---- In a pool

_work: Work[Any, Any]  # of this process


def _handed_in(pool: ProcessPoolExecutor, units: Iterable[T], batch: int) -> Iterator[Any]:
    """Submit all units; the death of a worker can surface here, while the next worker is started."""
    try:
        return pool.map(_do, units, chunksize=batch)
    except OSError as error:  # comes from the pipes to the workers: this process itself runs no unit
        raise BrokenProcessPool(f"a worker could not be started: {error}") from error


def _begin(work: Work[Any, Any]) -> None:
    global _work
    leave_signals_to_parent()
    _work = work


def _do(unit: Any) -> Any:
    return _work(unit)


# ---- On Ray

_held: dict[str, Work[Any, Any]] = {}  # the work of this process by its name in Ray


def _on_worker(box: list[Any], units: list[Any]) -> list[Any]:
    import ray

    name = box[0].hex()
    if name not in _held:
        _held.clear()
        _held[name] = ray.get(box[0])
    return [_held[name](unit) for unit in units]


def _result(ray: Any, ref: Any, what: str) -> Any:
    try:
        return ray.get(ref)
    except ray.exceptions.RayTaskError as error:  # raised by the work itself
        raise error.cause from None
    except ray.exceptions.RayError as error:
        raise _died(what) from error


@contextmanager
def _ray(engine: Engine) -> Iterator[Any]:
    """Return connected Ray: this process's connection, the cluster of RAY_ADDRESS, or a new Ray on loopback."""
    address = os.environ.get("RAY_ADDRESS")
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    arguments: dict[str, Any] = {"address": address}
    if not address:
        # Set before Ray is imported. The first setting makes all of Ray's servers listen on loopback alone. Clients
        # need the second one, a token, which Ray would else write into the home folder.
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
        arguments = {
            "address": "local",
            "num_cpus": engine.workers * engine.threads,
            "include_dashboard": False,
            "object_store_memory": _STORE_BYTES,
        }
    with needs_extra("ray"):
        import ray
    if ray.is_initialized():
        yield ray
        return
    is_main = threading.current_thread() is threading.main_thread()  # other threads cannot set handlers
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT) if is_main}
    try:
        if address and ":" in address:  # without this check Ray would try for minutes
            host, _, port = address.rpartition("/")[2].rpartition(":")
            socket.create_connection((host, int(port)), timeout=10.0).close()
        ray.init(**arguments, logging_level=logging.ERROR, log_to_driver=bool(address))
    except HmsaError:  # a stop request
        raise
    except Exception as error:  # Ray raises many kinds, which share no class
        raise ConfigError(
            f"Ray at {address or 'this machine'}: cannot be reached ({one_line(error)[:200]})",
            hint="correct RAY_ADDRESS, or unset it: then Ray runs on this machine alone",
        ) from error
    finally:
        for number, handler in handlers.items():  # Ray replaced these handlers
            signal.signal(number, handler)
    try:
        yield ray
    finally:
        ray.shutdown()
