"""A label store at an address of an object store: made by any number of writers, there as a whole or not at all.

    STORE.work/plan-00000.json          which image goes into which shard; a later number has all that came before it
    STORE.work/options.json             what no writer may change
    STORE.work/parts/<sha256>           files of finished shards
    STORE.work/receipts/<shard>-<plan>.json   which parts are the shard: the first that puts it
    STORE/...                           as on disk; manifest.json last

Plans, options, receipts and the first manifest are put on the condition that nothing is there. A part is named by its
content, so that nobody overwrites another writer's bytes. Who ends copies the parts to their names within the object
store. All writers copy the same ones, because they go by the receipts.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from hmsa_core.io import remote, sealed
from hmsa_core.io.atomic import canonical_json, parse_json, sha256_file, write_bytes
from hmsa_core.io.errors import ConfigError, LockedError, StoreError
from hmsa_core.labels.store.format import MANIFEST, read_manifest
from hmsa_core.labels.store.shards import ShardPlan, receipt_path

_OPTIONS = "options.json"
_AGAIN = "run the same command again: it goes on with what the other one finished"


class RemoteStore:
    """One end of a store at an address; `work` is the local folder of its progress (plan.json, store/)."""

    def __init__(self, url: str, work: Path) -> None:
        self.url, self.work = remote.check_url(url), work
        self._progress = f"{self.url}.work"

    @classmethod
    def at(cls, url: str) -> tuple[RemoteStore, Path]:
        """The store of an address, and the local path that stands for it while it is made."""
        out = remote.local_place(url)
        return cls(url, out.with_name(f"{out.name}.work")), out

    def pull(self) -> None:
        """Bring plan and options of an earlier writer.

        Raises:
            ConfigError: a finished store is there that no writer of this kind began.
        """
        names = self._list("")
        plans = sorted(name for name in names if name.startswith("plan-"))
        if not plans and self._tag() is not None:
            raise ConfigError(
                f"{self.url}: holds a label store that was not made here ({self._progress} is missing)",
                hint="give another address",
            )
        for name, target in ((plans[-1] if plans else "", "plan.json"), (_OPTIONS, _OPTIONS)):
            if name in names:
                write_bytes(self.work / target, remote.read(f"{self._progress}/{name}"))
            else:
                (self.work / target).unlink(missing_ok=True)

    def options(self) -> dict[str, Any]:
        """What the first writer began it with; empty where there is none."""
        where = f"{self._progress}/{_OPTIONS}"
        try:
            return parse_json(remote.read(where), where)
        except FileNotFoundError:
            return {}

    def begin(self, options: dict[str, Any]) -> None:
        """Put the options of the first writer; LockedError where another one was first and has others."""
        if not remote.create(f"{self._progress}/{_OPTIONS}", canonical_json(options)):
            raise LockedError(f"{self.url}: another writer has just begun it with other options", hint=_AGAIN)

    def plan(self) -> None:
        """Put work/plan.json as the newest plan; LockedError where another writer was first with another one."""
        data = (self.work / "plan.json").read_bytes()
        plans = sorted(name for name in self._list("") if name.startswith("plan-"))
        if plans and remote.read(f"{self._progress}/{plans[-1]}") == data:
            return
        if not remote.create(f"{self._progress}/plan-{len(plans):05d}.json", data):
            raise LockedError(f"{self.url}: another writer has just planned other images into it", hint=_AGAIN)

    def finished(self, plans: list[ShardPlan]) -> set[int]:
        """Numbers of the shards that a writer has finished."""
        there = self._list("receipts/")
        return {plan.index for plan in plans if _receipt_name(plan) in there}

    def has(self, plan: ShardPlan) -> bool:
        """Whether a writer has finished this shard."""
        return self._tag(f"{self._progress}/receipts/{_receipt_name(plan)}") is not None

    def send(self, plan: ShardPlan) -> bool:
        """Hand in a shard of work/store; whether it counts. Where another writer was first, its shard counts."""
        store = self.work / "store"
        receipt = sealed.read(receipt_path(store, plan))
        for part in ("shard", "sidecar"):
            remote.put(self._part(receipt[part]["sha256"]), store / receipt[part]["file"])
        name = f"{self._progress}/receipts/{_receipt_name(plan)}"
        won = remote.create(name, receipt_path(store, plan).read_bytes())
        (store / receipt["shard"]["file"]).unlink()  # a machine's disk need not hold the store
        return won

    def collect(self, plans: list[ShardPlan]) -> None:
        """Bring the receipts that count, and their sidecars, into work/store.

        Raises:
            StoreError: a shard is not finished.
        """
        self._each(self._collect, plans)

    def _collect(self, plan: ShardPlan) -> None:
        store = self.work / "store"
        name = f"{self._progress}/receipts/{_receipt_name(plan)}"
        try:
            data = remote.read(name)
        except FileNotFoundError:
            raise StoreError(f"{name}: missing, so this shard is not finished", hint=_AGAIN) from None
        sidecar = sealed.parse(data, name)["sidecar"]
        write_bytes(receipt_path(store, plan), data)
        path = store / sidecar["file"]
        if path.is_file() and sha256_file(path) == sidecar["sha256"]:
            return
        try:
            content = remote.read(self._part(sidecar["sha256"]))
        except FileNotFoundError:  # the store was finished since, and its parts were removed
            content = remote.read(f"{self.url}/{sidecar['file']}")
        if write_bytes(path, content) != sidecar["sha256"]:
            raise StoreError(f"{self.url}/{sidecar['file']}: has changed since it was written")

    def publish(self) -> None:
        """Put the parts at their names, then statistics and receipts, last the manifest of work/store.

        Raises:
            LockedError: another writer has published another manifest meanwhile.
        """
        store = self.work / "store"
        manifest, tag = read_manifest(store), self._tag()
        nothing: dict[str, Any] = {"shards": [], "statistics": {}, "digest": ""}
        before = self._manifest() if tag else nothing
        if before["digest"] == manifest["digest"]:
            return
        held = {(r["file"], r["sha256"]) for s in before["shards"] for r in (s, s["sidecar"])}
        records = [r for s in manifest["shards"] for r in (s, s["sidecar"]) if (r["file"], r["sha256"]) not in held]
        self._each(self._place, records)
        files = [s["receipt"]["file"] for s in manifest["shards"]]
        files += [r["file"] for r in manifest["statistics"].values()]
        self._each(lambda file: remote.put(f"{self.url}/{file}", store / file), files)
        if not remote.create(f"{self.url}/{MANIFEST}", (store / MANIFEST).read_bytes(), replaces=tag or ""):
            raise LockedError(f"{self.url}: another writer has just published more images", hint=_AGAIN)
        current = {r["file"] for r in manifest["statistics"].values()}
        self._remove(f"{self.url}/{r['file']}" for r in before["statistics"].values() if r["file"] not in current)
        self._remove(self._part(r["sha256"]) for r in records)

    def _place(self, record: dict[str, Any]) -> None:
        source, target = self._part(record["sha256"]), f"{self.url}/{record['file']}"
        try:
            remote.request(target, lambda fs: fs.cp_file(source, target))
        except FileNotFoundError:
            listed = self._manifest()["shards"] if self._tag() else []
            if not any(r["sha256"] == record["sha256"] for s in listed for r in (s, s["sidecar"])):
                raise StoreError(f"{source}: missing", hint=f"remove {self._progress}/receipts, run again") from None

    def _part(self, sha256: str) -> str:
        return f"{self._progress}/parts/{sha256}"

    def _manifest(self) -> dict[str, Any]:
        return sealed.parse(remote.read(f"{self.url}/{MANIFEST}"), f"{self.url}/{MANIFEST}")

    def _tag(self, url: str = "") -> str | None:
        """Entity tag of an object, by default of the manifest; None where there is none."""
        url = url or f"{self.url}/{MANIFEST}"
        try:
            info = remote.request(url, lambda fs: fs.info(url))
        except FileNotFoundError:
            return None
        return str(info.get("ETag") or info.get("etag") or "unknown")

    def _list(self, below: str) -> set[str]:
        """Names of the objects in a folder of the progress."""
        url = f"{self._progress}/{below}".rstrip("/")
        try:
            found = remote.request(url, lambda fs: fs.ls(url, detail=False))
        except FileNotFoundError:
            return set()
        return {str(path).rpartition("/")[2] for path in found}

    def _remove(self, urls: Any) -> None:
        self._each(lambda url: remote.request(url, lambda fs: fs.rm_file(url)), list(urls))

    @staticmethod
    def _each(what: Any, items: list[Any]) -> None:
        with ThreadPoolExecutor(16, "store") as pool:
            list(pool.map(what, items))


def _receipt_name(plan: ShardPlan) -> str:
    return f"{plan.stem}-{plan.digest[:16]}.json"
