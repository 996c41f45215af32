"""A Weights & Biases server on the loopback: just enough of it for the real client to be content.

It answers the GraphQL queries by the names of their operations, keeps every line of a run's files
where the client says it belongs, and takes uploads. It can be away, broken, or never answer.
"""

from __future__ import annotations

import contextlib
import json
import re
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal

KEY = "0123456789" * 4  # any 40 hex digits
ENTITY = "tester"


@dataclass
class Run:
    """What the server holds of one run."""

    project: str
    config: dict[str, Any] = field(default_factory=dict)
    files: dict[str, dict[int, str]] = field(default_factory=dict)  # file, offset: line
    complete: bool = False
    exit_code: int | None = None
    starts: int = 0  # clients that opened it

    def lines(self, name: str) -> list[dict[str, Any]]:
        found = self.files.get(name, {})
        return [json.loads(found[offset]) for offset in sorted(found)]

    @property
    def history(self) -> list[dict[str, Any]]:
        """Its rows, without what the client adds of its own."""
        rows = self.lines("wandb-history.jsonl")
        return [{k: v for k, v in row.items() if k[0] != "_"} for row in rows]

    @property
    def summary(self) -> dict[str, Any]:
        lines = self.lines("wandb-summary.json")
        return lines[-1] if lines else {}


