"""The Vercel AI SDK's WebSocket chat transport: many chats over one socket, each request an answer of numbered chunks.

Owns the socket's life and the frames of `WebSocketChatTransport`. Refuses to know the parts in the chunks: the core
encodes them, as for the transport over HTTP.

Invariants: 1. whatever a client sends is answered under its `requestId`, or closes the socket with a code and a reason;
2. a request's chunks are numbered 0, 1, 2 …, and end with `end` or `error`; 3. a client that leaves or aborts stops
nothing but its stream; 4. the auth hook is asked for the handshake, and again for each chat that a frame names.
"""

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from turnstream._native import FrameReader
from turnstream.asgi.ai_sdk import running_chat, start_chat
from turnstream.asgi.http import ASGIApp, HTTPError, Receive, Request, Scope, Send, parse_object
from turnstream.asgi.route import Route
from turnstream.asgi.streams import Open
from turnstream.asgi.websocket import PACE, Farewell, check_origin, first_of, next_text, part, until_stuck
from turnstream.errors import TurnstreamError

if TYPE_CHECKING:
    from turnstream.asgi.app import App

MAX_REQUESTS = 32
"""How many streams one socket may follow at a time."""

_SENT = ("messages", "trigger", "messageId")
"""What a `send` has of the body that the transport over HTTP posts; `id` besides, and what the application adds."""

log: logging.Logger = logging.getLogger("turnstream")


class ChatSocket:
    """One client's socket, from its handshake to its close. Belongs to the task that serves it."""

    def __init__(self, app: "App", scope: Scope) -> None:
        self._app = app
        self._scope = scope
        self._following: dict[str, asyncio.Task[None]] = {}
        self._sending = asyncio.Lock()
        self._stuck = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._send, self._now = send, asyncio.get_running_loop().time
        farewell: Farewell | None = None
        try:
            await receive()
            with suppress(OSError):  # the client has left (ASGI 2.4)
                await send({"type": "websocket.accept"})
                farewell = await first_of(self._listen(receive), until_stuck(self._stuck))
        finally:
            following = [*self._following.values()]
            for task in following:
                task.cancel()
            await asyncio.gather(*following, return_exceptions=True)
        if farewell is not None:
            await part(farewell, scope, send)

    # in

    async def _listen(self, receive: Receive) -> Farewell | None:
        while isinstance(text := await next_text(receive, self._app.max_body_bytes), str):
            await self._take(text)
            await asyncio.sleep(0)  # see PACE
        return text

    async def _take(self, text: str) -> None:
        request_id = ""  # a client knows none of that name, and takes no notice
        try:
            frame = parse_object(text.encode())
            if not isinstance(frame.get("requestId"), str):
                raise HTTPError(422, "bad_frame", "requestId is a text", parameter="requestId")
            request_id = frame["requestId"]
            if frame.get("type") == "abort":
                if task := self._following.get(request_id):
                    task.cancel()
                return
            if frame.get("type") not in ("send", "resume"):
                raise HTTPError(422, "bad_frame", "type is send, resume or abort", parameter="type")
            if request_id in self._following or len(self._following) >= MAX_REQUESTS:
                why = "requestId is in use" if request_id in self._following else f"at most {MAX_REQUESTS} at a time"
                raise HTTPError(409, "busy", why, parameter="requestId")
        except HTTPError as error:
            try:
                async with asyncio.timeout(self._app.policy.write_timeout_s):
                    await self._say("error", request_id, errorText=str(error))
            except TimeoutError:
                self._app.streams.count_cut(self._scope["path"], "took no refusal in time")
                self._stuck.set()
            return
        task = asyncio.create_task(self._answer(request_id, frame))
        self._following[request_id] = task
        task.add_done_callback(lambda _: self._following.pop(request_id))

    # out

    async def _answer(self, request_id: str, frame: dict[str, Any]) -> None:
        with suppress(OSError):  # the client has left (ASGI 2.4)
            try:
                await self._follow(request_id, frame)
            except (HTTPError, TurnstreamError) as error:
                await self._say("error", request_id, errorText=str(error))
            except OSError:
                raise
            except Exception:
                log.exception("a frame of an AI SDK socket")
                await self._say("error", request_id, errorText="the server failed; its log says how")

    async def _follow(self, request_id: str, frame: dict[str, Any]) -> None:
        app = self._app
        request = Request({**self._scope, "path_params": {}}, _no_body, app.max_body_bytes)
        cursor = None
        if frame["type"] == "send":
            body = frame.get("body") if isinstance(frame.get("body"), dict) else {}
            said = {name: frame[name] for name in _SENT if frame.get(name) is not None}
            session, cursor = await start_chat(app, request, {**(body or {}), "id": frame.get("id"), **said})
        else:
            chat = await app.named(request, frame.get("id"), "id")
            if frame.get("lastSequence") is not None:
                raise HTTPError(422, "bad_frame", "an answer is told from its start: leave lastSequence out")
            app.streams.require_room(chat)
            if (running := await running_chat(app, chat)) is None:
                await self._say("no-active", request_id)
                return
            session = running
            await self._say("start", request_id)
        reader = session.frames(cursor, format="ai-sdk", heartbeat_s=0)
        with app.streams.opened(reader, session, on_stuck=self._stuck.set) as stream:
            number, head = 0, f'{{"type":"chunk","requestId":{json.dumps(request_id)}'
            async for chunk in _chunks(reader):
                if chunk == "[DONE]":
                    await self._say("end", request_id)
                    return
                await self._say_json(f'{head},"sequence":{number},"chunk":{chunk}}}', stream)
                number += 1
                if number % PACE == 0:
                    await asyncio.sleep(0)
        raise HTTPError(503, "cut", "the server has ended the stream before its end")

    async def _say(self, kind: str, request_id: str, **fields: Any) -> None:
        await self._say_json(json.dumps({"type": kind, "requestId": request_id, **fields}, separators=(",", ":")))

    async def _say_json(self, text: str, stream: Open | None = None) -> None:
        async with self._sending:
            if stream is not None:
                stream.sending = self._now()
            try:
                await self._send({"type": "websocket.send", "text": text})
            finally:
                if stream is not None:
                    stream.sending = 0.0


async def _chunks(reader: FrameReader) -> AsyncIterator[str]:
    """The data of each frame; there are no others, as the stream is asked for no heartbeat."""
    async for frames in reader:
        for frame in frames.split(b"\n\n")[:-1]:
            yield frame.removeprefix(b"data: ").decode()


async def _no_body() -> dict[str, Any]:
    raise AssertionError("a frame is whole")


async def ai_sdk_socket(app: "App", request: Request) -> ASGIApp:
    """The socket of `WebSocketChatTransport`; see ChatSocket."""
    check_origin(request.scope, app.origins)
    return ChatSocket(app, request.scope)


ROUTES = (Route("WS", "/ai-sdk/ws", ai_sdk_socket, "WebSocket chat transport of the Vercel AI SDK"),)
