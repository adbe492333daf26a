"""Rendezvous of torchrun's agents: one address, and a watch for lost nodes.

torchrun's stores listen on all networks of a machine; these stores listen at one address. A disconnected node sends
nothing and closes nothing, so the ranks of other nodes would wait for days. Therefore each agent counts in the store,
and ends its node's ranks when another agent has not counted for a while, or the store does not answer.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from datetime import timedelta

from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]  # documented there, not in __all__
from torch.distributed.elastic.rendezvous import (
    RendezvousConnectionError,
    RendezvousInfo,
    RendezvousParameters,
    rendezvous_handler_registry,
)
from torch.distributed.elastic.rendezvous.c10d_rendezvous_backend import C10dRendezvousBackend
from torch.distributed.elastic.rendezvous.dynamic_rendezvous import DynamicRendezvousHandler, RendezvousTimeout
from torch.distributed.elastic.rendezvous.utils import parse_rendezvous_endpoint

_ANSWER = timedelta(seconds=60)  # limit for the answer of a reachable store
_BEAT_S = 1.0


def register(name: str, lost: Callable[[str], None]) -> None:
    """Register the rendezvous with torchrun; `lost(what)` is called once, in a thread, when a node is lost."""
    rendezvous_handler_registry.register(name, lambda params: _create(params, lost))


def listen(host: str, port: int) -> TCPStore:
    """Return a store that listens at one address only; OSError: another machine's address, or a taken port."""
    family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    with socket.socket(family, kind) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(1024)
        port = listener.getsockname()[1]
        return TCPStore(
            host, port, is_master=True, timeout=_ANSWER, wait_for_workers=False, master_listen_fd=listener.detach()
        )


def connect(host: str, port: int, wait: timedelta) -> TCPStore:
    """Connect to the store of another process, which may take so long to start.

    Raises:
        RendezvousConnectionError: nothing answers there.
    """
    deadline = time.monotonic() + wait.total_seconds()
    while True:  # torch can wait too, but logs a page at each try
        try:
            socket.create_connection((host, port), timeout=5.0).close()
            return TCPStore(host, port, is_master=False, timeout=_ANSWER, wait_for_workers=False)
        except (OSError, RuntimeError) as error:
            if time.monotonic() >= deadline:
                reason = str(error).partition("\n")[0]
                raise RendezvousConnectionError(f"nothing answers at {host}:{port} ({reason})") from error
        time.sleep(_BEAT_S)


def _create(params: RendezvousParameters, lost: Callable[[str], None]) -> DynamicRendezvousHandler:
    host, port = parse_rendezvous_endpoint(params.endpoint, default_port=0)
    join = timedelta(seconds=params.get_as_int("join_timeout", 600) or 600)
    try:
        store = listen(host, port)
    except OSError:  # another node's address, or another agent of this machine has the port
        store = connect(host, port, join)
    handler: _Handler = _Handler.from_backend(
        params.run_id,
        store,
        C10dRendezvousBackend(store, params.run_id),
        params.min_nodes,
        params.max_nodes,
        params.local_addr,
        RendezvousTimeout(join=join),
    )
    handler.name = params.backend
    handler.watch = lambda node, nodes: watch_nodes(
        lambda: PrefixStore(f"alive/{params.run_id}", connect(host, port, _ANSWER)),
        node,
        nodes,
        float(params.get_as_int("silent", 60) or 60),
        lost,
    )
    return handler


class _Handler(DynamicRendezvousHandler):
    """torchrun's rendezvous of any number of nodes, with the stores and the watch of this module."""

    name: str
    watch: Callable[[int, int], None]

    def get_backend(self) -> str:
        return self.name

    def next_rendezvous(self) -> RendezvousInfo:
        info = super().next_rendezvous()
        if info.world_size > 1:
            self.watch(info.rank, info.world_size)
        return info

    def _create_tcp_store_server(self, master_addr: str, master_port: int) -> TCPStore:
        return listen(master_addr, master_port)  # the store of the ranks


def watch_nodes(
    open_store: Callable[[], PrefixStore], node: int, nodes: int, silent_s: float, lost: Callable[[str], None]
) -> None:
    """Count for this node and look at the counts of all nodes, in two threads, for the rest of the process.

    The store's calls can hang until the kernel drops a connection: only the second thread decides that a node is lost.

    Args:
        open_store: opens a new connection.
        node: number of this node.
        nodes: number of all nodes.
        silent_s: seconds without a new count, after which a node is lost.
        lost: called once, with a line that names the lost node.
    """
    heard = dict.fromkeys(range(nodes), time.monotonic())
    counts: dict[int, int] = {}

    def count() -> None:
        while True:
            try:
                store = open_store()
                while True:
                    store.add(str(node), 1)
                    found = {other: store.add(str(other), 0) for other in range(nodes)}
                    heard.update(dict.fromkeys(dict(found.items() - counts.items()), time.monotonic()))
                    counts.update(found)
                    time.sleep(_BEAT_S)
            except RuntimeError:  # torch's connection errors; only silence counts as a loss
                time.sleep(_BEAT_S)

    def look() -> None:
        while True:
            time.sleep(_BEAT_S)
            silent = [str(other) for other, when in heard.items() if time.monotonic() - when > silent_s]
            if silent:
                is_cut_off = str(node) in silent
                who = "the rendezvous" if is_cut_off else f"node {', '.join(silent)} of 0 to {nodes - 1}"
                return lost(f"node {node}: nothing was heard of {who} for {silent_s:g} s")

    for target in (count, look):
        threading.Thread(target=target, name=f"nodes-{target.__name__}", daemon=True).start()
