"""Nobody is judged on what it learned from: same file, near copy, neighbour in time."""

from __future__ import annotations

import pytest

from hmsa_core.data.index import Sample
from hmsa_core.io.errors import InputError, LeakageError
from hmsa_core.leaks import find_leaks, judge_only_unseen
from hmsa_core.lineage import LearnedImage, Lineage
from tests.support.training import sample


def _sample(
    name: str, *, sha: str = "", phash: str = "ffff0000ffff0000", sequence: str = "", frame: int = -1
) -> Sample:
    given = {"image_sha256": sha or f"sha-{name}", "phash": phash, "sequence": sequence, "frame": frame, "block": name}
    return sample(name, role="report", **given)


def _lineage(*learned: LearnedImage, unknown: tuple[str, ...] = ()) -> Lineage:
    return Lineage({i.sha256: i for i in learned}, (), unknown)


def _learned(
    name: str, *, sha: str = "", phash: str = "0123456789abcdef", sequence: str = "", frame: int = -1
) -> LearnedImage:
    return LearnedImage(sha or f"sha-{name}", name, "target", phash, sequence, frame, "fine")


def _why(sample: Sample, learned: LearnedImage, *, max_gap: int = 30, max_distance: int = 2) -> list[str]:
    found = find_leaks([sample], _lineage(learned), model="teacher", max_gap=max_gap, max_distance=max_distance)
    return [leak.why for leak in found]


def test_the_same_file_under_another_name_is_found() -> None:
    assert _why(_sample("a", sha="x"), _learned("b", sha="x")) == ["same file"]


@pytest.mark.parametrize(("bits", "found"), [(0, True), (2, True), (3, False), (64, False)])
def test_a_near_copy_is_found_up_to_the_given_number_of_bits(bits: int, found: bool) -> None:
    phash = f"{int('0123456789abcdef', 16) ^ ((1 << bits) - 1):016x}"
    assert _why(_sample("a", phash=phash), _learned("b")) == ([f"perceptual hash, {bits} bits apart"] if found else [])


@pytest.mark.parametrize(("frame", "found"), [(130, True), (131, False), (70, True), (69, False)])
def test_a_neighbour_in_the_same_sequence_is_found_within_the_gap(frame: int, found: bool) -> None:
    sample = _sample("a", sequence="0016E5", frame=frame)
    assert bool(_why(sample, _learned("b", sequence="0016E5", frame=100))) == found
    assert not _why(sample, _learned("b", sequence="0001TP", frame=frame))
    assert not _why(sample, _learned("b", sequence="0016E5", frame=100), max_gap=0)


def test_images_without_sequence_or_hash_are_never_neighbours() -> None:
    assert not _why(_sample("a", frame=5), _learned("b", frame=5))
    assert not _why(_sample("a", phash=""), _learned("b", phash=""))
    assert find_leaks([_sample("a")], Lineage(), model="t", max_gap=9, max_distance=9) == []


def test_learned_images_are_left_out_and_listed_for_every_judged_model() -> None:
    samples = [_sample(f"s{i}", phash=f"{i * 0x0F0F0F0F0F:016x}") for i in range(40)]
    models = {
        "teacher": _lineage(_learned("s3")),
        "student": _lineage(_learned("s3"), _learned("s7"), unknown=("weights abc: unlisted",)),
    }
    judged = judge_only_unseen(samples, models, max_leaked=0.05, max_gap=0, max_distance=0)
    assert set(judged.names) == {s.name for s in samples} - {"s3", "s7"}
    message = judged.to_json()
    assert (message["judged"], message["left_out"]) == (38, 2)
    assert [(leak["name"], leak["model"]) for leak in message["leaks"]] == [
        ("s3", "teacher"),
        ("s3", "student"),
        ("s7", "student"),
    ]
    assert message["unknown_lineage"] == ["student: weights abc: unlisted"]
    assert judged.unknown == {"student": ("weights abc: unlisted",), "teacher": ()}


def test_more_leaks_than_allowed_fail_with_names_and_reasons() -> None:
    samples = [_sample(f"s{i}", phash=f"{i * 0x0F0F0F0F0F:016x}") for i in range(10)]
    models = {"teacher": _lineage(_learned("s3"))}
    with pytest.raises(LeakageError, match=r"1 of 10 judged images .* at most 5 %.*s3 \(teacher: same file s3\)"):
        judge_only_unseen(samples, models, max_leaked=0.05, max_gap=0, max_distance=0)
    assert len(judge_only_unseen(samples, models, max_leaked=0.1, max_gap=0, max_distance=0).names) == 9
    with pytest.raises(InputError, match="no image to judge on"):
        judge_only_unseen([], models, max_leaked=0.05, max_gap=0, max_distance=0)
