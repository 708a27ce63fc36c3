"""A watched folder: images that appear, or are written anew, once they are complete.

Polling and not inotify, since folders to be watched are often network shares, where nobody tells of a change.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Final

from mdi_exit.errors import UsageError
from source.inputs.live import Frame, LiveInput
from source.inputs.stored import IMAGE_SUFFIXES, known_classes, read_image, truth_of

__all__ = ["Watcher", "watched"]

_LOOK_S: Final = 0.4
_STILL_LOOKS: Final = 2

log = logging.getLogger(__name__)

Look = tuple[int, int]  # size in bytes, time of change in ns


def watched(folder: Path, labels: Sequence[str], *, limit: int | None = None) -> LiveInput:
    """Images that appear in ``folder`` and below from now on. None is passed over: files that wait do so on the disk.

    ids are relative paths, ``#2`` and so on for a file that is written again; a folder named after a label gives the truth.
    Raises ``UsageError``.
    """
    if not folder.is_dir():
        raise UsageError(
            "input", "watch:DIR with a folder", f"{folder}{', which is a file' if folder.exists() else ''}"
        )
    watcher = Watcher(folder, labels)
    return LiveInput(f"watch:{folder}", watcher.run, room=None, newest_first=False, limit=limit)


class Watcher:
    """Looks every 0.4 s for what was not there at the start; a file is complete when it has a size and three looks found
    it the same.
    """

    def __init__(self, folder: Path, labels: Sequence[str]) -> None:
        self._folder = folder
        self._truths = known_classes(labels)
        self._seen: dict[str, Look] = dict(self._found())
        self._growing: dict[str, tuple[Look, int]] = {}
        self._rounds: Counter[str] = Counter()
        self._lost = False

    def run(self, live: LiveInput) -> None:
        """Until told to stop."""
        if self._seen:
            log.info("input %s: waiting for new images; %d already there are left alone", live.name, len(self._seen))
        while not live.stopping.wait(_LOOK_S):
            for name in self.look():
                self._rounds[name] += 1
                number = self._rounds[name]
                path = self._folder / name
                live.offer(
                    Frame(
                        name if number == 1 else f"{name}#{number}",
                        partial(read_image, path),
                        truth_of(Path(name), self._truths),
                    )
                )

    def look(self) -> list[str]:
        """The files that have become complete, the oldest first."""
        try:
            found = dict(self._found())
        except OSError as error:
            if not self._lost:
                log.warning("input watch:%s: %s; looking again", self._folder, error.strerror)
            self._lost = True
            return []
        self._lost = False
        complete: list[tuple[int, str]] = []
        growing: dict[str, tuple[Look, int]] = {}
        for name, now in found.items():
            if self._seen.get(name) == now:
                continue
            before, looks = self._growing.get(name, (None, 0))
            looks = looks + 1 if before == now else 0
            if now[0] and looks >= _STILL_LOOKS:
                self._seen[name] = now
                complete.append((now[1], name))
            else:
                growing[name] = (now, looks)
        self._growing = growing
        for gone in self._seen.keys() - found.keys():
            del self._seen[gone]
        return [name for _, name in sorted(complete)]

    def _found(self) -> Iterator[tuple[str, Look]]:
        """Image files by relative path; hidden ones are somebody's unfinished work."""
        list(os.scandir(self._folder))  # os.walk is silent about a folder that is gone
        for folder, inner, names in os.walk(self._folder):
            inner[:] = [name for name in inner if not name.startswith(".")]
            for name in names:
                if name.startswith(".") or Path(name).suffix.lower() not in IMAGE_SUFFIXES:
                    continue
                path = Path(folder) / name
                try:
                    facts = path.stat()
                except OSError:  # gone since
                    continue
                yield path.relative_to(self._folder).as_posix(), (facts.st_size, facts.st_mtime_ns)
