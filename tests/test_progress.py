"""Progress in a log, where no bar can be."""

from data_modules import progress
from data_modules.progress import ProgressBar


def test_a_log_gets_a_line_now_and_then(monkeypatch, capsys):
    clock = iter([0.0, 10.0, 40.0, 50.0, 80.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    with ProgressBar("people", 20, done=4) as bar:
        for _ in range(4):
            bar.advance(2)
    assert capsys.readouterr().err == "people: 8 of 20, 0.1/s\npeople: 12 of 20, 0.1/s\n"


def test_a_quiet_one_says_nothing(monkeypatch, capsys):
    monkeypatch.setattr(progress, "PACE", 0.0)
    with ProgressBar("people", 20, shown=False) as bar:
        bar.advance()
    assert capsys.readouterr().err == ""
