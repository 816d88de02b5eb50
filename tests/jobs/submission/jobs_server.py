"""A small HTTP server with the requests of Ray Jobs, for what a real one cannot be made to do: lose a reply, refuse a
token, hold a job in its queue. ``tests/cluster/test_ray_jobs.py`` meets the real one.
"""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import ray


class JobsServer:
    """Keeps the jobs that it was given and starts none of them.

    Attributes:
        jobs: what is told of each job, by its submission id.
        requests: bodies of all requests to start one, in their order; those whose reply was lost too.
        headers: of every request, by their names in small letters.
        num_lost_replies: so many of the next requests to start a job are done, and the connection then cut.
        num_lost_requests: so many are cut before anything is done.
        fails_to_list: the nodes cannot be told.
        token: that every request has to show; None wants none.
    """

    def __init__(self) -> None:
        self.jobs: dict[str, dict[str, Any]] = {}
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.packages: dict[str, bytes] = {}
        self.num_uploads = 0
        self.num_lost_replies = 0
        self.num_lost_requests = 0
        self.token: str | None = None
        self.logs = ""
        self.nodes: list[dict[str, Any]] = []
        self.fails_to_list = False
        jobs_server = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, format: str, *arguments: Any) -> None:
                pass

            def _answer(self, status: int, document: Any) -> None:
                data = document.encode() if isinstance(document, str) else json.dumps(document).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def _take(self, method: str) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                jobs_server.headers.append({name.lower(): value for name, value in self.headers.items()})
                if jobs_server.token and self.headers.get("Authorization") != f"Bearer {jobs_server.token}":
                    self._answer(403 if "Authorization" in self.headers else 401, "Unauthorized")
                    return
                found = jobs_server.handle(method, self.path.partition("?")[0], body)
                if found is None:
                    self.close_connection = True
                else:
                    self._answer(*found)

            def do_GET(self) -> None:
                self._take("GET")

            def do_PUT(self) -> None:
                self._take("PUT")

            def do_POST(self) -> None:
                self._take("POST")

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def finish(self, submission_id: str, status: str, exit_code: int | None = None, message: str = "") -> None:
        self.jobs[submission_id] |= {"status": status, "driver_exit_code": exit_code, "message": message}

    def handle(self, method: str, path: str, body: bytes) -> tuple[int, Any] | None:
        """Status and document of an answer; None cuts the connection."""
        match method, path.strip("/").split("/"):
            case "GET", ["api", "version"]:
                return 200, {"version": "4", "ray_version": ray.__version__, "ray_commit": "", "session_name": "s"}
            case "GET", ["api", "packages", _, name]:
                return (200, "") if name in self.packages else (404, "no such package")
            case "PUT", ["api", "packages", _, name]:
                self.packages[name] = body
                self.num_uploads += 1
                return 200, ""
            case "POST", ["api", "jobs"]:
                return self._submit(json.loads(body))
            case "GET", ["api", "jobs", name]:
                return (200, self.jobs[name]) if name in self.jobs else (404, f"Job {name} does not exist")
            case "GET", ["api", "jobs", _, "logs"]:
                return 200, {"logs": self.logs}
            case "GET", ["api", "v0", "nodes"] if self.fails_to_list:
                return 500, "Failed to list nodes"
            case "GET", ["api", "v0", "nodes"]:
                found = {"total": len(self.nodes), "num_after_truncation": len(self.nodes), "num_filtered": 0}
                return 200, {"result": True, "msg": "", "data": {"result": {**found, "result": self.nodes}}}
        return 404, f"no such request: {method} {path}"

    def _submit(self, request: dict[str, Any]) -> tuple[int, Any] | None:
        if self.num_lost_requests:
            self.num_lost_requests -= 1
            return None
        self.requests.append(request)
        name = request["submission_id"]
        if name in self.jobs:
            return 500, f"Traceback (most recent call last):\nValueError: Job with submission_id {name} already exists."
        self.jobs[name] = {
            "type": "SUBMISSION",
            "submission_id": name,
            "status": "PENDING",
            "entrypoint": request["entrypoint"],
            "message": "Job has not started yet.",
            "metadata": request.get("metadata"),
            "runtime_env": request.get("runtime_env"),
        }
        if self.num_lost_replies:
            self.num_lost_replies -= 1
            return None
        return 200, {"job_id": name, "submission_id": name}
