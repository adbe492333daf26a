"""`autolabel` itself: commands, and mistakes in arguments that never reach a subcommand."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.cli.main import COMMANDS, main


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["inspct", "labels/raw"], "unknown command 'inspct', did you mean inspect?"),
        (["???"], "unknown command '???'"),
        (["--nonsense"], "--nonsense"),
        (["inspect"], "autolabel inspect: the following arguments are required: STORE"),
        (["inspect", "STORE", "--treshold", "0.9"], "unrecognized arguments: --treshold 0.9"),
        (["export", "A", "B", "--format", "gif"], "'gif'"),
        (["models", "forget"], "'forget'"),
        (["predict", "a.png", "--out", "b", "--checkpoint", "c", "--threads", "0"], "'0' is not a whole number"),
        (["predict", "a.png", "--out", "b", "--checkpoint", "c", "--scales", "a,b"], "'a,b' is not a list of numbers"),
        (["serve", "STORE", "--port", "99999"], "'99999' is not a port from 0 to 65535"),
    ],
)
def test_wrong_arguments_are_one_line_and_a_hint(args: list[str], words: str, capsys) -> None:
    with pytest.raises(SystemExit) as ended:
        main(args)
    captured = capsys.readouterr()
    assert (ended.value.code, captured.out) == (2, "")
    first, hint = captured.err.splitlines()
    assert first.startswith("error: ")
    assert words in first
    assert hint.startswith("hint: see `autolabel")


def test_without_a_command_all_of_them_are_listed(capsys) -> None:
    assert main([]) == 2
    shown = capsys.readouterr().err
    assert all(f"  {name} " in shown for name in COMMANDS)


@pytest.mark.parametrize(
    "args",
    [
        ["export", "STORE", "s3://lab/out", "--format", "masks"],
        ["import", "DIR", "s3://lab/out", "--classes", "cityscapes"],
        ["serve", "s3://lab/out"],
        ["diff", "A", "B", "--pictures", "s3://lab/out"],
    ],
)
def test_an_address_in_the_place_of_a_local_folder_is_refused_and_no_folder_gets_its_name(
    args: list[str], capsys, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(args) == 2
    assert capsys.readouterr().err.startswith("error: s3://lab/out: an address is not possible here\nhint: ")
    assert not list(tmp_path.iterdir())
