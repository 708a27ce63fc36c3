"""Stands in for Grafana: /api/health is well only if everything that Grafana would read is mounted and readable."""

from __future__ import annotations

import http.server
import json
import os
import re
import urllib.request
from pathlib import Path

PROVISIONING = Path("/etc/grafana/provisioning")
DATA = Path("/var/lib/grafana")


def missing() -> list[str]:
    """What Grafana would miss, one line each."""
    return [*_missing_files(), *_missing_dashboards(), *_missing_sources()]


def _missing_files() -> list[str]:
    wrong = []
    secret = Path(os.environ.get("GF_SECURITY_ADMIN_PASSWORD__FILE", "/nowhere"))
    try:
        if len(secret.read_text().strip()) < 32:
            wrong.append(f"{secret}: expected a long password")
    except OSError as error:
        wrong.append(str(error))
    try:
        (DATA / "probe").write_text("x")
    except OSError as error:
        wrong.append(str(error))
    for path in (PROVISIONING / "probe", Path("/probe")):
        try:
            path.write_text("x")
            wrong.append(f"{path}: expected a read-only mount")
        except OSError:
            pass
    return wrong


def _missing_dashboards() -> list[str]:
    folders = [
        folder
        for file in sorted((PROVISIONING / "dashboards").glob("*.y*ml"))
        for folder in re.findall(r"^\s*path:\s*(\S+)", file.read_text(), re.MULTILINE)
    ]
    if not folders:
        return [f"{PROVISIONING}/dashboards: expected a provider with a path"]
    found = [file for folder in folders for file in Path(folder.strip("'\"")).rglob("*.json")]
    for file in found:
        json.loads(file.read_text())["title"]
    return [] if found else [f"expected dashboards in {folders}"]


def _missing_sources() -> list[str]:
    urls = [
        url
        for file in sorted((PROVISIONING / "datasources").glob("*.y*ml"))
        for url in re.findall(r"^\s*url:\s*['\"]?(http[^'\"\s]+)", file.read_text(), re.MULTILINE)
    ]
    wrong = [] if urls else [f"{PROVISIONING}/datasources: expected a data source with a URL"]
    for url in urls:
        try:
            urllib.request.urlopen(f"{url.rstrip('/')}/-/ready", timeout=3).close()  # noqa: S310 - as provisioned
        except OSError as error:
            wrong.append(f"{url}: {error}")
    return wrong


class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        return

    def do_GET(self) -> None:
        try:
            wrong = missing()
        except Exception as error:  # noqa: BLE001 - whatever it is, it is the answer
            wrong = [repr(error)]
        body = json.dumps({"database": "stand-in", "missing": wrong}).encode()
        self.send_response(503 if wrong else 200)
        self.end_headers()
        self.wfile.write(body)
        if wrong:
            print(wrong)  # noqa: T201 - docker logs


if __name__ == "__main__":
    http.server.ThreadingHTTPServer(("0.0.0.0", 3000), Handler).serve_forever()  # noqa: S104 - in a container
