"""A short soak: what `make soak` says of ten million events, of three hundred thousand, on a coarser scale."""

import re
import sys

import pytest

from conftest import ROOT, run_bounded


@pytest.mark.timeout(300)
def test_nothing_stays() -> None:
    """Sessions are born and expire: memory, descriptors and tasks are flat; a leak of 30 bytes an event would show."""
    options = ["--events=300000", "--steps=5", "--items=80000", "--slack=6", "--max-age-s=1"]
    command = [sys.executable, "-m", "benches.soak", *options]
    status, out, err = run_bounded(command, timeout_s=280, env={"PYTHONPATH": str(ROOT)})
    assert status == 0, out + err
    steps = re.findall(r"([\d,]+) events +[\d.]+ MiB +(\d+) descriptors +(\d+) tasks", out)
    assert len(steps) == 5
    assert int(steps[-1][0].replace(",", "")) >= 300_000
    assert len({step[1:] for step in steps[1:]}) == 1
    assert "80,000 items, 8 threads to 4 loops: each once, in order" in out
