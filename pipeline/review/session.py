"""State of one `autolabel serve`: stores, policies, review file, spot checks, and the answers that the page needs."""

from __future__ import annotations

import itertools
import threading
from pathlib import Path
from typing import Any

import numpy as np

from hmsa_core.io.errors import ConfigError, HmsaError, InputError
from hmsa_core.io.records import saving
from hmsa_core.labels.diff import other_pictures
from hmsa_core.labels.store.codes import ConfidenceCode
from hmsa_core.labels.store.format import binding
from hmsa_core.labels.thresholds.policy import ThresholdPolicy
from pipeline.review.audit import Audit
from pipeline.review.certificate import Certificate
from pipeline.review.certification import begin
from pipeline.review.pictures import safe_colours
from pipeline.review.precision import (
    NO_EVIDENCE,
    AnyPath,
    PrecisionSources,
    calibration_policy,
    find_curves,
    fitting_policy,
    load_policy,
    workspace_around,
)
from pipeline.review.price import price
from pipeline.review.questions import Questions, review_of
from pipeline.review.region_picture import outline
from pipeline.review.spot_check import SpotFile
from pipeline.review.stats import Thresholds, parse_thresholds, to_policy
from pipeline.review.view import StoreView

ALL = "0.00"  # the threshold that keeps every pixel


