"""The event that gives a new life of the source what an earlier one has left: rows of the journal with tensors again."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mdi_exit.cuts import CutCodecs
from mdi_exit.errors import MdiExitError
from mdi_exit.events import LifeTotals, Restored, RestoredItem, RestoredRequest, SendReply
from mdi_exit.journal import AdmittedRow, Left, RequestRow
from mdi_exit.modality import Modality
from source.inputs import Input
from source.reception import to_tensor
from source.recorder import Sent

__all__ = ["restored", "totals_of"]


def restored(left: Left, samples: Input | None, modality: Modality, cuts: CutCodecs) -> Restored:
    """Reads again what ``samples`` has at the places of unfinished items, so call it in a thread."""
    asked = {(row.client, row.id): row for row in left.requests}
    tensors = _read_again(left, samples, modality)
    items = []
    for row in left.items:
        request = asked.pop((row.client, row.request), None) if row.client else None
        x, lost = _tensor(row, request, tensors, modality)
        size_bytes = cuts.size_bytes(0, x.shape) if x is not None else row.size_bytes
        kept = None if request is None else _request(request)
        items.append(
            RestoredItem(row.item, row.sample, row.truth, x, size_bytes, _age_s(row.at), row.deadline_s, kept, lost)
        )
    replies = [(SendReply(row.reply, row.plain, kept=True), row.sent) for row in left.replies]
    return Restored(
        next_item=left.admitted + 1,
        totals=totals_of(left),
        items=tuple(items),
        requests=tuple(_request(row) for row in asked.values()),
        replies=tuple(reply for reply, _ in replies),
        unsent=tuple(reply for reply, sent in replies if not sent),
    )


def totals_of(left: Left) -> LifeTotals:
    """The counts of all lives before."""
    counts, told = left.counts, left.life.totals
    return LifeTotals(
        left.admitted, counts.completed, counts.errors, counts.right, counts.judged, counts.exits, told.retried,
        told.duplicates, told.own_refused, told.turned_away, told.replies, told.tickets,
    )  # fmt: skip


def _read_again(left: Left, samples: Input | None, modality: Modality) -> Mapping[int, NDArray[np.float32]]:
    places = {row.position for row in left.items if row.position >= 0}
    if samples is None or not places:
        return {}
    return {sample.position: modality.prepared(sample.raw) for sample in samples.again(places)}


def _tensor(
    row: AdmittedRow, request: RequestRow | None, again: Mapping[int, NDArray[np.float32]], modality: Modality
) -> tuple[Any, str]:
    """What enters layer 0, or why it can no longer be had."""
    if request is not None:
        try:
            return to_tensor(Sent(request.kind, request.shape, request.data), modality), ""
        except (ValueError, MdiExitError) as error:
            return None, f"the request cannot be read: {error}"
    if row.payload is not None:
        return np.frombuffer(row.payload, "<f4").reshape(row.shape).astype(np.float32, copy=False), ""
    if row.position in again:
        return again[row.position], ""
    return None, "its input can no longer be read"


def _request(row: RequestRow) -> RestoredRequest:
    sent = Sent(row.kind, row.shape, row.data)
    return RestoredRequest(row.client, row.id, sent, len(row.data), row.plain, _age_s(row.at), row.deadline_s)


def _age_s(at: float) -> float:
    """By the clock on the wall, the only one that outlives a process; set back meanwhile, nothing has aged."""
    return max(time.time() - at, 0.0)
