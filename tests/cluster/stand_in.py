"""Stands in for Ray's head and for the S3 server: listens where it is told to, and knows of a student that failed.

python tests/cluster/stand_in.py start --head --port=N --dashboard-port=N ...   or   ... -H HOST -p N
"""

import json
import re
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

REASON = "raydistill.core.errors.NotFoundError: model: /gone is no folder here"
APPLICATION = {
    "status": "DEPLOY_FAILED",
    "message": f"Deploying app 'student' failed with exception:\nTraceback\n{REASON}\n",
    "deployments": {},
}


class Answers(BaseHTTPRequestHandler):
    """Serve's part of a dashboard, for those who have a token, and a store that takes every bucket."""

    def do_GET(self):
        known = self.path == "/api/serve/applications/" and self.headers.get("Authorization", "").startswith("Bearer ")
        self._answer(200 if known else 503, json.dumps({"applications": {"student": APPLICATION}}).encode())

    def do_PUT(self):
        self._answer(200, b"")

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format, *args):
        """Say nothing."""


if __name__ == "__main__":
    servers = [
        ThreadingHTTPServer(("127.0.0.1", int(port)), Answers)
        for port in re.findall(r"(?:--port=|--dashboard-port=|-p )(\d+)", " ".join(sys.argv))
    ]
    for server in servers:
        threading.Thread(target=server.serve_forever).start()
