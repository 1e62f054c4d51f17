"""The commands and their arguments; see `turnstream.cli`."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, BinaryIO

import typer

import turnstream as ts

app: typer.Typer = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

READ_BYTES = 64 << 10

File = Annotated[str, typer.Argument(metavar="FILE|-", help="A recorded stream, or - for standard input.")]
Provider = Annotated[str, typer.Option(metavar="P|auto", help="The wire format; auto looks at the first bytes.")]
Split = Annotated[int, typer.Option(min=0, metavar="N", help="Feed N bytes at a time; the output does not change.")]
Strict = Annotated[bool, typer.Option(help="What the format does not allow is an error, not a warning.")]
TextTools = Annotated[bool, typer.Option(help="Tool calls that the model wrote into its text are calls.")]
Host = Annotated[str, typer.Option(help="The address to listen on.")]
Port = Annotated[int, typer.Option(min=0, max=65535, help="The port to listen on; 0 takes a free one.")]


def _print_version(wanted: bool) -> None:
    if wanted:
        print(ts.__version__)
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """The event stream between an agent and the people watching it."""


@app.command()
def fold(
    file: File, provider: Provider = "auto", split: Split = 0, strict: Strict = False, text_tools: TextTools = False
) -> None:
    """Print what a recorded stream amounts to, as one JSON object.

    Exits 0 also for a stream that carries an error of its own; 1 for bytes that are no stream.
    """
    with _one_line_errors():
        with _opened(file) as source:
            data = source.read()
        print(ts._native.fold_json(data, provider, split=split, strict=strict, text_tools=text_tools))


@app.command()
def events(
    file: File, provider: Provider = "auto", split: Split = 0, strict: Strict = False, text_tools: TextTools = False
) -> None:
    """Print the events of a stream as NDJSON, each as soon as its bytes have come."""
    with _one_line_errors():
        normalizer = ts.Normalizer(provider, strict=strict, text_tools=text_tools)
        with _opened(file) as source:
            for piece in _pieces(source, split):
                _print_events(normalizer.feed(piece))
        _print_events(normalizer.finish())


@app.command()
def watch(  # noqa: PLR0917 — typer reads options off the signature
    url: Annotated[str, typer.Argument(metavar="URL", help="A session: http://host/prefix/sessions/ID")],
    after: Annotated[str | None, typer.Option(metavar="CURSOR", help="Begin after this cursor.")] = None,
    follow: Annotated[str, typer.Option(metavar="turn|session|none", help="How far to follow.")] = "turn",
    header: Annotated[
        list[str] | None, typer.Option(metavar="NAME:VALUE", help="A header to send; may repeat.")
    ] = None,
    give_up_s: Annotated[float, typer.Option(min=0, help="Stop after so long without a connection.")] = 60.0,
    plain: Annotated[bool, typer.Option(help="Lines instead of a live display.")] = False,
) -> None:
    """Follow a session in the terminal, through lost connections, until its turn ends. Ctrl-C leaves it running."""
    with _one_line_errors():
        runner = _need("turnstream.cli.watch")
        plain = plain or not sys.stdout.isatty()
        status = runner.run(
            url, after=after, follow=follow, headers=_headers(header or []), give_up_s=give_up_s, plain=plain
        )
        raise typer.Exit(status)


@app.command()
def demo(  # noqa: PLR0917 — as above
    host: Host = "127.0.0.1",
    port: Port = 8000,
    replay: Annotated[Path | None, typer.Option(metavar="FILE", help="Play this recorded stream.")] = None,
    base_url: Annotated[
        str | None, typer.Option(metavar="URL", help="Ask this model server; the key from the environment.")
    ] = None,
    model: Annotated[str | None, typer.Option(metavar="M", help="The model to ask.")] = None,
    provider: Annotated[str | None, typer.Option(metavar="P", help="The wire format, where it is not plain.")] = None,
    pace: Annotated[
        float | None, typer.Option(min=0, metavar="X", help="Play at X times the natural pace; 0 is at once.")
    ] = None,
) -> None:
    """Serve the demo: a small agent at work, in a browser tab."""
    with _one_line_errors():
        runner = _need("turnstream.demo")
        try:
            runner.run(
                host=host, port=port, replay=replay, base_url=base_url, model=model, provider=provider, pace=pace
            )
        except ValueError as error:  # options that do not go together
            raise Complaint(str(error)) from None


@app.command()
def serve(
    target: Annotated[str, typer.Argument(metavar="APP:HUB", help="A module and the name of its hub: myapp.main:hub")],
    host: Host = "127.0.0.1",
    port: Port = 8000,
    workers: Annotated[int, typer.Option(min=1, metavar="N", help="Processes that serve; the hub needs a store.")] = 1,
) -> None:
    """Serve a hub: its sessions' event streams, statuses and messages."""
    with _one_line_errors():
        hub = _load(target)
        if workers > 1 and hub.store == "memory":
            raise Complaint(f"{target}: a hub in memory lives in one process; several need a store")
        uvicorn, asgi = _need("uvicorn"), _need("turnstream.asgi")
        options: dict[str, Any] = {"host": host, "port": port, "log_level": "info", "timeout_graceful_shutdown": 3}
        if workers == 1:
            uvicorn.run(asgi.app(hub), **options)
            return
        os.environ[_SERVED] = target  # each worker loads it anew: a hub does not outlive a fork
        uvicorn.run("turnstream.cli.app:served", factory=True, workers=workers, **options)


