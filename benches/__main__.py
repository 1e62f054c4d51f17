"""Runs the measurements and prints what they say. `--help` tells the options, README.md how to read the figures.

Each group runs in a process of its own, so that no heap and no thread of one weighs on another.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from benches.harness import HERE, Scale, Setup, measure

MODULES = (
    "normalize",
    "providers",
    "ready",
    "tools",
    "crossing",
    "wakeups",
    "replay",
    "live",
    "crowds",
    "stores",
    "bounds",
    "remote",
)
"""In the order of the table."""
GROUP_TIMEOUT_S = 600

Report = dict[str, Any]
"""A group's report as `harness.Report.to_dict` gives it."""


def setups() -> dict[str, Setup]:
    groups: dict[str, Setup] = {}
    for module in MODULES:
        groups.update(importlib.import_module(f"benches.{module}").GROUPS)
    return groups


def measured(name: str, quick: bool) -> Report | None:
    """The report of a group, from a fresh process; None where it broke, which it has said on standard error."""
    command = [sys.executable, "-m", "benches", "--inside", name, *(["--quick"] if quick else [])]
    done = subprocess.run(command, cwd=HERE.parent, stdout=subprocess.PIPE, timeout=GROUP_TIMEOUT_S, check=False)
    if done.returncode:
        return None
    report: Report = json.loads(done.stdout.splitlines()[-1])
    return report


def figure(value: float) -> str:
    """Three digits that mean something."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def show(report: Report) -> None:
    columns: dict[str, str] = report["columns"]
    print(f"\n{report['name']}: {report['title']}; {report['rounds']} rounds\n  {' | '.join(columns.values())}")
    for side in report["sides"]:
        if "skipped" in side:
            print(f"    {side['name']:20} skipped: {side['skipped']}")
            continue
        cells = []
        for column in columns:
            costs = [cost[column] for cost in side["rounds"]]
            cells.append(f"{figure(side['median'][column]):>8} ({figure(min(costs))}–{figure(max(costs))})")
        print(f"    {side['name']:20} {' | '.join(f'{cell:24}' for cell in cells)} {side['does']}")
    for line in report["lines"]:
        sign = "×" if line["under"] else ""
        if line["value"] is None:
            print(f"  {line['title']}: skipped: {line['skipped']}")
            continue
        wanted = f"  (target {line['target']}{sign})  {line['verdict']}" if line["target"] else ""
        print(f"  {line['title']}: {figure(line['value'])}{sign}{wanted}")


def markdown(reports: list[Report]) -> str:
    """The README's table: one row a line, both sides' own figures beside the ratio."""
    rows = ["| measured | turnstream | against | ratio | target | |", "|---|---|---|---|---|---|"]
    for report in reports:
        medians = {side["name"]: side["median"] for side in report["sides"] if "median" in side}
        for line in report["lines"]:
            title, target, column = line["title"], line["target"] or "", line["column"]
            if line["value"] is None:
                rows.append(f"| {title} | | | skipped: {line['skipped']} | {target} | |")
                continue
            over = figure(medians[line["over"]][column])
            under = figure(medians[line["under"]][column]) if line["under"] else ""
            ours, theirs = (over, under) if line["floor"] or not under else (under, over)
            ratio = f"**{figure(line['value'])}{'×' if under else ''}**"
            rows.append(
                f"| {title} | {ours} {report['columns'][column]} | {theirs} | {ratio} | {target} | {line['verdict']} |"
            )
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
        "load": round(os.getloadavg()[0], 2),
    }


def main() -> int:
    parser = argparse.ArgumentParser(prog="benches", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", action="append", metavar="NAME", help="groups whose name starts so; may be repeated")
    parser.add_argument(
        "--quick", action="store_true", help="three rounds of a tenth of the work: does everything run?"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="every round's figures, for programs")
    parser.add_argument("--markdown", action="store_true", help="the README's table, after the rest")
    parser.add_argument("--strict", action="store_true", help="exit 1 on a missed target")
    parser.add_argument("--inside", metavar="NAME", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside:
        with setups()[options.inside](Scale(quick=options.quick)) as group:
            print(json.dumps(measure(options.inside, group).to_dict()))
        return 0

    here = machine()
    print(", ".join(f"{name} {value}" for name, value in here.items()))
    if here["debug_build"]:
        print("warning: a debug build of turnstream; its figures mean nothing")
    reports: list[Report] = []
    broken: list[str] = []
    for name in setups():
        if options.only and not any(name.startswith(only) for only in options.only):
            continue
        report = measured(name, options.quick)
        if report is None:  # one that breaks does not hide the others; the exit status tells
            broken.append(name)
            print(f"\n{name}: broken")
        else:
            reports.append(report)
            show(report)
        sys.stdout.flush()
    if options.markdown:
        print("\n" + markdown(reports))
    if options.json:
        options.json.write_text(json.dumps({"machine": here, "groups": reports}, indent=1))
    verdicts = [line["verdict"] for report in reports for line in report["lines"]]
    missed = verdicts.count("MISS")
    print(f"\n{verdicts.count('ok')} targets met, {missed} missed, {len(broken)} broken {' '.join(broken)}".rstrip())
    return 1 if broken or (options.strict and missed) else 0


if __name__ == "__main__":
    sys.exit(main())
