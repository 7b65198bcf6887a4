"""A stand-in for the hub's HTTP interface: repositories in memory, a commit for each upload."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlparse


def digest(data):
    return hashlib.sha1(data).hexdigest()


class Hub:
    """Repositories by name: commits in their order, each {path: bytes}."""

    def __init__(self):
        self.commits: dict[str, list[tuple[str, dict[str, bytes]]]] = {}
        self.requests: list[str] = []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_):
                pass

            def answer(self, status, body=b"", **headers):
                self.send_response(status)
                headers = {"Content-Length": str(len(body)), **headers}
                for name, value in headers.items():
                    self.send_header(name.replace("_", "-"), value)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)

            def json(self, value, status=200, **headers):
                self.answer(status, json.dumps(value).encode(), **headers)

            def body(self):
                return self.rfile.read(int(self.headers.get("Content-Length", 0)))

            def do_HEAD(self):
                self.do_GET()

            def do_GET(self):
                path = unquote(urlparse(self.path).path)
                hub.requests.append(f"{self.command} {path}")
                info = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", path)
                tree = re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/([^/]+)", path)
                file = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
                where = info or tree or file
                found = where and hub.at(where[1], where[2])
                if not found:
                    self.json({"error": "not found"}, 404, X_Error_Code="RepoNotFound")
                    return
                sha, files = found
                if info:
                    siblings = [{"rfilename": name} for name in files]
                    self.json({"id": info[1], "modelId": info[1], "sha": sha, "siblings": siblings,
                               "private": False, "tags": []})  # fmt: skip
                elif tree:
                    self.json(
                        [
                            {"type": "file", "path": n, "size": len(d), "oid": digest(d)}
                            for n, d in files.items()
                        ]
                    )
                elif file and file[3] in files:
                    data = files[file[3]]
                    self.answer(200, data, ETag=f'"{digest(data)}"', X_Repo_Commit=sha)
                else:
                    self.json({"error": "not found"}, 404, X_Error_Code="EntryNotFound")

            def do_POST(self):
                path = unquote(urlparse(self.path).path)
                hub.requests.append(f"POST {path}")
                body = self.body()
                if path == "/api/repos/create":
                    asked = json.loads(body)
                    name = "/".join(filter(None, (asked.get("organization"), asked["name"])))
                    hub.commits.setdefault(name, [(digest(b""), {})])
                    self.json({"url": f"{hub.address}/{name}", "name": name, "id": name})
                    return
                if path == "/api/validate-yaml":
                    self.json({"errors": [], "warnings": []})
                    return
                where = re.fullmatch(r"/api/models/([^/]+/[^/]+)/(preupload|commit)/(.+)", path)
                if not where or where[1] not in hub.commits:
                    self.json({"error": "not found"}, 404, X_Error_Code="RepoNotFound")
                elif where[2] == "preupload":
                    files = json.loads(body)["files"]
                    plain = {"uploadMode": "regular", "shouldIgnore": False, "oid": None}
                    self.json({"files": [plain | {"path": f["path"]} for f in files]})
                else:
                    files = dict(hub.commits[where[1]][-1][1])
                    for line in map(json.loads, body.splitlines()):
                        if line["key"] == "file":
                            value = line["value"]
                            files[value["path"]] = base64.b64decode(value["content"])
                    sha = digest(body)
                    hub.commits[where[1]].append((sha, files))
                    url = f"{hub.address}/{where[1]}/commit/{sha}"
                    self.json(
                        {"success": True, "commitOid": sha, "commitUrl": url, "hookOutput": ""}
                    )

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def at(self, name, revision):
        """(sha, files) of a commit, the last one for main or no revision."""
        for sha, files in reversed(self.commits.get(name, [])):
            if revision in (None, "main") or sha.startswith(revision):
                return sha, files
        return None

    def close(self):
        self.server.shutdown()
        self.server.server_close()