class Server:
    """Use as a context manager; `port` stays the same when it goes away and comes back."""

    def __init__(self) -> None:
        self.runs: dict[str, Run] = {}
        self.artifacts: list[dict[str, Any]] = []  # committed ones, with their files' sizes
        self.uploads: dict[str, int] = {}  # path: bytes
        self.strange: set[str] = set()  # operations with no answer here
        # Broken: status 503; strange: it does not know the key (401); forbidding: rows are refused
        # (403); silent: no answer, ever.
        self.mood: Literal["good", "broken", "strange", "forbidding", "silent"] = "good"
        self.lock = threading.Lock()
        self._pending: dict[str, dict[str, Any]] = {}
        self._http: _Loopback | None = None
        self.port = 0

    def __enter__(self) -> Server:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def environment(self, hurry: bool = True) -> dict[str, str]:
        """What makes the client talk to this server, and to nobody else, without long waits."""
        waits = {
            f"WANDB_X_{what}_RETRY_WAIT_{limit}_SECONDS": "1"  # instead of up to a minute
            for what in ("FILE_STREAM", "FILE_TRANSFER", "GRAPHQL")
            for limit in ("MIN", "MAX")
        }
        waits["WANDB_X_FILE_STREAM_TRANSMIT_INTERVAL"] = "1"  # s, instead of 15
        return {
            "WANDB_BASE_URL": self.url,
            "WANDB_API_KEY": KEY,
            "WANDB_ERROR_REPORTING": "false",
            **(waits if hurry else {}),
        }

    def start(self) -> None:
        """Goes on where it was."""
        if self._http is not None:
            return
        server = self

        class Handler(_Handler):
            owner = server

        self._http = _Loopback(("127.0.0.1", self.port), Handler)
        self.port = self._http.server_address[1]
        threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True).start()

    def stop(self) -> None:
        """Connections are refused from now on, and open ones cut."""
        if self._http is not None:
            self._http.shutdown()
            self._http.server_close()
            self._http.cut()
            self._http = None

    def wait_for(self, run_id: str, state: Callable[[Run], bool], seconds: float = 30) -> Run:
        """Returns the run when it is in that state."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            run = self.runs.get(run_id)
            if run and state(run):
                return run
            time.sleep(0.05)
        raise AssertionError(f"{run_id} is {self.runs.get(run_id)}")

    def rows(self, run_id: str) -> int:
        """How many it has of a run."""
        return len(self.runs[run_id].history) if run_id in self.runs else 0

    def answer(self, operation: str, v: dict[str, Any]) -> dict[str, Any]:
        """The data of one GraphQL operation with variables `v`."""
        found = getattr(self, f"_{_snake(operation)}", None)
        if found is None:
            self.strange.add(operation)
            return {}
        return found(v)

    def stream(self, run_id: str, body: dict[str, Any]) -> None:
        """Lines of a run's files, each at its offset."""
        run = self.runs[run_id]
        for name, part in body.get("files", {}).items():
            lines = run.files.setdefault(name, {})
            for i, line in enumerate(part["content"]):
                lines[part["offset"] + i] = line
        if body.get("complete"):
            run.complete, run.exit_code = True, body.get("exitcode")

    def _viewer(self, v: dict[str, Any]) -> dict[str, Any]:
        teams = {"edges": [{"node": {"name": ENTITY}}]}
        who = {"id": "u1", "entity": ENTITY, "username": ENTITY, "email": "", "flags": "{}"}
        return {"viewer": {**who, "teams": teams, "admin": False, "apiKeys": {"edges": []}}}

    def _server_features_query(self, v: dict[str, Any]) -> dict[str, Any]:
        return {"serverInfo": {"features": []}}

    def _server_info(self, v: dict[str, Any]) -> dict[str, Any]:
        return {"serverInfo": {"cliVersionInfo": {}, "latestLocalVersionInfo": None}}

    def _run_resume_status(self, v: dict[str, Any]) -> dict[str, Any]:
        run = self.runs.get(v["name"])
        if run is None:
            return {"model": None}
        history, events = run.lines("wandb-history.jsonl"), run.lines("wandb-events.jsonl")
        bucket = {
            "id": v["name"],
            "name": v["name"],
            "displayName": v["name"],
            "summaryMetrics": json.dumps(run.summary),
            "logLineCount": len(run.files.get("output.log", {})),
            "historyLineCount": len(history),
            "eventsLineCount": len(events),
            "historyTail": json.dumps([json.dumps(row) for row in history[-1:]]),
            "eventsTail": json.dumps([json.dumps(row) for row in events[-1:]]),
            "config": json.dumps(run.config),
            "tags": [],
            "notes": None,
            "wandbConfig": json.dumps({"t": 1}),
        }
        return {"model": {**_project(run.project), "bucket": bucket}}

    def _upsert_bucket(self, v: dict[str, Any]) -> dict[str, Any]:
        name = v.get("name") or v["id"]
        inserted = name not in self.runs
        run = self.runs.setdefault(name, Run(v.get("project") or "uncategorized"))
        if v.get("config"):
            run.config |= json.loads(v["config"])
        run.starts += v.get("name") is not None
        bucket = {
            "id": name,
            "name": name,
            "displayName": name,
            "description": None,
            "config": json.dumps(run.config),
            "sweepName": None,
            "project": _project(run.project),
            "historyLineCount": len(run.history),
        }
        return {"upsertBucket": {"bucket": bucket, "inserted": inserted}}

    def _create_run_files(self, v: dict[str, Any]) -> dict[str, Any]:
        files = [{"name": f, "uploadUrl": self._place(f"{v['run']}/{f}")} for f in v["files"]]
        return {"createRunFiles": {"runID": v["run"], "uploadHeaders": [], "files": files}}

    def _mark_run_files_uploaded(self, v: dict[str, Any]) -> dict[str, Any]:
        return {"markRunFilesUploaded": {"success": True}}

    def _place(self, path: str) -> str:
        return f"{self.url}/storage/{path}"

    def _create_artifact(self, v: dict[str, Any]) -> dict[str, Any]:
        wanted = v["input"]
        same = [a for a in self.artifacts if a["digest"] == wanted["digest"]]
        made = same[0] if same else {**wanted, "id": f"a{len(self._pending)}", "files": {}}
        self._pending[made["id"]] = made
        made["aliases"] = [alias["alias"] for alias in wanted.get("aliases") or []]
        artifact = {"id": made["id"], "state": "COMMITTED" if same else "PENDING"}
        return {"createArtifact": {"artifact": {**artifact, "artifactSequence": _LATEST}}}

    def _create_artifact_manifest(self, v: dict[str, Any]) -> dict[str, Any]:
        return {"createArtifactManifest": {"artifactManifest": self._manifest(v["artifactID"])}}

    def _update_artifact_manifest(self, v: dict[str, Any]) -> dict[str, Any]:
        return {
            "updateArtifactManifest": {"artifactManifest": self._manifest(v["artifactManifestID"])}
        }

    def _manifest(self, artifact: str) -> dict[str, Any]:
        place = self._place(f"manifests/{artifact}")
        return {"id": artifact, "file": {"id": "f", "uploadUrl": place, "uploadHeaders": []}}

    def _create_artifact_files(self, v: dict[str, Any]) -> dict[str, Any]:
        edges = []
        for spec in v["input"]["artifactFiles"]:
            path = f"artifacts/{spec['artifactID']}/{spec['name']}"
            self._pending[spec["artifactID"]]["files"][spec["name"]] = path
            node = {"storagePath": path, "uploadUrl": self._place(path), "uploadHeaders": []}
            node |= {"uploadMultipartUrls": None, "artifact": {"id": spec["artifactID"]}}
            edges.append({"node": node})
        return {"createArtifactFiles": {"files": {"edges": edges}}}

    def _commit_artifact(self, v: dict[str, Any]) -> dict[str, Any]:
        made = self._pending[v["artifactID"]]
        if made not in self.artifacts:
            self.artifacts.append(made)
        return {"commitArtifact": {"artifact": {"id": made["id"], "digest": made["digest"]}}}

    def _artifact_by_id(self, v: dict[str, Any]) -> dict[str, Any]:
        made = self._pending[v["id"]]
        sequence = {"__typename": "ArtifactSequence", "name": made["artifactCollectionName"]}
        nothing = dict.fromkeys(
            ("versionIndex", "description", "metadata", "historyStep", "commitHash", "updatedAt")
        )
        numbers = {"ttlDurationSeconds": -1, "size": 0, "fileCount": len(made["files"])}
        return {
            "artifact": {
                "__typename": "Artifact",
                "id": made["id"],
                "artifactSequence": {**sequence, "project": None},
                "artifactType": {"name": made["artifactTypeName"]},
                "ttlIsInherited": True,
                "tags": [],
                "state": "COMMITTED",
                "digest": made["digest"],
                "createdAt": "2026-01-01T00:00:00",
                "aliases": [],
                **nothing,
                **numbers,
            }
        }

    def _xxhash_digests_enabled(self, v: dict[str, Any]) -> dict[str, Any]:
        return {"entity": {"xxhashDigestsEnabled": False}}

    def _artifact_type(self, v: dict[str, Any]) -> dict[str, Any]:
        return {"project": None}

    def _fetch_artifact_digest_algorithm(self, v: dict[str, Any]) -> dict[str, Any]:
        return {"project": None}


