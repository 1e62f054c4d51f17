"""What a measurement is: groups of sides that do the same work in turns, and the ratios read from them.

Owns: rounds, clocks, medians, verdicts. Knows nothing of what is measured.

1. The sides of a group run A B C A B C …, never A A A B B B, so a machine that slows down slows all of them.
2. A figure is the median of its rounds; a ratio is one of two medians of the same group and the same run.
3. A side that is done sooner works as often as fills 20 ms, so that every side warms its own caches.
4. The collector runs before each round and rests during it, on every side alike (as `timeit` does).
5. A side that cannot run says why; it is never left out in silence.
"""

from __future__ import annotations

import gc
import json
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

HERE = Path(__file__).resolve().parent

Cost = dict[str, float]
"""What one round cost, by column: "cpu" (all threads of the process that works), "wall", or another of the group's."""


@dataclass(frozen=True, slots=True)
class Side:
    """One contender. `round` does the work once and returns its cost per item."""

    name: str
    does: str
    round: Callable[[], Cost]


@dataclass(frozen=True, slots=True)
class Absent:
    """A contender that cannot run here, and why."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class Target:
    op: Literal[">=", "<="]
    bound: float

    def met(self, value: float) -> bool:
        return value >= self.bound if self.op == ">=" else value <= self.bound

    def __str__(self) -> str:
        return f"{'≥' if self.op == '>=' else '≤'} {self.bound:g}"


def at_least(bound: float) -> Target:
    return Target(">=", bound)


def at_most(bound: float) -> Target:
    return Target("<=", bound)


@dataclass(frozen=True, slots=True)
class Line:
    """One figure of the table: `over` divided by `under`, or `over` alone where there is nothing to compare with.

    `column` says which cost is compared; by default the group's first. `floor`: what stands in `under` is no competitor
    but a floor or a smaller case, and turnstream stands in `over`.
    """

    title: str
    over: str
    under: str | None = None
    target: Target | None = None
    column: str | None = None
    floor: bool = False


@dataclass(frozen=True, slots=True)
class Group:
    """Sides that do the same work, and the lines drawn from them. `columns`: each cost that is shown, and its unit.

    `warm_up`: whether a round goes before that does not count; in vain where each has its own processes.
    """

    title: str
    columns: dict[str, str]
    sides: Sequence[Side | Absent]
    lines: Sequence[Line]
    rounds: int
    warm_up: bool = True


@dataclass(frozen=True, slots=True)
class Scale:
    """How much work a run does. `quick` shows that everything runs; its figures are not for quoting."""

    quick: bool = False

    def rounds(self, full: int) -> int:
        return min(3, full) if self.quick else full

    def items(self, full: int) -> int:
        return max(1, full // 10) if self.quick else full


Setup = Callable[[Scale], AbstractContextManager[Group]]


@dataclass(frozen=True, slots=True)
class Verdict:
    """A line with its figure. `value` is None where a side was absent."""

    line: Line
    column: str
    value: float | None
    skipped: str | None

    @property
    def word(self) -> str:
        if self.value is None:
            return "skipped"
        if self.line.target is None:
            return ""
        return "ok" if self.line.target.met(self.value) else "MISS"


@dataclass(frozen=True, slots=True)
class Report:
    name: str
    group: Group
    samples: dict[str, list[Cost]]
    verdicts: list[Verdict]

    def to_dict(self) -> dict[str, Any]:
        def side(one: Side | Absent) -> dict[str, Any]:
            if isinstance(one, Absent):
                return {"name": one.name, "skipped": one.reason}
            rounds = self.samples[one.name]
            medians = {column: median(rounds, column) for column in self.group.columns}
            return {"name": one.name, "does": one.does, "median": medians, "rounds": rounds}

        def line(verdict: Verdict) -> dict[str, Any]:
            target = str(verdict.line.target) if verdict.line.target else None
            return {
                "title": verdict.line.title,
                "over": verdict.line.over,
                "under": verdict.line.under,
                "column": verdict.column,
                "floor": verdict.line.floor,
                "value": verdict.value,
                "target": target,
                "verdict": verdict.word,
                "skipped": verdict.skipped,
            }

        return {
            "name": self.name,
            "title": self.group.title,
            "rounds": self.group.rounds,
            "columns": self.group.columns,
            "sides": [side(one) for one in self.group.sides],
            "lines": [line(one) for one in self.verdicts],
        }


def median(rounds: Sequence[Cost], column: str) -> float:
    return statistics.median(cost[column] for cost in rounds)


def measure(name: str, group: Group) -> Report:
    """Runs a warm-up and the group's rounds, the sides in turns, and judges the lines."""
    present = [side for side in group.sides if isinstance(side, Side)]
    absent = {side.name: side.reason for side in group.sides if isinstance(side, Absent)}
    samples: dict[str, list[Cost]] = {side.name: [] for side in present}
    for side in present if group.warm_up else ():
        side.round()
    for _ in range(group.rounds):
        for side in present:
            samples[side.name].append(side.round())
    return Report(name, group, samples, [_judge(group, line, samples, absent) for line in group.lines])


