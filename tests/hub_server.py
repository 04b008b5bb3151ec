"""A hub on this machine: as much of Hugging Face's as huggingface_hub needs to push small files and fetch them."""

import base64
import hashlib
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "0" * 40


class _Hub(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def reply(self, content, status=200, **headers):
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in ({"Content-Length": len(body)} | headers).items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_GET(self):
        repo, _, file = self.path.lstrip("/").partition("/resolve/")
        content = self.server.files.get((repo, file.partition("/")[2].partition("?")[0]))
        if content is None:
            self.reply(b"", 404, X_Error_Code="EntryNotFound", X_Repo_Commit=COMMIT)
        else:
            self.reply(content, ETag=f'"{hashlib.sha1(content).hexdigest()}"', X_Repo_Commit=COMMIT)

    do_HEAD = do_GET

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.path.endswith("/preupload/main"):
            files = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                for file in json.loads(body)["files"]
            ]
            self.reply({"files": files})
        elif "/commit/" in self.path:
            repo = self.path.removeprefix("/api/models/").partition("/commit/")[0]
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.server.files[repo, line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            self.reply({"commitUrl": f"{self.server.url}/{repo}/commit/{COMMIT}", "commitOid": COMMIT})
        elif self.path == "/api/repos/create":
            words = json.loads(body)
            owner = words.get("organization") or "me"
            self.reply({"url": f"{self.server.url}/{owner}/{words['name']}", "id": f"{owner}/{words['name']}"})
        else:
            self.reply({})


@contextmanager
def local_hub():
    """Yields the server, with `url` and `files` {(repo, file): bytes}."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Hub)
    server.url, server.files = f"http://127.0.0.1:{server.server_port}", {}
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