_LATEST = {"latestArtifact": None}


class _Loopback(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, *args: Any) -> None:
        self._open: set[socket.socket] = set()
        super().__init__(*args)

    def process_request(self, request: Any, client_address: Any) -> None:
        self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._open.discard(request)
        super().shutdown_request(request)

    def cut(self) -> None:
        """Ends every connection, also those that clients keep for their next request."""
        for request in list(self._open):
            with contextlib.suppress(OSError):
                request.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is part of the tests."""


class _Handler(BaseHTTPRequestHandler):
    owner: Server
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self._reply({})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if not self._well():
            return
        with self.owner.lock:
            self._reply(self._answer(json.loads(body or b"{}")))

    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if not self._well():
            return
        with self.owner.lock:
            self.owner.uploads[self.path.removeprefix("/storage/")] = len(body)
        self._reply({})

    def _answer(self, body: dict[str, Any]) -> dict[str, Any]:
        if streamed := re.fullmatch(r"/files/[^/]+/[^/]+/([^/]+)/file_stream", self.path):
            self.owner.stream(streamed[1], body)
            return {"exitcode": None, "limits": {}}
        operation = re.search(r"(?:query|mutation)\s+(\w+)", body.get("query", ""))
        variables = body.get("variables") or {}
        return {"data": self.owner.answer(operation[1] if operation else "", variables)}

    def _well(self) -> bool:
        """Whether to go on; otherwise the answer is given, or will never be."""
        mood = self.owner.mood
        rows = self.path.endswith("file_stream")
        status = {"broken": 503, "strange": 401, "forbidding": 403 if rows else None}.get(mood)
        if status:
            self._reply({"errors": [{"message": f"{mood} today"}]}, status)
        elif mood == "silent":
            time.sleep(600)
        return mood == "good" or (mood == "forbidding" and not rows)

    def _reply(self, answer: dict[str, Any], status: int = 200) -> None:
        text = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)


def _project(name: str) -> dict[str, Any]:
    return {"id": name, "name": name, "entity": {"id": ENTITY, "name": ENTITY}}


def _snake(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()
