"""The tree keeps its own rules: what is committed names no host or path that only one machine knows."""

import json
import re
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from conftest import ROOT, run_bounded, shared

HOSTS = [
    ".".join(labels)
    for labels in [
        ("pypi", "org"),
        ("pythonhosted", "org"),
        ("index", "crates", "io"),
        ("static", "crates", "io"),
        ("crates", "io/api"),
        ("registry", "npmjs"),
        ("deb", "debian", "org"),
    ]
]
MACHINE_PATH = re.compile(r"(?:^|[^\w.])/(?:work|farm|root|home)/", re.MULTILINE)
CARGO_SOURCE = 'source = "registry+https://github.com/rust-lang/crates.io-index"'  # as cargo writes it


def tracked(*patterns: str) -> dict[str, str]:
    """The text of the tracked files; binary ones are left out."""
    command = ["git", "-C", str(ROOT), "ls-files", "-z", "--", *patterns]
    names = subprocess.run(command, check=True, capture_output=True, text=True, timeout=20).stdout.split("\0")
    texts = {}
    for name in filter(None, names):
        path = ROOT / name
        if not path.is_file():  # removed, and not yet committed
            continue
        data = path.read_bytes()
        if b"\0" not in data:
            texts[name] = data.decode()
    return texts


def test_readme_is_short() -> None:
    lines = (ROOT / "README.md").read_text().splitlines()
    assert 40 < len(lines) < 200


@pytest.mark.parametrize("host", HOSTS)
def test_no_package_host_is_named(host: str) -> None:
    assert [name for name, text in tracked().items() if host in text] == []


def test_no_path_of_one_machine_is_named() -> None:
    hits = [f"{name}: {match[0]}" for name, text in tracked().items() for match in MACHINE_PATH.finditer(text)]
    assert hits == []


def test_cargo_locks_name_one_source() -> None:
    locks = tracked("*Cargo.lock")
    assert "Cargo.lock" in locks
    for name, text in locks.items():
        sources = {line for line in text.splitlines() if line.startswith("source = ")}
        assert sources <= {CARGO_SOURCE}, name


def test_python_pins_are_exact_and_name_no_address() -> None:
    pins = tracked("requirements/*.txt")
    assert {"requirements/test.txt", "requirements/bench.txt", "requirements/litellm.txt"} <= pins.keys()
    pin = re.compile(r"[a-z0-9._-]+==[\w.]+( ; .+)?", re.IGNORECASE)
    for name, text in pins.items():
        lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
        assert lines, name
        assert [line for line in lines if not pin.fullmatch(line)] == [], name


def test_npm_locks_hold_no_address() -> None:
    for name, text in tracked("*package-lock.json").items():
        packages = json.loads(text)["packages"]
        assert [key for key, package in packages.items() if "resolved" in package] == [], name


def named_tests() -> list[str]:
    """The names of all Rust and Python tests; a Rust test of a table of cases may be a plain function beside it."""
    texts = tracked("crates/*.rs", "tests/*.py").values()
    return [name for text in texts for name in re.findall(r"\b(?:fn|def) (?:test_)?(\w+)\(", text)]


def test_every_edge_case_has_a_test() -> None:
    """By its number, in two digits: edge_07_..., or edge_14_15_... for two."""
    numbered = [re.search(r"(?:^|_)edge((?:_\d\d)+)_", name) for name in named_tests()]
    numbers = {int(number) for match in numbered if match for number in match[1].split("_")[1:]}
    assert numbers == set(range(1, 73))


def test_every_quirk_of_the_corpus_has_a_test() -> None:
    quirks = re.findall(r"^([A-Z]\d+)\b", (shared("corpus") / "QUIRKS.md").read_text(), re.MULTILINE)
    assert len(quirks) > 100
    names = [f"_{name}_" for name in named_tests()]
    assert [quirk for quirk in quirks if not any(f"_{quirk.lower()}_" in name for name in names)] == []


def test_every_model_has_a_line_that_it_fails_without() -> None:
    """`make loom-mutants` takes them away, and sees; about ten minutes, so here only: they are there."""
    mutants = runpy.run_path(str(ROOT / ".ci" / "loom-mutants"))["MUTANTS"]
    core = ROOT / "crates" / "core" / "src"
    lines = {(file, old) for _, file, *changes in mutants for old in changes[::2]}
    assert [(file, old) for file, old in lines if (core / file).read_text().count(old) != 1] == []
    models = "".join(text for text in tracked("crates/core/src/*.rs").values() if "loom::model" in text)
    tested = re.findall(r"fn (\w+)\(\) \{\n +loom::model", models)
    assert set(tested) == {model.rpartition("::")[2] for model, *_ in mutants}


