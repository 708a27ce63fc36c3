"""``python -m dashboards.build``: writes the dashboards as JSON; ``--check`` only says whether the files are up to date."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from dashboards.broker_page import broker_page
from dashboards.node import node_page
from dashboards.overview import overview
from dashboards.sdk import JSONEncoder, models

__all__ = ["FOLDER", "build", "encoded", "main"]

FOLDER: Final = Path(__file__).parent / "grafana" / "dashboards"


def encoded(dashboard: models.Dashboard) -> str:
    """As JSON, keys in order, so that a change shows as what it is.

    The SDK knows no place for a link to another dashboard but a menu, where nobody would look: without it, Grafana shows it.
    """
    content = json.loads(json.dumps(dashboard, cls=JSONEncoder))
    for link in content["links"]:
        del link["placement"]
    return json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def build() -> dict[str, str]:
    """The text of each file."""
    made = (overview(), node_page(), broker_page())
    return {f"{dashboard.uid}.json": encoded(dashboard) for dashboard in made}


def main(argv: Sequence[str] | None = None) -> int:
    """Write or check the files; 1 if ``--check`` finds one that differs."""
    parser = argparse.ArgumentParser(prog="python -m dashboards.build", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; fail if a file differs")
    only_check = parser.parse_args(argv).check
    differing = [
        name for name, text in build().items() if not (FOLDER / name).exists() or (FOLDER / name).read_text() != text
    ]
    if not only_check:
        for name, text in build().items():
            (FOLDER / name).write_text(text)
    for name in differing:
        print(f"{name}: {'differs' if only_check else 'written'}")  # noqa: T201 - what the command is for
    return int(only_check and bool(differing))


if __name__ == "__main__":
    sys.exit(main())
