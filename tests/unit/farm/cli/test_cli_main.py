"""The command line itself: help, near misses, one message and one exit code per mistake."""

from __future__ import annotations

from importlib.metadata import version

import pytest

from farm import cli


def test_help_lists_every_command_and_the_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    shown = capsys.readouterr().out
    for name, summary in cli.COMMANDS.items():
        assert f"  {name}" in shown
        assert summary in shown
    assert "130  interrupted" in shown


def test_no_command_shows_the_help_as_a_mistake(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 2
    assert "commands:" in capsys.readouterr().out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"farm {version('qeff-farm')}\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["submitt"], "There is no command 'submitt'. Did you mean 'submit'?"),
        (["submit", "--core", "8"], "farm submit has no option --core. Did you mean --cores?"),
        (
            ["submit", "--model", "m", "--ctx-length=8"],
            "farm submit has no option --ctx-length. Did you mean --ctx-len?",
        ),
        (["--hom", "x", "list"], "farm has no option --hom. Did you mean --home?"),
        (["list", "--zzz"], "farm list has no option --zzz. `farm list --help` shows those that there are."),
        (["why", "j1", "j2"], "'j2' is one argument too many"),
        (["submit"], "the following arguments are required: --model"),
        (["submit", "--model", "m", "--cores", "8,,14"], "argument --cores: '8,,14' has an empty element"),
        (["submit", "--model", "m", "--cores", "8,x"], "argument --cores: 'x' is not a whole number"),
        (["submit", "--model", "m", "--label", "k"], "argument --label: 'k' is not a label, expected KEY=VALUE"),
        (["list", "--limit", "0"], "argument --limit: '0' is not a whole number of at least 1"),
        (["list", "--state", "done"], "argument --state: invalid choice: 'done'"),
    ],
)
def test_mistakes_are_one_line_with_exit_code_two(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(arguments) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert (captured.out, captured.err.count("\n")) == ("", 1)


def test_shared_options_may_stand_before_and_after_the_command(
    tmp_path: object, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments in (["--home", f"{tmp_path}/nowhere", "list"], ["list", "--home", f"{tmp_path}/nowhere"]):
        assert cli.main(arguments) == 4
        assert f"There is no farm in {tmp_path}/nowhere" in capsys.readouterr().err


def test_a_mistake_of_the_program_is_said_without_a_traceback_unless_asked(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli, "load", lambda name: 1 / 0)
    assert cli.main(["list"]) == 1
    plain = capsys.readouterr().err
    assert "ZeroDivisionError" in plain
    assert "Traceback" not in plain
    assert cli.main(["-v", "list"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_an_interrupt_is_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(name: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "load", interrupt)
    assert cli.main(["list"]) == 130
