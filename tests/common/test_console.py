import io

import pytest
from rich.console import Console

from fedprofile.common import console as module
from fedprofile.common.console import remark, stage


def test_off_a_terminal_a_stage_is_about_ten_plain_lines_on_standard_error(capsys):
    with stage("Training", 95) as progress:
        for _ in range(95):
            progress.advance("x [bold]")
    found = capsys.readouterr()
    lines = found.err.splitlines()
    assert found.out == ""
    assert 10 <= len(lines) <= 12
    assert lines[0] == "Training 9/95 x [bold]"
    assert lines[-1] == "Training 95/95 x [bold]"
    assert "\x1b" not in found.err


def test_a_short_stage_shows_every_step_and_an_empty_one_nothing(capsys):
    with stage("Baselines", 2) as progress:
        progress.advance("one")
        progress.advance("two")
    with stage("Training", 0):
        pass
    assert capsys.readouterr().err == "Baselines 1/2 one\nBaselines 2/2 two\n"


def test_a_stage_can_start_in_the_middle(capsys):
    with stage("Training", 5) as progress:
        progress.advance(to=4)
        progress.advance(to=5)
    assert capsys.readouterr().err == "Training 4/5\nTraining 5/5\n"


def test_on_a_terminal_a_stage_is_one_bar(monkeypatch):
    screen = io.StringIO()
    terminal = Console(file=screen, force_terminal=True, width=80)
    monkeypatch.setattr(module, "console", terminal)
    with stage("Training", 2) as progress:
        progress.advance("[3 devices]")
        progress.advance("[4 devices]")
    shown = screen.getvalue()
    assert "2/2" in shown
    assert "[4 devices]" in shown


def test_a_remark_is_one_line_however_long(capsys):
    text = "wörter 猫 [red] " * 20
    remark(text)
    assert capsys.readouterr().err == text + "\n"


@pytest.mark.parametrize("style", ["yellow", "bold red"])
def test_a_style_shows_on_terminals_only(capsys, style):
    remark("careful", style=style)
    assert capsys.readouterr().err == "careful\n"
