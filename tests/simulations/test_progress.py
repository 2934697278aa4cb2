"""Progress in a terminal and in a log, by a process of its own on a real pseudo-terminal and into a pipe."""

import os
import pty
import subprocess
import sys
import termios

WORK = """
from simulations import progress
progress.SECONDS_A_LINE = {every}
with progress.progress_bar("train", "step", 2000) as bar:
    for number in range(2000):
        bar.set_postfix_str(f"site {{number % 3}}")
        bar.update()
print("done")
"""


def lines_in_a_log(every):
    done = subprocess.run(
        [sys.executable, "-c", WORK.format(every=every)], check=True, capture_output=True, text=True, timeout=120
    )
    assert done.stdout == "done\n"
    assert "\r" not in done.stderr
    return done.stderr.splitlines()


def test_a_log_holds_a_line_now_and_then_and_not_every_step():
    lines = lines_in_a_log(3600)
    assert 1 <= len(lines) <= 2  # the first look and the last
    assert lines[-1].startswith("train: 100%")
    assert "2000/2000" in lines[-1]
    assert "site 1" in lines[-1]


def test_a_line_comes_when_its_time_has():
    lines = lines_in_a_log(0)
    assert len(lines) > 1000
    assert "1000/2000" in "".join(lines)


def test_a_terminal_shows_a_bar_that_goes_away():
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 80))
    work = subprocess.Popen([sys.executable, "-c", WORK.format(every=3600)], stdout=subprocess.DEVNULL, stderr=theirs)
    os.close(theirs)
    shown = b""
    try:
        while piece := os.read(ours, 65536):
            shown += piece
    except OSError:  # how the end of a pseudo-terminal is told on Linux
        pass
    assert work.wait(timeout=60) == 0
    os.close(ours)
    assert shown.count(b"\r") > 2
    assert not shown.rsplit(b"\r", 2)[-2].strip()  # the last thing drawn is nothing
