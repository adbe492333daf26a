"""params.yaml: one clear line for every mistake."""

from __future__ import annotations

import random
import re
from pathlib import Path

import pytest

from hmsa_core.io.errors import ConfigError
from pipeline.workspace.params import Params
from pipeline.workspace.settings import annotated, profile_text
from pipeline.workspace.yaml_text import read_yaml


@pytest.fixture
def load(tmp_path: Path):
    def run(text: str) -> Params:
        path = tmp_path / "params.yaml"
        path.write_text(text, "utf-8")
        return Params.load(path)

    return run


def _changed(old: str, new: str, profile: str = "tiny") -> str:
    text = annotated(Params.of_profile(profile))
    assert text.count(old) >= 1, old
    return text.replace(old, new, 1)


MISTAKES = r"""
    lr: 0.02 =>     lr: -1 => teacher_pretrain\.optimiser\.lr: expected greater than 0, found -1
    momentum: =>     momentun: => momentun: unknown key; did you mean momentum\?
  epochs: 2 =>   epochs: many => teacher_pretrain\.epochs: expected an integer, found 'many'
  epochs: 2  =>   epochs: 2.5  => teacher_pretrain\.epochs: expected .*integer.*, found 2\.5
    head: paper =>     head: papre => model\.head: expected 'paper' or 'released', found 'papre'
  threshold: policy =>   threshold: 1.5 => pseudo_label\.threshold: expected .*0\.9999.*, found 1\.5
  threshold: policy =>   threshold: polcy => pseudo_label\.threshold: expected .*policy.*found 'polcy'
  threshold: policy =>   threshold: true => pseudo_label\.threshold: expected .*, found True
  global_batch: 4 =>   global_batch: 5 => global_batch 5 is not a multiple of ranks x nodes x batch_per_rank = 2
  scales: [0.5, 1.0, 2.0] =>   scales: [0.5, 2.0] => auto_infer\.scales: scales must be different numbers .*, one of them 1, found \[0\.5, 2\.0\]
scales: [1.0] => scales: [2.0] => evaluate\.settings\.1\.scales: scales must be different numbers
    trunk: hrnet_micro =>     trunk: hrnet_micra => model\.trunk: unknown trunk 'hrnet_micra': did you mean hrnet_micro\?
    trunk: hrnet_micro =>     trunk: hrnet_w0 => model\.trunk: unknown trunk 'hrnet_w0': did you mean hrnet_w
    train_scales: null =>     train_scales: [1.0] => model: train_scales must not be set for kind single, which
  crop: [64, 96] =>   crop: [64] => teacher_pretrain\.crop: a value is missing in the list
  crop: [64, 96] =>   crop: [64, 96, 3] => teacher_pretrain\.crop: expected at most 2 values, found \[64, 96, 3\]$
  flip: true =>   flip: on => auto_infer\.flip: expected true or false, found 'on'$
threads: 1 => threads: many => threads: expected an integer or 'auto', found 'many'$
    report: [] =>     report: [ulm] => roles: 'ulm' is in both calibrate and report: an image has one role
  crop: [64, 96] =>   crop: [64, wide] => crop\.1: expected an integer, found 'wide'
profile: tiny => profile: tinny => profile: expected .*'tiny'.*found 'tinny'
⏎report: => ⏎reprot: => params\.yaml:\d+: reprot: unknown key; did you mean report\?$
  max_leaked: 0.05 =>   max_leaked: 5 => evaluate\.max_leaked: expected less than or equal to 1, found 5
    root: data/demo/cityscapes =>     root: ~/city => data: expected target\.root as a path written out, found ~/city
  rule: promise =>   rule: promis => calibrate\.rule: expected one of promise, teach, found 'promis'$
  stores: [] =>   stores: [null] => student_train\.stores\.0: expected `key: value` lines, found null$
  stores: [] =>   stores: {} => student_train\.stores: expected a list, found `key: value` lines$
fine_only_epochs: 0 => fine_only_epochs: 500 => pseudo\.fine_only_epochs must be fewer than epochs: else no auto-label
    kind: mapillary =>     kind: vistas => data\.pretrain\.kind: expected .*'mapillary'.*found 'vistas'
"""  # original text => text with the mistake => expected message; ⏎ is the end of a line


