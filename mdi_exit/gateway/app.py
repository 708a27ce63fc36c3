"""The gateway: an observer and a client of one deployment on one side, HTTP on the other."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from typing import Any, Final, Protocol

import msgspec
from aiohttp import web

from mdi_exit import values, wire
from mdi_exit.client import Answer as Reply
from mdi_exit.client import Client, Text
from mdi_exit.errors import BadRequest, DeadlineExceeded, Refused, RequestError, StartError
from mdi_exit.gateway import guard, openapi
from mdi_exit.gateway.config import GatewaySettings
from mdi_exit.gateway.feed import Feed
from mdi_exit.gateway.gallery import Frame, Gallery, thumbnail
from mdi_exit.gateway.infer import MAX_IMAGE_BYTES, Answer, Fault, RejectedError, deadline_of, item_of
from mdi_exit.gateway.pages import Pages
from mdi_exit.gateway.state import SAMPLE_PERIOD_S, History, state_of
from mdi_exit.observer import DeploymentView, Observer
from mdi_exit.topics import NAME

__all__ = ["Gateway", "serving"]

_MAX_STREAMS: Final = 64
_MAX_UNDER_WAY: Final = 256
_MAX_BYTES_UNDER_WAY: Final = 8 * MAX_IMAGE_BYTES
_MAX_THUMBNAILS: Final = 2
_STREAM_STALLS_S: Final = 20.0
_GOODBYE_S: Final = 2.0
_FOR_EVER_S: Final = 1e9

log = logging.getLogger(__name__)


class Asked(Protocol):
    """Gets an item labelled by the deployment; see ``Client.infer``."""

    async def __call__(self, item: bytes | Text, *, deadline_s: float) -> Reply: ...


class Gateway:
    """The answers to HTTP requests about the deployment that ``view`` shows; ``infer`` gets items labelled."""

    def __init__(self, settings: GatewaySettings, view: Callable[[], DeploymentView], infer: Asked) -> None:
        self._settings, self._view, self._ask = settings, view, infer
        self.history, self.gallery = History(), Gallery(settings.gallery)
        self.feed = Feed(lambda: state_of(view(), time.time()), self.history, self.gallery)
        self._pages = Pages()
        self._openapi = msgspec.json.encode(openapi.description())
        self._under_way = self._bytes_under_way = self._thumbnails = 0
        self._looking: asyncio.Task[None] | None = None
        self.app = self._application()

    def _application(self) -> web.Application:
        app = web.Application(middlewares=[self._guarded], client_max_size=MAX_IMAGE_BYTES)
        app.on_response_prepare.append(guard.with_headers)
        app.router.add_post("/v1/infer", self._infer)
        app.router.add_get("/v1/state", self._state)
        app.router.add_get("/v1/events", self._events, allow_head=False)
        app.router.add_get(r"/v1/frames/{number:\d{1,12}}.jpg", self._picture)
        app.router.add_get("/openapi.json", self._describe)
        app.router.add_get("/healthz", self._healthy)
        app.router.add_get("/readyz", self._ready)
        app.router.add_get(r"/{path:(?!v1/).*}", self._page)
        return app

    def frame(self, frame: wire.Frame, picture: memoryview) -> None:
        """Show a frame that a source has published; while another is being looked at it is passed over."""
        if self.gallery.most and self._looking is None:
            self._looking = asyncio.create_task(self._look_at(frame, bytes(picture)), name="frame")

    async def _look_at(self, frame: wire.Frame, picture: bytes) -> None:
        try:
            small = await asyncio.to_thread(thumbnail, picture)
        finally:
            self._looking = None
        if small is not None:
            names = self._view().labels
            truth = None if frame.truth is None else _name(names, frame.truth)
            name = _name(names, frame.label)
            self._shown(frame, name, small, confidence=frame.score, via=frame.node, truth=truth)

    async def sample(self) -> None:
        """Take a sample each half second, for ever; what changes by silence alone is told from here."""
        shown: object = None
        while True:
            view = self._view()
            now_shown = (view.trouble, tuple(node.state for node in view.nodes))
            if self.history.add(view, time.time()) or now_shown != shown:
                shown = now_shown
                self.feed.touch()
            await asyncio.sleep(SAMPLE_PERIOD_S)

    @web.middleware
    async def _guarded(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        try:
            guard.check_host(request, self._settings.http.host)
            if request.method not in ("GET", "HEAD"):
                guard.check_origin(request)
            return await handler(request)
        except RejectedError as rejected:
            return _json({"error": rejected.fault}, rejected.status, rejected.headers)
        except web.HTTPException as error:
            if error.status < 400:
                raise
            allow = {"Allow": error.headers["Allow"]} if "Allow" in error.headers else {}
            return _json({"error": Fault("http", error.reason)}, error.status, allow)

    # --- requests

    async def _infer(self, request: web.Request) -> web.StreamResponse:
        deadline_s = deadline_of(request, self._settings.deadline)
        with self._room_for(request.content_length or MAX_IMAGE_BYTES):
            item = await item_of(request)
            if trouble := self._view().trouble:
                raise RejectedError(503, "unavailable", trouble, retry_after_s=2.0)
            reply = await _asked(self._ask, item, deadline_s)
            return _json(await self._answer(reply, item))

    @contextlib.contextmanager
    def _room_for(self, size: int) -> Iterator[None]:
        """Only so many requests, and so many bytes of theirs, are under way. Raises ``RejectedError``."""
        full = self._under_way >= _MAX_UNDER_WAY or self._bytes_under_way + size > _MAX_BYTES_UNDER_WAY
        if full and self._under_way:
            raise RejectedError(429, "refused", "too many requests are under way here", retry_after_s=1.0)
        self._under_way, self._bytes_under_way = self._under_way + 1, self._bytes_under_way + size
        try:
            yield
        finally:
            self._under_way, self._bytes_under_way = self._under_way - 1, self._bytes_under_way - size

    async def _answer(self, reply: Reply, item: bytes | Text) -> Answer:
        number = None
        picture = None if isinstance(item, Text) else await self._thumbnail(item)
        if picture is not None:
            number = self._shown(reply, reply.name, picture, confidence=reply.confidence, via="gateway")
        return Answer(reply.label, reply.name, reply.confidence, reply.exit, reply.path, reply.latency_s, number)

    async def _thumbnail(self, image: bytes) -> bytes | None:
        """None also where none is wanted, or enough are being made: a flood of images is not all to be looked at."""
        if not self.gallery.most or self._thumbnails >= _MAX_THUMBNAILS:
            return None
        self._thumbnails += 1
        try:
            return await asyncio.to_thread(thumbnail, image)
        finally:
            self._thumbnails -= 1

    def _shown(
        self,
        what: Reply | wire.Frame,
        name: str,
        picture: bytes,
        *,
        confidence: float,
        via: str,
        truth: str | None = None,
    ) -> int:
        """Put a frame into the gallery; its number."""
        number = self.gallery.number + 1
        seen = Frame(
            number=number,
            at=time.time(),
            label=what.label,
            name=name,
            confidence=confidence,
            exit=what.exit,
            path=what.path,
            latency_s=what.latency_s,
            via=via,
            truth=truth,
        )
        self.gallery.add(seen, picture)
        self.feed.touch()
        return number

    async def _state(self, _: web.Request) -> web.StreamResponse:
        return _json(state_of(self._view(), time.time()))

    async def _events(self, request: web.Request) -> web.StreamResponse:
        if self.feed.clients >= _MAX_STREAMS:
            raise RejectedError(503, "busy", f"expected at most {_MAX_STREAMS} streams, got more", retry_after_s=5.0)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "X-Accel-Buffering": "no"})
        await response.prepare(request)
        events = self.feed.events()
        try:
            async for event in events:
                await asyncio.wait_for(response.write(event), _STREAM_STALLS_S)
        except (ConnectionError, TimeoutError):
            log.debug("a stream of events was cut")
        finally:
            await events.aclose()
        return response

    async def _picture(self, request: web.Request) -> web.StreamResponse:
        picture = self.gallery.picture(int(request.match_info["number"]))
        if picture is None:
            raise web.HTTPNotFound
        return web.Response(body=picture, content_type="image/jpeg", headers={"Cache-Control": "private, max-age=600"})

    async def _describe(self, _: web.Request) -> web.StreamResponse:
        return web.Response(body=self._openapi, content_type="application/json")

    async def _healthy(self, _: web.Request) -> web.StreamResponse:
        return web.Response(text="ok\n")

    async def _ready(self, _: web.Request) -> web.StreamResponse:
        trouble = self._view().trouble
        return web.Response(text=f"{trouble or 'ok'}\n", status=503 if trouble else 200)

    async def _page(self, request: web.Request) -> web.StreamResponse:
        return self._pages.answer(request)


async def _asked(infer: Asked, item: bytes | Text, deadline_s: float) -> Reply:
    """The reply to one request; the client's errors become statuses here."""
    try:
        return await infer(item, deadline_s=deadline_s)
    except BadRequest as error:
        raise RejectedError(400, "item" if isinstance(item, Text) else "image", error.reason) from None
    except Refused as error:
        raise RejectedError(429, "refused", error.reason, retry_after_s=1.0) from None
    except DeadlineExceeded as error:
        raise RejectedError(504, "deadline", error.reason) from None
    except RequestError as error:
        raise RejectedError(502, "failed", error.reason) from None