class Session:
    """One store, optionally a second one and policies to compare with.

    Args:
        store: folder of the label store.
        policy: policy file that the page starts with.
        images: root of the photographs (and human labels).
        other: second store for compare; must have the same classes.
        other_policy: second policy for compare.
        save_to: where "Save policy" writes; default: `policy_target`, never over `policy`.
        reviewer: name that marks carry.
        evidence: measured policy for the precision of kept pixels where `policy` is None; its thresholds are not used.
    """

    def __init__(
        self,
        store: AnyPath,
        *,
        policy: AnyPath | None = None,
        images: AnyPath | None = None,
        other: AnyPath | None = None,
        other_policy: AnyPath | None = None,
        save_to: AnyPath | None = None,
        reviewer: str = "",
        evidence: AnyPath | None = None,
    ) -> None:
        self.view = StoreView(store, images=images)
        self.other = None if other is None else StoreView(other, images=images)
        if self.other is not None and self.other.classes != self.view.classes:
            raise ConfigError(f"{other} and {store} have different classes and cannot be compared")
        of_both = [] if self.other is None else other_pictures(self.view.image_digests(), self.other.image_digests())
        self._other_pictures = frozenset(of_both)
        self.policies: dict[str, ThresholdPolicy] = {}
        self.policy_names: dict[str, str] = {}
        for key, path, view in (("policy", policy, self.view), ("policy-b", other_policy, self.other or self.view)):
            if path is not None:
                self.policies[key], self.policy_names[key] = load_policy(path, view), Path(path).name
        self.evidence = None if policy is not None or evidence is None else load_policy(evidence, self.view)
        self.calibrated = find_curves(self.view, policy if policy is not None else evidence)
        self.save_path = Path(save_to) if save_to is not None else policy_target(store, policy)
        self.reviewer = reviewer
        self.review = review_of(self.view)
        self.audits = SpotFile(Audit, self.view)
        self.certificates = SpotFile(Certificate, self.view)
        self.questions = SpotFile(Questions, self.view)
        self._start_policy = policy if policy is not None else evidence
        self._write = threading.Lock()

    @property
    def version(self) -> str:
        """Version of the served labels: a part of the URLs of everything that browsers cache."""
        return self.view.digest[:16] + ("" if self.other is None else f"-{self.other.digest[:16]}")

    def side(self, side: str) -> StoreView:
        """Store "a" or "b"."""
        if side == "a":
            return self.view
        if side == "b" and self.other is not None:
            return self.other
        raise InputError(f"side {side!r}: expected a{' or b' if self.other else ''}")

    def image(self, name: str, side: str = "a") -> StoreView:
        """The store that holds an image; an unknown name is an InputError."""
        view = self.side(side)
        view.position(name)
        if view is self.other and name in self._other_pictures:
            raise InputError(f"{view.path}: {name!r} is another picture there and cannot be compared")
        return view

    @property
    def notes(self) -> list[str]:
        """Messages about what cannot be compared with the second store."""
        if self.other is None or not self._other_pictures:
            return []
        count, first = len(self._other_pictures), min(self._other_pictures)
        return [
            f"{self.other.path}: {count} of {len(self.other.names)} images cannot be compared: "
            f"the name belongs to another picture there (the first: {first})"
        ]

    def thresholds(self, threshold: str | None = None, pins: list[str] | None = None) -> Thresholds:
        """Read thresholds as URLs, the API and the page write them; without one: the policy's, or all pixels."""
        if self.view.kind != "raw":
            if threshold is not None or pins:
                raise ConfigError(
                    f"{self.view.path}: this store is already thresholded; it shows what is in it",
                    hint="leave the threshold out, or open the raw store",
                )
            count = self.view.classes.num_classes
            return Thresholds(np.zeros(count, np.int64), ("as stored",) * count, "0.00")
        start = "policy" if "policy" in self.policies else ALL
        return parse_thresholds(self.view.classes, start if threshold is None else threshold, pins or [], self.policies)

    def sources(self, policy: ThresholdPolicy | None = None) -> PrecisionSources:
        """Current sources of precision."""
        audit, (certificate, _) = self.audits.current, self.certificates.usable()
        answers = [answer for check in (audit, certificate) if check is not None for answer in check.answers()]
        certified = {} if certificate is None else certificate.certified()
        known, calibrated = policy or self.policies.get("policy") or self.evidence, self.calibrated
        if self.view.kind != "raw":  # people's pixels have code 0, and calibration judges the teacher's labels
            known, calibrated = None, NO_EVIDENCE
        return PrecisionSources(self.view.totals, known, calibrated, answers, certified)

    def describe(self) -> dict[str, Any]:
        """All data that the page needs to compute without another request: classes, edges, histogram, policies."""
        view, sources, policy = self.view, self.sources(), self._policy_json("policy")
        classes = view.classes
        order = np.argsort(-view.totals.sum(axis=1), kind="stable")
        safe = np.zeros((classes.num_classes, 3), int)
        safe[order] = safe_colours(classes.num_classes)  # frequent classes get the colours farthest apart
        table = sources.table
        return {
            "name": view.name,
            "path": str(view.path),
            "kind": view.kind,
            "digest": view.digest,
            "version": self.version,
            "teacher": _text(view.lineage.get("teacher")),
            "images": len(view.statistics),
            "classes": [
                {"name": n, "colour": list(c), "group": g}
                for n, c, g in zip(classes.classes, classes.colours, classes.groups, strict=True)
            ],
            "safeColours": safe.tolist(),
            "edges": list(ConfidenceCode().edges),
            "start": 0 if policy is None else "policy",
            "cities": [c for c in view.statistics.city_names() if c],
            "problems": [*view.problems, *self.notes],
            "hasPictures": view.pictures.root is not None,
            "hasConflicts": view.has_human,
            "precision": None if table is None else {"table": table.round(6).tolist()},
            "policy": policy,
            "policyB": self._policy_json("policy-b"),
            "other": None if self.other is None else _totals_json(self.other),
            **_totals_json(view),
        }

    def _policy_json(self, key: str) -> dict[str, Any] | None:
        policy = self.policies.get(key)
        if policy is None or self.view.kind != "raw":  # thresholds would hide what people drew: code 0
            return None
        return {
            "name": self.policy_names[key],
            "codes": policy.codes().tolist(),
            "statuses": [entry.status for entry in policy.entries],
            "target": policy.evidence.get("target", policy.settings.get("target")),
        }

    def image_details(self, name: str) -> dict[str, Any]:
        """Details of one image."""
        view = self.image(name)
        row = view.info(name)
        return {
            "name": name,
            **{key: row[key] for key in ("city", "width", "height")},
            "picture": view.pictures.has_picture(name),
            "human": view.pictures.has_picture(name, "coarse_path"),
            "reviews": [self.review.shown(mark) for mark in self.review.of(name)],
        }

    def save_policy(self, thresholds: Thresholds) -> tuple[Path, str]:
        """Write the thresholds as a policy file that training reads; return path and digest."""
        if self.view.kind != "raw":
            raise ConfigError("a thresholded store has no policy to save")
        policy = to_policy(thresholds, self.view.classes, self.policies.get("policy"))
        if policy.binding is None:
            policy.binding = binding(self.view.lineage)  # chosen on these labels, so for this teacher alone
        audit = self.audits.current
        if audit is not None and audit.answers():
            policy.evidence["audit"] = {
                "file": self.audits.path.name,
                "id": audit.id,
                "overall": audit.overall(),
                "classes": audit.results(),
            }
        with self._write, saving(self.save_path, otherwise="start again with --save-policy F"):
            return self.save_path, policy.save(self.save_path)

    def draw_audit(self, thresholds: Thresholds, *, per_class: int, seed: int, classes: list[str]) -> Audit:
        """Draw and store a new audit."""
        wanted = [self.view.classes.index(name) for name in classes]
        return self.audits.start(Audit.draw(self.view, thresholds, per_class=per_class, seed=seed, classes=wanted))

    def begin_certificate(self, *, target: float, budget: int, seed: int, classes: list[str]) -> dict[str, Any]:
        """Begin a certificate, or continue the one of the same plan."""
        policy = None if self._start_policy is None else Path(self._start_policy)
        settings: dict[str, Any] = {"target": target, "budget": budget, "seed": seed, "classes": classes}
        return self._shown(
            self.certificates.start(begin(self.view, delta=0.05, policy=policy, who=self.reviewer, **settings))
        )

    def answer_certificate(self, check_id: str, number: int, verdict: str) -> dict[str, Any]:
        """Record an answer; return the certificate with the answers of all people."""
        return self._shown(self.certificates.answer(check_id, number, verdict))

    def certificate(self) -> dict[str, Any]:
        """The certificate as the page shows it under "current", and why an existing one is void."""
        found, why = self.certificates.usable()
        return {"current": None if found is None else self._shown(found), "void": why}

    def _shown(self, certificate: Certificate) -> dict[str, Any]:
        rows = zip(certificate.classes, certificate.results().values(), strict=True)
        return {
            "kind": "certificate",
            "id": certificate.id,
            "file": str(self.certificates.path),
            **{key: certificate.value[key] for key in ("target", "delta", "budget", "items")},
            "results": [{"class": about["class"], "drawn": row["draws"], **row} for about, row in rows],
            "wrong": certificate.expected_wrong(self.view, limit=5),
            "pays": certificate.pays(self.view, self.thresholds().codes),
            "more": certificate.more(),
            "overall": None,
        }

    def current_questions(self) -> dict[str, Any]:
        """The questions of this store as the page shows them under "current", and why existing ones are void."""
        found, why = self.questions.usable()
        return {"current": None if found is None else self._questions_json(found), "void": why}

    def draw_questions(self, *, budget: int, classes: list[str], after: str) -> dict[str, Any]:
        """Draw new questions that take the place of those with the id `after` ("" = none).

        Where another person was first, this person goes on with the questions that were drawn then.
        """
        found = self.questions.current
        if found is None or found.id == after:
            seed = 1 + max((one.value["seed"] for one in self.questions.every()), default=-1)
            found = self.questions.start(Questions.draw(self.view, budget=budget, seed=seed, aim=classes))
        return self._questions_json(found)

    def question(self, check_id: str, number: int) -> dict[str, Any]:
        """A question with the place of its cross, its region's place and outline, in pixels of the label map."""
        found = self.questions.current
        if found is None or found.id != check_id:
            raise InputError("no such set of questions is under way", hint="open the questions anew to go on")
        item = found.located(self.view, number)
        row, region = self.view.info(item["name"]), found.region(self.view, number)
        height, width = region.mask.shape
        box = {"x": region.x, "y": region.y, "width": width, "height": height}
        size = {"width": row["width"], "height": row["height"]}
        shown = {key: item[key] for key in ("name", "class", "x", "y")}
        return {**shown, "size": size, "box": box, "outline": outline(region)}

    def answer_question(self, check_id: str, number: int, verdict: str) -> dict[str, Any]:
        """Record an answer; return what all answers brought and which questions come next."""
        return self._questions_json(self.questions.answer(check_id, number, verdict, self.reviewer), number)

    def undo_question(self, check_id: str) -> dict[str, Any]:
        """Withdraw the reviewer's last answer; its question comes next."""
        found = self.questions.current
        number = 0 if found is None else found.last_of(self.reviewer)
        return self._questions_json(
            self.questions.change(check_id, lambda check: check.undo(self.view, number)), number
        )

    def _questions_json(self, questions: Questions, begin: int | None = None) -> dict[str, Any]:
        return {
            "id": questions.id,
            "file": str(self.questions.path),
            "who": self.reviewer,
            "aim": questions.value["aim"],
            "total": len(questions.items),
            "upcoming": questions.upcoming(self.view, self.reviewer, begin, 3),
            **price(questions, self.view),
        }


