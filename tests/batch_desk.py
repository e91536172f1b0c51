"""The published /files and /batches of a chat-completions server, in memory: what is uploaded for a
batch is answered line by line by the server's own completions.
"""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web

from harness.judge import chat_http

Answer = Callable[[bytes], Awaitable[web.Response | None]]
"""A completion's body to its answer; None for one whose time has run out."""


class BatchDesk:
    """Answers ``/v1/files…`` and ``/v1/batches…``. takes_s: how long a batch is in progress."""

    def __init__(self, answer: Answer, takes_s: float = 0.0) -> None:
        self.answer, self.takes_s = answer, takes_s
        self.files: dict[str, bytes] = {}
        self.batches: dict[str, dict[str, Any]] = {}
        self._work: set[asyncio.Task[None]] = set()

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """One HTTP request of an address that begins so."""
        kind, *rest = request.path.removeprefix("/v1/").split("/")
        if (request.method, rest) == ("POST", []):
            return await (self._upload(request) if kind == "files" else self._open(request))
        held: dict[str, Any] = self.files if kind == "files" else self.batches
        if request.method != "GET" or (rest and rest[0] not in held):
            return chat_http.error(404, "not_found", f"no such path: {request.path}")
        if not rest:
            return chat_http.reply(self._page(request))
        if kind == "batches":
            return chat_http.reply(self.batches[rest[0]])
        content = self.files[rest[0]]
        if rest[1:] == ["content"]:
            return web.Response(body=content, content_type="application/octet-stream")
        return chat_http.reply(_file(rest[0], content))

    async def _upload(self, request: web.BaseRequest) -> web.Response:
        found = await request.post()
        given, purpose = found.get("file"), found.get("purpose")
        if purpose != "batch" or not isinstance(given, web.FileField):
            return chat_http.error(400, "invalid_request_error", "file with purpose batch wanted")
        name = f"file-{uuid.uuid4().hex}"
        self.files[name] = given.file.read()
        return chat_http.reply(_file(name, self.files[name]))

    async def _open(self, request: web.BaseRequest) -> web.Response:
        asked = json.loads(await request.read())
        file = asked.get("input_file_id")
        if file not in self.files or asked.get("completion_window") != "24h":
            wanted = "input_file_id of a file and completion_window 24h wanted"
            return chat_http.error(400, "invalid_request_error", wanted)
        name = f"batch_{uuid.uuid4().hex}"
        lines = self.files[file].decode().splitlines()
        self.batches[name] = {
            "id": name,
            "object": "batch",
            "endpoint": asked["endpoint"],
            "errors": None,
            "input_file_id": file,
            "completion_window": "24h",
            "status": "in_progress",
            "output_file_id": None,
            "error_file_id": None,
            "created_at": int(time.time()),
            "request_counts": {"total": len(lines), "completed": 0, "failed": 0},
        }
        task = asyncio.create_task(self._run(self.batches[name], lines))
        self._work.add(task)
        task.add_done_callback(self._work.discard)
        return chat_http.reply(self.batches[name])

    async def _run(self, batch: dict[str, Any], lines: list[str]) -> None:
        """Answer the lines of a batch, or say which of them is none."""
        try:
            rows = [json.loads(line) for line in lines]
            asked = [(row["custom_id"], json.dumps(row["body"]).encode()) for row in rows]
        except (ValueError, LookupError, TypeError) as error:
            wrong = {"code": "invalid_json_line", "message": str(error), "line": None}
            batch |= {"status": "failed", "errors": {"object": "list", "data": [wrong]}}
            return
        started = time.monotonic()
        while time.monotonic() < started + self.takes_s:
            await asyncio.sleep(0.01)
        kept: dict[str, list[dict[str, Any]]] = {"output_file_id": [], "error_file_id": []}
        for custom, body in asked:
            row = _row(custom, await self.answer(body))
            sound = row["response"] and row["response"]["status_code"] == 200
            kept["output_file_id" if sound else "error_file_id"].append(row)
            batch["request_counts"]["completed" if sound else "failed"] += 1
        for key, found in kept.items():
            if found:
                batch[key] = f"file-{uuid.uuid4().hex}"
                text = "".join(json.dumps(row) + "\n" for row in reversed(found))
                self.files[batch[key]] = text.encode()
        late = any(row["response"] is None for row in kept["error_file_id"])
        batch["status"] = "expired" if late else "completed"

    def _page(self, request: web.BaseRequest) -> dict[str, Any]:
        newest = list(reversed(self.batches.values()))
        after = request.query.get("after")
        start = 1 + [row["id"] for row in newest].index(after) if after else 0
        end = start + int(request.query.get("limit") or 20)
        return {"object": "list", "data": newest[start:end], "has_more": end < len(newest)}


def _file(name: str, content: bytes) -> dict[str, Any]:
    return {
        "id": name,
        "object": "file",
        "bytes": len(content),
        "created_at": int(time.time()),
        "filename": f"{name}.jsonl",
        "purpose": "batch",
        "status": "processed",
    }


def _row(custom: str, answer: web.Response | None) -> dict[str, Any]:
    """A line of the output or error file."""
    row: dict[str, Any] = {"id": f"batch_req_{custom}", "custom_id": custom, "error": None}
    if answer is None:
        late = {"code": "batch_expired", "message": "This request could not be executed in time."}
        return {**row, "response": None, "error": late}
    said = answer.body if isinstance(answer.body, bytes) else b""
    try:
        body = json.loads(said)
    except ValueError:
        body = {"error": {"message": "The server had an error.", "type": "server_error"}}
        return {**row, "response": {"status_code": 500, "request_id": custom, "body": body}}
    return {**row, "response": {"status_code": answer.status, "request_id": custom, "body": body}}
