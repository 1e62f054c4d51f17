"""litellm's contender, for an environment of its own: its pinned dependencies disagree with the newest SDKs'.

`python -m benches.litellm_side FILE CHUNKS`: FILE holds a JSON list of the stream's pieces. For every line on standard
input it reads the stream once through `litellm.completion(stream=True)` and answers `{"cost": µs of CPU per chunk}`.
"""

from __future__ import annotations

import importlib
import json
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benches.harness import timed

# By name, since another environment's type checker does not know these versions.
httpx: Any = importlib.import_module("httpx")
litellm: Any = importlib.import_module("litellm")
openai: Any = importlib.import_module("openai")


def main(file: str, chunks: int) -> None:
    pieces = [piece.encode("latin-1") for piece in json.loads(Path(file).read_bytes())]

    def respond(_: Any) -> Any:
        return httpx.Response(200, headers={"content-type": "text/event-stream"}, content=iter(pieces))

    client = openai.OpenAI(api_key="-", http_client=httpx.Client(transport=httpx.MockTransport(respond)))
    ask = [{"role": "user", "content": "Go on."}]

    def read() -> str:
        stream = litellm.completion(model="openai/gpt-4o", messages=ask, stream=True, client=client)
        return "".join(chunk.choices[0].delta.content or "" for chunk in stream)

    print(json.dumps({"version": version("litellm"), "characters": len(read())}), flush=True)
    for _ in sys.stdin:
        print(json.dumps({"cost": timed(read, chunks)}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