@pytest.mark.parametrize(
    ("old", "new", "said"), [row.replace("⏎", "\n").split(" => ") for row in MISTAKES.strip("\n").split("\n")]
)
def test_a_mistake_is_one_line_that_names_key_expectation_and_value(load, old: str, new: str, said: str) -> None:
    text = _changed(old, new)
    with pytest.raises(ConfigError, match=said) as caught:
        load(text)
    if "max_leaked" in new:
        line = next(n for n, row in enumerate(text.splitlines(), 1) if new.strip() in row)
        assert f"params.yaml:{line}: " in caught.value.message
    assert "\n" not in caught.value.message
    assert re.match(r"\S+params\.yaml(:\d+)?: ", caught.value.message), caught.value.message


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: 1\nb 2\nc: 3\n", "2: expected `key: value`, found no `: ` after the key"),
        ("a: 1\nb: c: 2\n", "2: expected one `key: value` a line, found a `:` too many"),
        ("a: 1\n  b: 2\n", "2: expected one `key: value` a line, .* or another indentation"),
        ("a:\n  b: 1\n c: 2\n", "3: expected a line like the one before, found another indentation"),
        ("a: - 1\n", r"1: expected a value, found `- `, a list's entry, on the line of its key \(write \[a, b\]"),
        ("a: ? 1\n", r"1: expected a value, found `\? `"),
        ("a:\n\tb: 1\n", "2: expected spaces, found a tab"),
        ("a: [1, 2\nb: 3\n", r"2: expected ',' or '\]', but got ':' \(opened on line 1\)"),
        ("a: 1\nb: 'x\nc: 1\n", r"4: found unexpected end of stream \(opened on line 2\)"),
        ("a: 1\n\na: 2\n", '3: found duplicate key "a"'),
        ("a: &x 1\nb: *x\n", "1: a: anchors and aliases .* are not supported: write the value out"),
        ("a: {b: 1, <<: {c: 1}}\n", "1: a: anchors and aliases"),
        ("a: 2020-01-01\n", "1: a: expected a plain value, found a YAML date"),
        ("a: 1\n---\nb: 2\n", "2: expected a single document in the stream, but found another document"),
    ],
)
def test_what_is_no_yaml_of_ours_is_reported_with_its_line_and_what_to_write(load, text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=rf"params\.yaml:{said}"):
        load(text)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("  crop: [64, 128]", "  corp: [64, 128]", r"train\.corp: unknown key; did you mean crop\?$"),
        ("lr_scaling: none", "lr_scaling: nil", r"train\.optimiser\.lr_scaling: expected .*'none', found 'nil'$"),
        (
            "runtime: {precision: fp32}",
            "runtime: {precison: fp32}",
            r"runtime\.precison: unknown key; did you mean prec",
        ),
        ("runtime: {precision: fp32}", "runtime: {engin: ray}", r"runtime\.engin: unknown key; did you mean engine\?$"),
        ("runtime: {precision: fp32}", "runtime: fast", r"runtime: expected `key: value` lines, found 'fast'"),
        ("runtime: {precision: fp32}", "runtime:", r"runtime: expected `key: value` lines, found null$"),
        ("\ntrain: ", "\ntrian: ", r"trian: unknown key; did you mean train\?"),
    ],
)
def test_a_mistake_in_what_stages_share_is_named_once_where_it_is_written(load, old: str, new: str, said: str):
    text = profile_text("tiny").replace(old, new, 1)
    line = next(n for n, row in enumerate(text.splitlines(), 1) if new.strip() in row)
    with pytest.raises(ConfigError, match=rf"params\.yaml:{line}: {said}"):
        load(text)


def test_a_section_goes_before_train_and_runtime_and_those_before_the_defaults_of_the_code(load) -> None:
    params = load(profile_text("tiny") + "prepare: {workers: 3}\n")
    trainings = (params.teacher_pretrain, params.teacher_train, params.student_train)
    assert [t.crop for t in trainings] == [(64, 96), (64, 128), (64, 128)]
    assert [t.optimiser.lr for t in trainings] == [0.02, 0.1, 0.01]
    assert {t.optimiser.lr_reference_batch for t in trainings} == {4}
    assert [t.runtime.ranks for t in (*trainings, params.auto_infer, params.evaluate)] == [1, 2, 1, 2, 1]
    assert {t.runtime.precision for t in (*trainings, params.auto_infer, params.evaluate)} == {"fp32"}
    assert params.prepare.workers == 3


def test_numbers_are_read_as_dvc_reads_them(load) -> None:
    assert load(_changed("    lr: 0.02", "    lr: 5e-4")).teacher_pretrain.optimiser.lr == 0.0005
    with pytest.raises(ConfigError, match="finite"):
        load(_changed("    lr: 0.02", "    lr: .inf"))
    with pytest.raises(ConfigError, match="expected true or false, found 'yes'"):
        load(_changed("  control: true", "  control: yes"))


