"""Builds the two Rust contenders of this folder, with the project's own release profile, into `target/benches`."""

from __future__ import annotations

import importlib
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

HERE = Path(__file__).resolve().parent
TARGET = HERE.parent / "target" / "benches"


class NotBuilt(Exception):
    """cargo is missing, or the build failed."""


def build(crate: str) -> Path:
    """The folder that the crate's binary or library is in."""
    cargo = shutil.which("cargo")
    if cargo is None:
        raise NotBuilt("no cargo")
    command = [cargo, "build", "--release", "--quiet", "--locked", "--target-dir", str(TARGET)]
    done = subprocess.run(command, cwd=HERE / crate, stderr=subprocess.PIPE, text=True, timeout=600, check=False)
    if done.returncode:
        raise NotBuilt(f"{crate} does not build: {done.stderr.strip().splitlines()[-1]}")
    return TARGET / "release"


def extension(crate: str) -> ModuleType:
    """Builds the crate and imports it as a Python module."""
    built = build(crate)
    shutil.copyfile(built / f"lib{crate}.so", TARGET / f"{crate}.abi3.so")
    sys.path.insert(0, str(TARGET))
    try:
        return importlib.import_module(crate)
    finally:
        sys.path.remove(str(TARGET))
