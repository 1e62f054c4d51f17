"""Takes docs/demo.png: the demo's own page after a whole run of its own agent, 1280 by 900, in headless Chromium.

python docs/screenshot.py [--scheme dark] [--out FILE]
"""

import argparse
import shutil
import socket
import threading
from pathlib import Path

import uvicorn
from playwright.sync_api import sync_playwright

from turnstream import Turn, demo

EARLIER = (
    "Write something that counts what people really see: 👩‍🚀 is one",
    "Measure a haiku: 古池や 蛙飛び込む 水の音",
)
PROMPT = "How long does “静かな朝、a quiet morning ☕️” take to read?"


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--scheme", choices=["light", "dark"], default="light")
    arguments.add_argument("--out", type=Path, default=Path(__file__).with_name("demo.png"))
    arguments.add_argument("--pace", type=float, default=1.0)
    chosen = arguments.parse_args()

    natural, quick = demo.recorded_agent(chosen.pace), demo.recorded_agent(pace=0)

    async def agent(turn: Turn) -> None:
        await (natural if turn.input == PROMPT else quick)(turn)

    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(demo.create_app(agent), log_level="warning", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    try:
        with sync_playwright() as playwright:
            program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
            browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-gpu"])
            page = browser.new_page(viewport={"width": 1280, "height": 900}, color_scheme=chosen.scheme)
            page.goto(f"http://127.0.0.1:{listener.getsockname()[1]}/")
            for prompt in (*EARLIER, PROMPT):
                page.click("#new")
                page.fill("#prompt", prompt)
                page.keyboard.press("Enter")
                page.wait_for_selector(".over:not([hidden])", timeout=120_000)
            page.locator(".over").scroll_into_view_if_needed()
            page.mouse.move(600, 40)
            page.wait_for_timeout(1500)  # animations come to rest, the list of sessions is asked once more
            page.screenshot(path=chosen.out)
            browser.close()
    finally:
        server.should_exit = True
        thread.join()


if __name__ == "__main__":
    main()
