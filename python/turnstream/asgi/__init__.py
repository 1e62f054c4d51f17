"""Sessions over HTTP as plain ASGI: one event stream as a response, and a whole application.

`http` reads requests and says errors, `stream` is one event stream, `streams` all that are open, `policy` what they
may, `app` the application; `sessions`, `poll` and `websocket` are its routes.

    app = turnstream.asgi.app(hub, agent=agent)                        # uvicorn module:app
    await turnstream.asgi.EventStream(session)(scope, receive, send)   # one stream, in an application of your own
"""

from turnstream._run import Agent
from turnstream.asgi.app import MAX_BODY_BYTES, ROUTES, SOCKETS, App, Auth, app
from turnstream.asgi.http import HTTPError, Scope
from turnstream.asgi.policy import Policy
from turnstream.asgi.route import Route
from turnstream.asgi.stream import EventStream, StreamQuery

__all__ = [
    "MAX_BODY_BYTES",
    "ROUTES",
    "SOCKETS",
    "Agent",
    "App",
    "Auth",
    "EventStream",
    "HTTPError",
    "Policy",
    "Route",
    "Scope",
    "StreamQuery",
    "app",
]
