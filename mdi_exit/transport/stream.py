"""A connected socket in the event loop: large reads, gathered writes, and a close that lets the peer read to the end.

It stands in the client library's place for the socket: what the library sends goes into the same outgoing buffer as the
messages, in order, and what is not a message is handed back for the library to read.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections import deque
from collections.abc import Callable
from typing import Final

from mdi_exit.errors import TransportError
from mdi_exit.transport.frames import Acknowledged, Arrived, Other, Splitter, TooLarge

__all__ = ["Stream"]

_GATHER_BYTES: Final = 128 * 1024
_GATHER_PIECES: Final = 256
_LINGER_S: Final = 1.0
_HIDDEN_BYTES: Final = 256 * 1024
_LATER: Final = (BlockingIOError, InterruptedError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


class Stream:
    """Takes over ``sock``, which must be connected and not blocking. ``on_other`` is told that ``recv`` has something,
    ``on_alive`` that the peer gave a sign of life: it sent something, or took some of what waited for it; ``on_lost`` that
    the connection is lost, through no wish of ours, and ``error`` says why.
    """

    def __init__(
        self,
        sock: socket.socket,
        *,
        limit: int,
        on_packet: Callable[[Arrived | Acknowledged | TooLarge], None],
        on_other: Callable[[], object],
        on_alive: Callable[[], None],
        on_lost: Callable[[], object],
    ) -> None:
        self._sock = sock
        self._loop = asyncio.get_running_loop()
        self._splitter = Splitter(limit)
        self._on_packet, self._on_other = on_packet, on_other
        self._on_alive, self._on_lost = on_alive, on_lost
        self._out: deque[bytes | memoryview] = deque()
        self._others = b""
        self._is_lost = self._is_closed = self._is_flushing = self._is_blocked = False
        self.pending = 0
        self.error: Exception | None = None
        self.closed: asyncio.Future[None] = self._loop.create_future()
        self._loop.add_reader(sock.fileno(), self._readable)
        if hasattr(socket, "TCP_NOTSENT_LOWAT"):  # else megabytes would wait in the kernel, where ``pending`` sees none
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _HIDDEN_BYTES)

    @property
    def raw(self) -> socket.socket:
        return self._sock

    def is_open(self) -> bool:
        return not (self._is_lost or self._is_closed)

    def fileno(self) -> int:
        return self._sock.fileno()

    def write(self, head: bytes, payload: bytes = b"") -> None:
        """Send at the end of this turn of the loop, together with whatever else was written in it."""
        if not self.is_open():
            return
        self._out.append(head)
        if payload:
            self._out.append(payload)
        self.pending += len(head) + len(payload)
        if not self._is_flushing:
            self._is_flushing = True
            self._loop.call_soon(self._flush)

    def send(self, data: bytes | bytearray) -> int:
        """For the client library: takes all of it."""
        self.write(bytes(data))
        return len(data)

    def recv(self, size: int) -> bytes:
        """For the client library: the packets that are not messages, byte by byte if it likes."""
        if not self._others:
            raise BlockingIOError
        piece, self._others = self._others[:size], self._others[size:]
        return piece

    def close(self) -> None:
        """Send what is left, then wait for the peer to close, so that it reads to the end; ``closed`` tells when.

        Closing with unread bytes would reset the connection, and the broker would miss the goodbye.
        """
        if self._is_closed:
            return
        if not self._is_lost:
            self._push()
        self._is_closed = True
        fileno = self._sock.fileno()
        self._loop.remove_writer(fileno)
        self._loop.remove_reader(fileno)
        if self._is_lost or self._out:
            self._close_now()
            return
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_WR)
        self._loop.add_reader(fileno, self._drain)
        self._loop.call_later(_LINGER_S, self._close_now)

    def _drain(self) -> None:
        try:
            while self._sock.recv(65536):
                pass
        except _LATER:
            return
        except OSError:
            pass
        self._close_now()

    def _close_now(self) -> None:
        if not self.closed.done():
            if self._sock.fileno() >= 0:
                self._loop.remove_reader(self._sock.fileno())
            self._sock.close()
            self.closed.set_result(None)

    def _readable(self) -> None:
        try:
            self._read()
            if self._out and not self._is_blocked:
                self._flush()  # answers to what was read, without another turn of the loop
        except Exception as error:  # noqa: BLE001 - whatever a dying socket or a broken peer does ends the connection only
            self._lose(error)

    def _read(self) -> None:
        is_tls = isinstance(self._sock, ssl.SSLSocket)
        while self.is_open():
            try:
                count = self._sock.recv_into(self._splitter.space())
            except _LATER:
                return
            if not count:
                raise ConnectionResetError("the broker closed the connection")
            self._on_alive()
            for packet in self._splitter.fed(count):
                if not isinstance(packet, Other):
                    self._on_packet(packet)
                    continue
                self._others += packet.packet
                self._on_other()
                if not self.is_open():
                    return
            if not is_tls:  # the loop calls again while there is more; with TLS, more may wait where it cannot see it
                return

    def _writable(self) -> None:
        self._on_alive()
        self._flush()

    def _flush(self) -> None:
        self._is_flushing = False
        if not self.is_open():
            return
        self._push()
        if bool(self._out) != self._is_blocked:
            self._is_blocked = bool(self._out)
            if self._is_blocked:
                self._loop.add_writer(self._sock.fileno(), self._writable)
            else:
                self._loop.remove_writer(self._sock.fileno())

    def _push(self) -> None:
        """As much as the socket takes, gathered into few system calls."""
        try:
            while self._out:
                self._sent(self._send_some())
        except _LATER:
            return
        except OSError as error:
            self._lose(error)

    def _send_some(self) -> int:
        pieces, size = [], 0
        for piece in self._out:
            pieces.append(piece)
            size += len(piece)
            if size >= _GATHER_BYTES or len(pieces) == _GATHER_PIECES:
                break
        if isinstance(self._sock, ssl.SSLSocket):
            return self._sock.send(b"".join(pieces))
        return self._sock.sendmsg(pieces)

    def _sent(self, count: int) -> None:
        self.pending -= count
        while count:
            piece = self._out.popleft()
            if len(piece) > count:
                self._out.appendleft(memoryview(piece)[count:])
                return
            count -= len(piece)

    def _lose(self, error: Exception) -> None:
        """Not told from here: this may be in the middle of somebody's publish."""
        if not self.is_open():
            return
        self._is_lost = True
        self.error = error if isinstance(error, (OSError, TransportError)) else TransportError(repr(error))
        self._out.clear()
        self.pending = 0
        self._loop.remove_reader(self._sock.fileno())
        self._loop.remove_writer(self._sock.fileno())
        self._loop.call_soon(self._on_lost)