def _judge(group: Group, line: Line, samples: dict[str, list[Cost]], absent: dict[str, str]) -> Verdict:
    column = line.column or next(iter(group.columns))
    missing = [absent[name] for name in (line.over, line.under) if name in absent]
    if missing:
        return Verdict(line, column, None, "; ".join(missing))
    value = median(samples[line.over], column)
    if line.under is not None:
        value /= median(samples[line.under], column)
    return Verdict(line, column, value, None)


def timed(work: Callable[[], object], items: int, *, unit: float = 1e6) -> Cost:
    """Cost of `work` per item, in microseconds. The collector runs before and rests meanwhile."""
    gc.collect()
    gc.disable()
    try:
        cpu, wall = time.process_time(), time.perf_counter()
        work()
        return {"wall": (time.perf_counter() - wall) * unit / items, "cpu": (time.process_time() - cpu) * unit / items}
    finally:
        gc.enable()


ROUND_S = 0.02


def repeated(work: Callable[[], object], items: int, *, unit: float = 1e6) -> Callable[[], Cost]:
    """A round of `work`, as often as fills 20 ms.

    Else a side that is over in one would be measured with the caches that the side before it left, and the longer side
    with its own.
    """
    times = 0

    def run() -> Cost:
        nonlocal times
        if not times:
            start = time.perf_counter()
            work()
            times = max(1, round(ROUND_S / (time.perf_counter() - start)))

        def all_of_it() -> None:
            for _ in range(times):
                work()

        return timed(all_of_it, items * times, unit=unit)

    return run


class Worker:
    """A contender in another process: it says one JSON object when ready, and one for every line that it is sent.

    Its CPU time is read from outside, so a worker in any language is measured by the same clock.
    """

    def __init__(self, *command: str, env: dict[str, str] | None = None) -> None:
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)
        try:
            self.hello = self._answer()
        except BaseException:
            self.close()
            raise

    def ask(self, what: object) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{what}\n")
        self._process.stdin.flush()
        return self._answer()

    def cpu(self) -> float:
        """CPU seconds of all its threads so far, once it sleeps: `clock_getcpuclockid(3)`, spelled out.

        The kernel adds what a thread has run to the clock when it stops running, or at a tick, every 4 ms: as much as
        the cheaper side takes in all. One that has so much to do that it does not sleep is read after a second.
        """
        state, until = Path(f"/proc/{self._process.pid}/stat"), time.monotonic() + 1
        while state.read_text().rpartition(") ")[2][0] != "S" and time.monotonic() < until:
            time.sleep(0.0001)
        return time.clock_gettime(~self._process.pid << 3 | 2)

    def resident(self, field: str) -> float:
        """KiB of memory that it holds ("VmRSS"), or held at most ("VmHWM")."""
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        return float(status.partition(f"{field}:")[2].split()[0])

    def close(self) -> None:
        """Ends the process: its standard input closes, and after ten seconds it is killed."""
        try:
            self._process.communicate(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("{"):
                answer: dict[str, Any] = json.loads(line)
                return answer
        raise RuntimeError(f"{self._process.args!r} ended before it answered")
