"""A W&B server's stand-in on the loopback, standard library only: enough GraphQL and file endpoints for the real client
to run online, log a table, and save a report. It keeps what it received: the client hides failures, so tests ask it.
"""

from __future__ import annotations

import base64
import json
import re
import sys
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

API_KEY = "0123456789abcdef0123456789abcdef01234567"
ENTITY = "standin"


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that goes away mid-connection is no event; anything else is kept for the tests to see."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


class StandIn:
    """Start with `with StandIn() as server:`; afterwards read what it received.

    Attributes:
        operations: names of GraphQL operations in order.
        runs: run name -> {"display", "project", "group", "config", "history": [row, ...], "exit": code or None}.
        files: upload path -> bytes.
        views: report specs saved, newest last.
        fault: what is wrong with it from now on: "hang" (no answer while the server lives), 500, 401; None for nothing.
    """

    def __init__(self, fault: str | int | None = None) -> None:
        self.fault = fault
        self._over = threading.Event()
        self.operations: list[str] = []
        self.unknown: list[dict[str, Any]] = []
        self.runs: dict[str, dict[str, Any]] = {}
        self.files: dict[str, bytes] = {}
        self.views: list[dict[str, Any]] = []
        self.alerts: list[dict[str, Any]] = []
        self._server = _Server(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> StandIn:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._server.shutdown()
        self._server.server_close()

    def environment(self) -> dict[str, str]:
        """What points a fresh process's wandb here; a process that has used wandb before keeps its first server."""
        return {
            "WANDB_BASE_URL": self.url,
            "WANDB_API_KEY": API_KEY,
            "WANDB_ERROR_REPORTING": "false",
            "WANDB_SILENT": "true",
        }

    def answer(self, query: str, variables: dict[str, Any]) -> dict[str, Any]:
        match = re.search(r"(query|mutation)\s+(\w+)", query)
        name = match.group(2) if match else "anonymous"
        self.operations.append(name)
        method: Callable[..., dict[str, Any]] | None = getattr(self, f"on_{name}", None)
        if method is None:
            self.unknown.append({"name": name, "query": query, "variables": variables})
            return {}
        return method({**variables, **(variables.get("input") or {})}, query)

    def _run_node(self, name: str, variables: dict[str, Any]) -> dict[str, Any]:
        run = self.runs[name]
        project = {"id": "UHJvamVjdA==", "name": run["project"], "entity": {"id": "RW50aXR5", "name": ENTITY}}
        return {
            "id": base64.b64encode(f"Run:{name}".encode()).decode(), "name": name, "displayName": run["display"],
            "project": project, "historyLineCount": 0, "config": variables.get("config"), "sweepName": None,
        }  # fmt: skip

    def on_Viewer(self, variables: dict[str, Any], query: str) -> dict[str, Any]:
        return {
            "viewer": {
                "id": "VXNlcg==", "entity": ENTITY, "username": ENTITY, "name": ENTITY, "flags": "{}", "email": "",
                "admin": False, "teams": {"edges": []}, "apiKeys": {"edges": []},
            }
        }  # fmt: skip

    def on_UpsertBucket(self, variables: dict[str, Any], query: str) -> dict[str, Any]:
        name = variables["name"]
        run = self.runs.setdefault(
            name, {"display": None, "project": None, "group": None, "config": {}, "history": [], "exit": None}
        )
        run["display"] = variables.get("displayName") or run["display"]
        run["project"] = variables.get("project") or run["project"]
        run["group"] = variables.get("groupName") or run["group"]
        run["job_type"] = variables.get("jobType") or run.get("job_type")
        if variables.get("config"):
            run["config"] = json.loads(variables["config"])
        return {"upsertBucket": {"bucket": self._run_node(name, variables), "inserted": True}}

    def on_RunResumeStatus(self, variables: dict[str, Any], query: str) -> dict[str, Any]:
        name = variables["name"]
        if name not in self.runs:
            return {"model": None}
        run = self.runs[name]
        bucket = {
            "name": name, "summaryMetrics": "{}", "displayName": run["display"], "logLineCount": 0,
            "historyLineCount": len(run["history"]), "eventsLineCount": 0, "historyTail": "[]", "eventsTail": "[]",
            "config": json.dumps(run["config"]), "tags": [], "wandbConfig": "{}",
        }  # fmt: skip
        return {"model": {"id": "m", "name": run["project"], "entity": {"id": "e", "name": ENTITY}, "bucket": bucket}}

    def on_NotifyScriptableRunAlert(self, variables: dict[str, Any], query: str) -> dict[str, Any]:
        self.alerts.append(variables)
        return {"notifyScriptableRunAlert": {"success": True}}

    def on_ServerFeaturesQuery(self, variables: dict[str, Any], query: str) -> dict[str, Any]:
        return {"serverInfo": {"features": []}}

    def on_ArtifactType(self, variables: dict[str, Any], query: str) -> dict[str, Any]:
        return {"project": {"artifact": {"artifactType": {"name": "run_table"}}}}

    def on_CreateArtifact(self, variables: dict[str, Any], query: str) -> dict[str, Any]:
        artifact = {
            "id": "QXJ0aWZhY3Q=",
            "digest": "d",
            "state": "PENDING",
            "artifactSequence": {"id": "s", "latestArtifact": None},
        }
        return {"createArtifact": {"artifact": artifact}}

    def on_CreateArtifactManifest(self, variables: dict[str, Any], query: str) -> dict[str, Any]:
        file = {
            "id": "f",
            "name": "wandb_manifest.json",
            "displayName": "m",
            "uploadUrl": f"{self.url}/put/manifest",
            "uploadHeaders": [],
        }
        return {"createArtifactManifest": {"artifactManifest": {"id": "TWFuaWZlc3Q=", "file": file}}}

    def on_CreateArtifactFiles(self, variables: dict[str, Any], query: str) -> dict[str, Any]:
        edges = []
        for spec in variables.get("artifactFiles") or []:
            artifact = {"id": spec.get("artifactID", "a"), "name": "n", "state": "PENDING"}
            edges.append(
                {"node": {
                    "id": "f", "name": spec["name"], "displayName": spec["name"], "artifact": artifact,
                    "uploadUrl": f"{self.url}/put/artifact/{spec['name']}", "uploadHeaders": [],
                    "storagePath": f"artifact/{spec['name']}", "uploadMultipartUrls": None,
                }}
            )  # fmt: skip
        return {"createArtifactFiles": {"files": {"edges": edges}}}

    def on_CommitArtifact(self, variables: dict[str, Any], query: str) -> dict[str, Any]:
        return {"commitArtifact": {"artifact": {"id": "QXJ0aWZhY3Q=", "digest": "d"}}}

    def on_CreateRunFiles(self, variables: dict[str, Any], query: str) -> dict[str, Any]:
        files = [{"name": f, "uploadUrl": f"{self.url}/put/files/{f}"} for f in variables.get("files") or []]
        return {"createRunFiles": {"runID": "r", "uploadHeaders": [], "files": files}}

    def on_ProjectInternalId(self, variables: dict[str, Any], query: str) -> dict[str, Any]:
        return {"project": {"internalId": "UHJvamVjdEludGVybmFsSWQ6MQ=="}}

    def on_GetProjects(self, variables: dict[str, Any], query: str) -> dict[str, Any]:
        return {"models": {"edges": [], "pageInfo": {"endCursor": None, "hasNextPage": False}}}

    def on_CreateProject(self, variables: dict[str, Any], query: str) -> dict[str, Any]:
        project = {
            "id": "UHJvamVjdA==",
            "name": variables.get("name"),
            "entityName": ENTITY,
            "description": "",
            "access": "",
            "views": "{}",
        }
        return {"upsertModel": {"project": project, "model": project, "inserted": True}}

    def on_upsertView(self, variables: dict[str, Any], query: str) -> dict[str, Any]:
        self.views.append({**variables, "spec": json.loads(variables["spec"])})
        view = {
            "id": "Vmlldw==",
            "name": variables.get("name"),
            "type": variables.get("type"),
            "displayName": variables.get("displayName"),
            "description": variables.get("description"),
            "project": {"id": "p", "name": variables.get("projectName"), "entityName": ENTITY},
            "spec": variables["spec"],
            "updatedAt": "2026-01-01T00:00:00",
            "createdAt": "2026-01-01T00:00:00",
        }
        return {"upsertView": {"view": view, "inserted": True}}

    def stream(self, run: str, body: dict[str, Any]) -> None:
        """A file_stream post: history rows and the exit code."""
        known = self.runs.setdefault(run, {"history": [], "exit": None})
        history = (body.get("files") or {}).get("wandb-history.jsonl") or {}
        known["history"] += [json.loads(line) for line in history.get("content") or []]
        for line in ((body.get("files") or {}).get("wandb-summary.json") or {}).get("content") or []:
            known["summary"] = json.loads(line)
        if body.get("complete"):
            known["exit"] = body.get("exitcode")

    def _handler(outer) -> type[BaseHTTPRequestHandler]:
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, format: str, *args: object) -> None:
                return None

            def _body(self) -> bytes:
                data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                if self.headers.get("Content-Encoding") == "gzip":
                    import gzip

                    return gzip.decompress(data)
                return data

            def _reply(self, document: object, status: int = 200) -> None:
                payload = json.dumps(document).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(payload)))
                self.end_headers()
                self.wfile.write(payload)

            def _fails(self) -> bool:
                if outer.fault == "hang":
                    outer._over.wait()
                    self.close_connection = True
                elif outer.fault is not None:
                    self._reply({"errors": [{"message": "no"}]}, int(outer.fault))
                return outer.fault is not None

            def do_POST(self) -> None:
                body = json.loads(self._body() or b"{}")
                if self._fails():
                    return
                if self.path.startswith("/graphql"):
                    self._reply({"data": outer.answer(body["query"], body.get("variables") or {})})
                elif self.path.endswith("/file_stream"):
                    outer.stream(self.path.split("/")[-2], body)
                    self._reply({"limits": {}})
                else:
                    self._reply({}, 404)

            def do_PUT(self) -> None:
                if self._fails():
                    return
                outer.files[self.path.removeprefix("/put/")] = self._body()
                self._reply({})

            def do_GET(self) -> None:
                self._reply({})

        return Handler
