"""Serves the page of `basicsr web`, and nothing else, by default to this machine alone."""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # Gradio reads it when it is imported

import gradio as gr  # noqa: E402
import PIL.Image  # noqa: E402
from starlette.middleware import Middleware  # noqa: E402

from iter_arch import shipped  # noqa: E402
from iter_model.commands.shipped import ROOT  # noqa: E402
from iter_model.photo.devices import choose_device  # noqa: E402
from iter_model.web import page  # noqa: E402
from iter_model.web.actions import Actions  # noqa: E402
from iter_model.web.engine import Engine  # noqa: E402
from iter_model.web.files import MAX_BYTES  # noqa: E402
from iter_model.web.visitors import Visitors  # noqa: E402

# Seconds between two looks for old files, and the age at which they are deleted.
DELETE_CACHE = (600, 3600)
Message = MutableMapping[str, Any]
Send = Callable[[Message], Awaitable[None]]


def serve(args: argparse.Namespace) -> None:
    """Load the first model, serve the page, and wait for Ctrl-C. args: the options of `basicsr web`.

    Raises:
        ValueError: an option is wrong.
        OSError: the port is in use, or the weights are missing.
    """
    auth = _name_and_password(args.auth)
    if args.max_pixels < 1:
        raise ValueError(f"--max-pixels={args.max_pixels} must be at least 1")
    if not 1 <= args.port <= 65535:
        raise ValueError(f"--port={args.port} must be from 1 to 65535")
    engine = Engine(args.model or shipped(), choose_device(args.device))
    engine.net(engine.models[0])
    with tempfile.TemporaryDirectory(prefix="iter-web-") as root:
        visitors = Visitors(Path(root))
        demo = build(engine, visitors, args.max_pixels)
        demo.launch(
            server_name=args.host,
            server_port=args.port,
            auth=auth,
            share=args.share,
            **launch_options(visitors),
        )
        print(f"open {demo.local_url} in a browser; Ctrl-C ends it", flush=True)
        demo.block_thread()


def build(engine: Engine, visitors: Visitors, max_pixels: int) -> gr.Blocks:
    """Build the page, whose files lie in the folder of ``visitors``."""
    # Components take over the folder when they are made.
    os.environ["GRADIO_TEMP_DIR"] = os.environ["GRADIO_EXAMPLES_CACHE"] = str(visitors.root)
    # Gradio decodes what the brush sends before we see it; of our own reader this is no limit.
    PIL.Image.MAX_IMAGE_PIXELS = max_pixels
    demo = page.build(Actions(engine, visitors, examples(), max_pixels))
    visitors.keep()
    demo.delete_cache = DELETE_CACHE
    return demo.queue(max_size=32)


def examples() -> list[Path]:
    """The sample photos of the package, if it has any."""
    return sorted((ROOT / "datasets/sample").glob("lq/*.*")) + sorted((ROOT / "datasets/sample").glob("real/*.*"))


def launch_options(visitors: Visitors) -> dict[str, Any]:
    """The arguments of Gradio's `launch` that do not depend on the options."""
    return {
        "allowed_paths": [],
        "app_kwargs": {
            "middleware": [Middleware(Guard, visitors)],
            "docs_url": None,
            "redoc_url": None,
            "openapi_url": None,
        },
        "css": page.CSS,
        "footer_links": [],
        "head": page.HEAD,
        "max_file_size": MAX_BYTES,
        "mcp_server": False,
        "prevent_thread_lock": True,
        "pwa": False,
        "quiet": True,
        "run_history": False,
        "show_error": False,
        "ssr_mode": False,
        "state_session_capacity": 100,
        "theme": page.theme(),
    }


class Guard:
    """Middleware: refuses large requests, uploads for which there is no room, and addresses through which Gradio would
    fetch from elsewhere, and tells the browser to load nothing from elsewhere."""

    HEADERS = {
        b"content-security-policy": b"default-src 'self'; img-src 'self' data: blob:; font-src 'self' data:; "
        b"style-src 'self' 'unsafe-inline'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
        b"worker-src 'self' blob:; connect-src 'self' data: blob:; frame-ancestors 'none'; form-action 'self'",
        b"referrer-policy": b"no-referrer",
        b"x-content-type-options": b"nosniff",
    }
    FETCHES = ("/file=http", "/file/http", "/proxy=")

    # Uploads that are received together: what is on its way is counted when it is there.
    MOST_AT_ONCE = 8

    def __init__(self, app: Callable, visitors: Visitors) -> None:
        self._app, self._visitors, self._receiving = app, visitors, 0

    async def __call__(self, scope: Message, receive: Callable, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        status = self._refusal(scope)
        if status:
            await send({"type": "http.response.start", "status": status, "headers": []})
            return await send({"type": "http.response.body", "body": b""})

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), *self.HEADERS.items()]
            await send(message)

        uploading = scope["method"] == "POST" and scope["path"].endswith("/upload")
        self._receiving += uploading
        try:
            await self._app(scope, receive, send_with_headers)
        finally:
            self._receiving -= uploading

    def _refusal(self, scope: Message) -> int | None:
        if any(part in scope["path"] for part in self.FETCHES):
            return 403
        if scope["method"] in ("POST", "PUT", "PATCH"):
            length = dict(scope["headers"]).get(b"content-length", b"")
            if not length.isdigit():
                return 411
            if int(length) > 1.1 * MAX_BYTES:
                return 413
            if scope["path"].endswith("/upload"):
                if self._receiving >= self.MOST_AT_ONCE:
                    return 503
                if not self._visitors.has_room(int(length)):
                    return 507
        return None


def _name_and_password(auth: str | None) -> tuple[str, str] | None:
    if auth is None:
        return None
    name, colon, password = auth.partition(":")
    if not (name and colon and password):
        raise ValueError("--auth must be USER:PASSWORD, neither empty")
    return name, password