_SERVED = "TURNSTREAM_SERVED"


def served() -> Any:
    """What each worker of `serve` serves."""
    return _need("turnstream.asgi").app(_load(os.environ[_SERVED]))


# --- what the commands share -----------------------------------------------------------------------------------------


class Complaint(Exception):
    """What the command line says of itself, in one line."""


@contextmanager
def _one_line_errors() -> Iterator[None]:
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        # Whoever read this has enough (`| head`). The interpreter's own flush at exit must not complain either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(0) from None
    except (ts.TurnstreamError, Complaint, OSError) as error:
        text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
        print(f"turnstream: {' '.join(text.split())}", file=sys.stderr)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    except SystemExit as stop:  # uvicorn, which has said why: 3 for an address that is taken
        raise typer.Exit(1 if stop.code else 0) from None


@contextmanager
def _opened(file: str) -> Iterator[BinaryIO]:
    if file == "-":
        yield sys.stdin.buffer
    else:
        with open(file, "rb") as opened:
            yield opened


def _pieces(source: Any, split: int) -> Iterator[bytes]:
    """What has come, without waiting for more than that: `curl -N … | turnstream events -` prints as it streams."""
    while piece := source.read1(READ_BYTES):
        yield from (piece[at : at + split] for at in range(0, len(piece), split)) if split else (piece,)


def _print_events(events: list[ts.Event]) -> None:
    if events:
        print("\n".join(event.json() for event in events), flush=True)


def _headers(given: list[str]) -> dict[str, str]:
    headers = {}
    for one in given:
        name, colon, value = one.partition(":")
        if not colon or not name.strip():
            raise Complaint("--header: expected NAME:VALUE")
        headers[name.strip()] = value.strip()
    return headers


def _need(module: str) -> Any:
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("turnstream"):
            raise
        raise Complaint(f"this command needs {error.name}: pip install 'turnstream[cli]'") from None


def _load(target: str) -> Any:
    module, colon, name = target.partition(":")
    if not colon or not module or not name:
        raise Complaint(f"{target!r}: expected APP:HUB, as in myapp.main:hub")
    sys.path.insert(0, os.getcwd())
    try:
        found: Any = import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except (ModuleNotFoundError, AttributeError) as error:
        raise Complaint(f"{target}: {error}") from None
    if not isinstance(found, ts.Hub):
        raise Complaint(f"{target}: expected a turnstream.Hub, found {type(found).__name__}")
    return found