def test_student_and_control_take_equally_many_steps(load) -> None:
    before, student = _changed("", "").split("\nstudent_train:")
    shorter = f"{before}\nstudent_train:" + student.replace("empty_classes: redistribute", "empty_classes: released", 1)
    with pytest.raises(
        ConfigError, match=r"student_train: sampling\.empty_classes: released shortens .*control: false"
    ):
        load(shorter)
    alone = shorter.replace("  control: true", "  control: false")
    assert load(alone).student_train.sampling.empty_classes == "released"


def test_thresholds_of_pixels_outside_of_polygons_do_not_cut_all_pixels(load) -> None:
    outside = _changed("  region: all", "  region: outside_coarse")
    alone = outside.replace("use_coarse: true", "use_coarse: false")
    assert load(outside).pseudo_label.threshold == "policy"
    with pytest.raises(ConfigError, match=r"params\.yaml:\d+: calibrate\.region is outside_coarse, .*write calibrate"):
        load(alone)
    assert load(alone.replace("  threshold: policy", "  threshold: 0.5")).calibrate.region == "outside_coarse"


def test_a_missing_file_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"params\.yaml: cannot be read"):
        Params.load(tmp_path / "params.yaml")


VALUES = """|null|-1|0|1e9|1e400|.nan|[]|[1, 2|{a: b}|true|policy|'|"x|&a 1|*a|!!int x|- 1|\t|a: b"""
VALUES = [*VALUES.split("|"), "99999999999999999999999", "ä☃", "\x00", "[[[[1]]]]", "0.5", "../.."]


def _mutate(text: str, rng: random.Random) -> str:
    lines = text.splitlines()
    at = rng.randrange(len(lines))
    match rng.randrange(6):
        case 0:  # only a line with a value has one to lose
            at = rng.choice([number for number, line in enumerate(lines) if re.match(r" *[a-z_]+: \S", line)])
            lines[at] = re.sub(r": .*", f": {rng.choice(VALUES)}", lines[at])
        case 1:
            lines[at] = re.sub(r"([a-z]{2,}):", lambda m: m[1][:-1] + rng.choice("xyz_ ") + ":", lines[at], count=1)
        case 2:
            del lines[at]
        case 3:
            lines.insert(rng.randrange(len(lines)), lines[at])
        case 4:
            lines[at] = " " * rng.randrange(9) + lines[at].strip()
        case _:
            raw = list(text)
            raw[rng.randrange(len(raw))] = rng.choice("{}[]:#&*!|>'\"%@`\n\x07é ")
            return "".join(raw)
    return "\n".join(lines) + "\n"


# After file and line: a key with what was expected and what is there, or what is wrong with the YAML itself.
_OF_A_KEY = re.compile(
    r"(:\d+)?: .+?: (expected .+, found .+|anchors .+|unknown key; (did you mean|the keys here are:) .+|missing( \(.+)?"
    r"|unknown (loss|trunk).+|\w+ must (not|be) .+|global_batch .+)"
)
_OF_THE_TEXT = re.compile(
    r"(:\d+: (expected .+, (but )?(found|got) .+|found .+|while .+)"
    r"|: not a YAML text .+)"
)


@pytest.mark.long
def test_two_hundred_mutated_files_are_valid_or_refused_in_one_line_with_a_place(tmp_path: Path) -> None:
    rng = random.Random(20201)
    text = _changed("", "")
    path = tmp_path / "params.yaml"
    said = []
    for _ in range(200):
        path.write_bytes(_mutate(text, rng).encode("utf-8"))
        try:
            Params.load(path)
        except ConfigError as error:
            said.append(error.message)
    assert len(said) > 80, "the mutations hardly break anything: the test is blind"
    for message in said:
        assert "\n" not in message, message
        assert message.startswith(str(path)), message
        assert len(message) < 600, message
        rest = message.removeprefix(str(path))
        assert _OF_A_KEY.fullmatch(rest) or _OF_THE_TEXT.fullmatch(rest), message
    assert sum(": expected " in message and ", found " in message for message in said) > 20


def test_line_numbers_of_nested_keys_are_known(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("a:\n  b:\n    c: 1\n  d: [1,\n    2]\n")
    document = read_yaml(tmp_path / "a.yaml")
    assert document.where(("a", "b", "c")).endswith("a.yaml:3")
    assert document.where(("a", "d", 1)).endswith("a.yaml:5")
    assert document.where(("a", "nowhere")).endswith("a.yaml:1")