def _name(labels: Sequence[str], label: int) -> str:
    return labels[label] if label < len(labels) else ""


def _json(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    body = msgspec.json.encode(value)
    return web.Response(body=body, status=status, content_type="application/json", headers=headers)


class _LateClient:
    """A client that may have to wait for its broker: the gateway runs before there is one."""

    def __init__(self, settings: GatewaySettings, on_denied: Callable[[StartError], None] | None) -> None:
        self._settings, self._on_denied = settings, on_denied
        self._client: Client | None = None

    async def infer(self, item: bytes | Text, *, deadline_s: float) -> Reply:
        if self._client is None:
            raise RejectedError(503, "unavailable", "no connection to the broker yet", retry_after_s=1.0)
        return await self._client.infer(item, deadline_s=deadline_s)

    async def run(self) -> None:
        """Connect, and stay connected until cancelled; where no broker takes us, say so to who can end the program."""
        try:
            await self._serve()
        except StartError as error:
            if self._on_denied is None:
                raise
            self._on_denied(error)
            await asyncio.Event().wait()

    async def _serve(self) -> None:
        settings = self._settings
        async with Client(
            str(settings.broker),
            deployment=settings.deployment,
            name=_asker(settings.username),
            username=settings.username,
            password=settings.password,
            tls=settings.tls(),
            connect_s=_FOR_EVER_S,
        ) as self._client:
            await asyncio.Event().wait()


def _asker(user: str | None) -> str:
    """As whom to ask: where the broker knows us, as the user that its access list has rules for."""
    return user if user is not None and NAME.fullmatch(user) else f"gateway-{secrets.token_hex(4)}"


@contextlib.asynccontextmanager
async def serving(
    settings: GatewaySettings, flag: str = "--http", on_denied: Callable[[StartError], None] | None = None
) -> AsyncIterator[str]:
    """A gateway for as long as the context lasts; gives its address, ``http://HOST:PORT/``.

    ``on_denied``: told when no broker takes us. Raises ``StartError``, which names ``flag``.
    """
    observer = Observer(
        settings.broker,
        settings.deployment,
        username=settings.username,
        password=settings.password,
        tls=settings.tls(),
        on_change=lambda: gateway.feed.touch(),
        on_frame=lambda frame, picture: gateway.frame(frame, picture),
    )
    client = _LateClient(settings, on_denied)
    gateway = Gateway(settings, observer.view, client.infer)
    runner = web.AppRunner(gateway.app, access_log=None, shutdown_timeout=_GOODBYE_S)
    async with observer:
        tasks = [
            asyncio.create_task(gateway.sample(), name="samples"),
            asyncio.create_task(client.run(), name="client"),
        ]
        for task in tasks:
            task.add_done_callback(_told)
        try:
            await runner.setup()
            yield await _listening(runner, settings.http, flag)
        finally:
            gateway.feed.close()
            await runner.cleanup()
            for task in tasks:
                task.remove_done_callback(_told)
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


def _told(task: asyncio.Task[None]) -> None:
    """A part that should have lasted has ended: its defect is not to be missed."""
    log.error("the gateway's %s ended: %s", task.get_name(), "cancelled" if task.cancelled() else task.exception())


async def _listening(runner: web.AppRunner, where: values.HostPort, flag: str) -> str:
    try:
        await web.TCPSite(runner, where.host, where.port).start()
    except OSError as error:
        number = error.errno or 0  # below 0: of name resolution
        reason = os.strerror(number) if number > 0 else error.strerror or str(error)
        raise StartError(f"{flag} {where}: {reason}") from None
    port = runner.addresses[0][1]
    host = f"[{where.host}]" if ":" in where.host else where.host
    return f"http://{host}:{port}/"