def _totals_json(view: StoreView) -> dict[str, Any]:
    totals = view.totals.reshape(-1).tolist()
    return {"name": view.name, "kind": view.kind, "pixels": int(view.pixels.sum()), "totals": totals}


def _text(value: object) -> str:
    return value if isinstance(value, str) and value != "unknown" else ""


def image_root(store: AnyPath) -> Path | None:
    """Folder of the photographs: the one that `label` read, else the target data set of the workspace around `store`.

    None where neither is known or exists.
    """
    from hmsa_core.inference.folder.label_folder import image_folder

    try:
        if (labelled := image_folder(Path(store))) is not None:
            return labelled
        ws = workspace_around(store)
        root = None if ws is None else ws.roots.get("target")
    except HmsaError:  # the record or the parameters are broken: then pictures need --images
        return None
    return root if root is not None and root.is_dir() else None


def start_policy(store: AnyPath) -> tuple[Path | None, str]:
    """Policy that the page starts with: the workspace's measured one, else the one saved next to a raw store.

    Returns:
        its path, or None and the reason why an existing policy does not fit this store.
    """
    found, unfit = calibration_policy(store)
    saved = _saved_policy(store)
    return fitting_policy(store, saved) if found is None and not unfit and saved.is_file() else (found, unfit)


def _saved_policy(store: AnyPath) -> Path:
    folder = Path(store).resolve()
    return folder.with_name(f"{folder.name}.policy.json")


def policy_target(store: AnyPath, start: AnyPath | None = None) -> Path:
    """Path for a saved policy: in a workspace in the folder that DVC watches, else next to the store; never `start`."""
    ws = workspace_around(store)
    return _not_over(ws.path(f"policies/{Path(store).resolve().name}.json") if ws else _saved_policy(store), start)


def _not_over(target: Path, start: AnyPath | None) -> Path:
    """`target`, or the first free of NAME-2.json, NAME-3.json, ... where `target` is the page's start policy.

    So the page never overwrites the policy that it starts with, and users can return to that policy.
    """
    if start is None or target.resolve() != Path(start).resolve():
        return target
    return next(p for n in itertools.count(2) if not (p := target.with_name(f"{target.stem}-{n}.json")).exists())


def policy_setting(store: AnyPath, policy: Path) -> str:
    """Value of `pseudo_label.threshold` for a saved policy: its path from the workspace, if it lies in one."""
    path, ws = policy.resolve(), workspace_around(store)
    inside = ws is not None and path.is_relative_to(ws.root.resolve())
    return path.relative_to(ws.root.resolve()).as_posix() if ws and inside else str(path)
