"""Runs the measurements and prints what they say. `--help` tells the options, README.md how to read the figures."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import sys
import traceback
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from benches.harness import Absent, Report, Scale, Setup, Verdict, measure, median

MODULES = ("normalize", "ready", "crossing", "replay", "bounds")
"""In the order of the table."""


def setups() -> dict[str, Setup]:
    groups: dict[str, Setup] = {}
    for module in MODULES:
        groups.update(importlib.import_module(f"benches.{module}").GROUPS)
    return groups


def figure(value: float) -> str:
    """Three digits that mean something."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def show(report: Report) -> None:
    group = report.group
    print(f"\n{report.name}: {group.title}; {group.rounds} rounds\n  {' | '.join(group.columns.values())}")
    for side in group.sides:
        if isinstance(side, Absent):
            print(f"    {side.name:20} skipped: {side.reason}")
            continue
        rounds = report.samples[side.name]
        cells = []
        for column in group.columns:
            costs = [cost[column] for cost in rounds]
            cells.append(f"{figure(median(rounds, column)):>8} ({figure(min(costs))}–{figure(max(costs))})")
        print(f"    {side.name:20} {' | '.join(f'{cell:24}' for cell in cells)} {side.does}")
    for verdict in report.verdicts:
        print(f"  {verdict.line.title}: {result(verdict)}  {verdict.word}")


def result(verdict: Verdict) -> str:
    if verdict.value is None:
        return f"skipped: {verdict.skipped}"
    sign = "×" if verdict.line.under is not None else ""
    wanted = f"  (target {verdict.line.target}{sign})" if verdict.line.target else ""
    return f"{figure(verdict.value)}{sign}{wanted}"


def markdown(reports: list[Report]) -> str:
    """The README's table: one row a line, both sides' own figures beside the ratio."""
    rows = ["| measured | turnstream | against | ratio | target | |", "|---|---|---|---|---|---|"]
    for report in reports:
        for verdict in report.verdicts:
            line, unit = verdict.line, report.group.columns[verdict.column]
            if verdict.value is None:
                rows.append(f"| {line.title} | | | skipped: {verdict.skipped} | {line.target or ''} | |")
                continue
            over = figure(median(report.samples[line.over], verdict.column))
            under = "" if line.under is None else figure(median(report.samples[line.under], verdict.column))
            ours, theirs = (over, under) if line.floor or line.under is None else (under, over)
            ratio = f"**{figure(verdict.value)}{'×' if under else ''}**"
            rows.append(f"| {line.title} | {ours} {unit} | {theirs} | {ratio} | {line.target or ''} | {verdict.word} |")
    return "\n".join(rows)


def machine() -> dict[str, Any]:
    from turnstream import _native

    def installed(name: str) -> str:
        try:
            return version(name)
        except PackageNotFoundError:
            return "absent"

    return {
        "python": platform.python_version(),
        "turnstream": installed("turnstream"),
        "debug_build": _native.debug_build,
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
    }


def main() -> int:
    parser = argparse.ArgumentParser(prog="benches", description=__doc__)
    parser.add_argument("--only", action="append", metavar="NAME", help="groups whose name starts so; may be repeated")
    parser.add_argument(
        "--quick", action="store_true", help="three rounds of a tenth of the work: does everything run?"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="every round's figures, for programs")
    parser.add_argument("--markdown", action="store_true", help="the README's table, after the rest")
    parser.add_argument("--strict", action="store_true", help="exit 1 on a missed target")
    options = parser.parse_args()

    here = machine()
    print(", ".join(f"{name} {value}" for name, value in here.items()))
    if here["debug_build"]:
        print("warning: a debug build of turnstream; its figures mean nothing")
    reports, broken = [], []
    for name, setup in setups().items():
        if options.only and not any(name.startswith(only) for only in options.only):
            continue
        try:
            with setup(Scale(quick=options.quick)) as group:
                reports.append(measure(name, group))
                show(reports[-1])
        except Exception:  # one that breaks does not hide the others; the exit status tells
            broken.append(name)
            print(f"\n{name}: broken")
            traceback.print_exc()
        sys.stdout.flush()
    if options.markdown:
        print("\n" + markdown(reports))
    if options.json:
        options.json.write_text(
            json.dumps({"machine": here, "groups": [report.to_dict() for report in reports]}, indent=1)
        )
    missed = [verdict.line.title for report in reports for verdict in report.verdicts if verdict.word == "MISS"]
    met = sum(verdict.word == "ok" for report in reports for verdict in report.verdicts)
    print(f"\n{met} targets met, {len(missed)} missed, {len(broken)} broken {' '.join(broken)}".rstrip())
    return 1 if broken or (options.strict and missed) else 0


if __name__ == "__main__":
    sys.exit(main())