def test_the_package_tells_its_names_and_loads_nothing_for_that(subprocess_python: Callable[..., list[str]]) -> None:
    code = "import sys, turnstream as ts; print(set(ts.__all__) - set(dir(ts)), 'turnstream.asgi' in sys.modules)"
    assert subprocess_python(code) == ["set() False\n"]


def test_all_names_and_their_help_are_there_without_any_extra(subprocess_python: Callable[..., list[str]]) -> None:
    code = """
import pydoc, sys
for missing in ("fastapi", "starlette", "ray", "redis", "typer", "rich", "httpx", "pydantic"):
    sys.modules[missing] = None
from turnstream import *
import turnstream as ts
assert Hub and fold
assert "class Hub" in pydoc.plain(pydoc.render_doc(ts))
print([name for name in ts.__all__ if not name.startswith("__") and not getattr(ts, name).__doc__])
"""
    assert subprocess_python(code) == ["[]\n"]


def test_what_holds_a_promise_is_a_test() -> None:
    """Every name in a column "held by", or its beginning where it ends in dots, is that of a test."""
    texts = tracked("crates/*.rs", "tests/*.py").values()
    names = {
        name for text in texts for name in re.findall(r"\b(?:fn|def) (\w+)\(|^ {4,}(\w+)\(\) \{", text, re.MULTILINE)
    }
    known = {name for pair in names for name in pair if name}
    missing, rows = [], 0
    for page, text in tracked("docs/*.md").items():
        for table in re.findall(r"^\|[^\n]*held by[^\n]*\|\n((?:\|.*\n)+)", text, re.MULTILINE):
            for row in table.splitlines()[1:]:
                rows += 1
                for name, cut in re.findall(r"`(\w+?_\w+)(…?)`", row.rsplit("|", 2)[1]):
                    if not any(test.startswith(name) if cut else test == name for test in known):
                        missing.append(f"{page}: {name}{cut}")
    assert rows > 15
    assert missing == []


def test_a_page_that_names_a_file_names_one_that_is_there() -> None:
    named = re.compile(r"`((?:crates|src|python|tests|docs|benches|examples|provider|session|asgi|state)/[\w./]+)`")
    bases = [ROOT, ROOT / "crates/core/src", ROOT / "crates/core/src/session", ROOT / "python/turnstream"]
    pages = tracked("*.md")
    names = [(page, name) for page, text in pages.items() for name in named.findall(text)]
    assert len(names) > 40
    assert [(page, name) for page, name in names if not any((base / name).exists() for base in bases)] == []


def test_the_map_has_all_of_the_core() -> None:
    map_of_it = (ROOT / "ARCHITECTURE.md").read_text()
    core = ROOT / "crates/core/src"
    parts = {path.name for path in core.iterdir()} - {"lib.rs", "sync.rs"}
    assert [part for part in sorted(parts) if f"`crates/core/src/{part}`" not in map_of_it] == []
    session = {path.name + "/" * path.is_dir() for path in (core / "session").iterdir()}
    session -= {"mod.rs", "models.rs", "error.rs"}
    assert [part for part in sorted(session) if f"`{part}`" not in map_of_it] == []


def test_the_version_stands_in_one_place() -> None:
    import turnstream._native as native

    manifest = (ROOT / "Cargo.toml").read_text()
    assert f'version = "{native.__version__}"' in manifest


@pytest.mark.parametrize("require", ["", "all"], ids=["optional", "required"])
@pytest.mark.parametrize("where", ["", "def test_it():\n    "], ids=["module", "test"])
def test_a_skip_fails_where_all_is_required(tmp_path: Path, where: str, require: str) -> None:
    (tmp_path / "test_skips.py").write_text(f"import conftest\n\n{where}conftest.need_package('no-such-package')\n")
    (tmp_path / "test_passes.py").write_text("def test_it():\n    pass\n")
    (tmp_path / "pytest.ini").write_text("[pytest]\nasyncio_default_fixture_loop_scope = function\n")
    command = [sys.executable, "-m", "pytest", "-p", "conftest", "-p", "no:cacheprovider", "-rs", str(tmp_path)]
    env = {"TURNSTREAM_REQUIRE": require, "PYTHONPATH": str(ROOT / "tests")}
    status, out, _ = run_bounded(command, timeout_s=60, env=env)
    assert "needs the package no-such-package" in out
    assert bool(status) == (require == "all")
