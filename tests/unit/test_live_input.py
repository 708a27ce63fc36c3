"""Inputs that do not wait, with real threads, files and pictures."""

from __future__ import annotations

import asyncio
import io
import logging
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mdi_exit.data import shipped
from mdi_exit.errors import MdiExitError, UsageError
from mdi_exit.model.artifact import DEFAULT_MODEL, Artifact
from source.inputs import LiveInput, TopicInput, open_any, open_input, open_live
from source.inputs.live import Frame
from source.inputs.video import Capture
from source.inputs.watch import Watcher

MANIFEST = Artifact.open(DEFAULT_MODEL).manifest
DEADLINE_S = 20.0


def frame(name: str, size_bytes: int = 1) -> Frame:
    return Frame(name, lambda: np.zeros((2, 2), np.uint8), size_bytes=size_bytes)


def idle(live: LiveInput) -> None:
    live.stopping.wait(DEADLINE_S)


async def drawn(live: LiveInput, count: int) -> list[str]:
    found = []
    async with asyncio.timeout(DEADLINE_S):
        while len(found) < count and (sample := await live.next()) is not None:
            found.append(sample.id)
    return found


def jpeg(grey: int) -> bytes:
    content = io.BytesIO()
    Image.new("L", (28, 28), grey).save(content, "JPEG")
    return content.getvalue()


# --- the queue of a live input


async def test_a_slow_system_gets_the_newest_frame_and_the_others_are_counted() -> None:
    async with LiveInput("x", idle) as live:
        for number in range(10):
            live.offer(frame(str(number)))
        assert await drawn(live, 1) == ["9"]
        assert live.newly_skipped() == 9
        assert live.newly_skipped() == 0
        live.offer(frame("10"))
        assert await drawn(live, 1) == ["10"]
    assert (live.came, live.taken, live.skipped) == (11, 2, 9)


async def test_a_draw_waits_for_a_frame_from_another_thread() -> None:
    go = threading.Event()

    def feed(live: LiveInput) -> None:
        go.wait(DEADLINE_S)
        live.offer(frame("late"))
        live.stopping.wait(DEADLINE_S)

    async with LiveInput("x", feed) as live:
        waiting = asyncio.create_task(drawn(live, 1))
        await asyncio.sleep(0)
        assert not waiting.done()
        go.set()
        assert await waiting == ["late"]


async def test_no_more_stands_ready_than_there_is_room_for_in_number_and_bytes() -> None:
    async with LiveInput("x", idle, room=3, room_bytes=100) as live:
        for number in range(5):
            live.offer(frame(str(number)))
        live.offer(frame("big", 99))
        assert live.skipped == 4
        assert await drawn(live, 2) == ["big", "4"]
        live.offer(frame("huge", 1000))
        assert await drawn(live, 1) == ["huge"]


async def test_the_end_comes_after_what_stands_ready_and_after_the_limit() -> None:
    def feed(live: LiveInput) -> None:
        for number in range(4):
            live.offer(frame(str(number)))

    async with LiveInput("x", feed, room=None, newest_first=False) as live:
        assert await drawn(live, 9) == ["0", "1", "2", "3"]
    async with LiveInput("x", feed, room=None, newest_first=False, limit=2) as live:
        while live.came < 4:  # what comes after the end is not counted
            await asyncio.sleep(0.001)
        assert await drawn(live, 9) == ["0", "1"]
    assert (live.taken, live.skipped) == (2, 2)


async def test_a_feed_that_fails_ends_the_input_with_its_reason() -> None:
    def feed(live: LiveInput) -> None:
        live.offer(frame("0"))
        raise MdiExitError("the lens fell off")

    async with LiveInput("x", feed) as live:
        with pytest.raises(MdiExitError, match="lens"):
            await drawn(live, 2)


async def test_a_frame_that_cannot_be_read_is_counted_and_told_once(caplog: pytest.LogCaptureFixture) -> None:
    def broken() -> np.ndarray:
        raise ValueError("no picture")

    async with LiveInput("x", idle, room=9) as live:
        live.offer(frame("good"))
        live.offer(Frame("bad1", broken))
        live.offer(Frame("bad2", broken))
        assert await drawn(live, 1) == ["good"]
    assert live.skipped == 2
    assert caplog.text.count("passed over: no picture") == 1


# --- topics


async def test_images_of_topics_come_newest_first_and_bounded() -> None:
    async with TopicInput("cams/+/snapshot") as live:
        for number in range(40):
            live.on_image("cams/door/snapshot", jpeg(number * 6), False)
        async with asyncio.timeout(DEADLINE_S):
            newest, before = await live.next(), await live.next()
        assert newest is not None
        assert before is not None
        assert (newest.id, before.id) == ("cams/door/snapshot/40", "cams/door/snapshot/39")
        assert abs(int(newest.raw[0, 0]) - 234) < 3
        assert live.skipped == 8


async def test_what_the_broker_remembers_counts_once_and_a_repeated_picture_again() -> None:
    async with TopicInput("#") as live:
        live.on_image("a", jpeg(1), True)
        live.on_image("a", jpeg(1), True)  # after a reconnect
        assert live.came == 1
        live.on_image("a", jpeg(1), False)
        live.on_image("a", b"", True)
        live.on_image("a", jpeg(2), True)
        assert live.came == 3


# --- watched folders


def looks(watcher: Watcher, count: int) -> list[str]:
    return [name for _ in range(count) for name in watcher.look()]


def test_a_file_is_complete_when_it_has_stopped_growing(tmp_path: Path) -> None:
    watcher = Watcher(tmp_path, ())
    content = jpeg(9)
    for part in range(1, 5):
        (tmp_path / "a.jpg").write_bytes(content[: part * 100])
        assert looks(watcher, 2) == []
    assert looks(watcher, 1) == ["a.jpg"]
    assert looks(watcher, 3) == []
    (tmp_path / "a.jpg").write_bytes(content)
    (tmp_path / "empty.jpg").touch()
    (tmp_path / ".hidden.jpg").write_bytes(content)
    (tmp_path / "b.jpg.part").write_bytes(content)
    assert looks(watcher, 4) == ["a.jpg"]


def test_a_watched_folder_that_is_gone_is_told_once_and_looked_for(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "share"
    folder.mkdir()
    watcher = Watcher(folder, ())
    folder.rmdir()
    assert looks(watcher, 3) == []
    assert caplog.text.count("looking again") == 1
    folder.mkdir()
    (folder / "a.png").write_bytes(jpeg(1))
    assert looks(watcher, 3) == ["a.png"]


async def test_new_files_of_a_watched_folder_become_samples(tmp_path: Path) -> None:
    def put(name: str, grey: int) -> None:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        Image.new("L", (28, 28), grey).save(path)

    put("old.png", 1)
    async with open_live(f"watch:{tmp_path}", MANIFEST) as live:
        put("Bag/new.png", 7)
        async with asyncio.timeout(DEADLINE_S):
            sample = await live.next()
            assert sample is not None
            assert (sample.id, sample.truth) == ("Bag/new.png", MANIFEST.labels.index("Bag"))
            assert int(sample.raw[0, 0]) == 7
            put("Bag/new.png", 8)
            again = await live.next()
        assert again is not None
        assert again.id == "Bag/new.png#2"


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not condition():
            await asyncio.sleep(0.01)


# --- mistakes


@pytest.mark.parametrize(
    ("spec", "flags", "line"),
    [
        ("shipped", {"fps": 5.0}, "--fps: expected a camera or a video, got input shipped"),
        ("shipped", {"realtime": True}, "--realtime: expected a video file, got input shipped"),
        ("mqtt:a", {"shuffle_seed": 1}, "--shuffle: expected a data set or a folder, got input mqtt:a"),
        ("watch:/no/such", {}, "input: expected watch:DIR with a folder, got /no/such"),
        ("missing.mp4", {}, "input: expected a video file, got missing.mp4, which is not there"),
    ],
)
def test_flags_that_do_not_fit_the_input_are_refused(spec: str, flags: dict[str, float], line: str) -> None:
    with pytest.raises(UsageError) as caught:
        open_any(spec, MANIFEST, **flags)
    assert str(caught.value) == line


def test_a_live_input_has_no_end_to_be_read_to() -> None:
    with pytest.raises(UsageError, match="one with an end"):
        open_input("camera", MANIFEST)


# --- video


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 real pictures at 20 a second, each recognised by its grey corner."""
    cv2 = pytest.importorskip("cv2")
    path = tmp_path_factory.mktemp("video") / "clothes.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 20.0, (56, 56))
    assert writer.isOpened()
    for index, picture in enumerate(shipped().images_NHWC[:40, ..., 0]):
        large = np.kron(picture, np.ones((2, 2), np.uint8))
        large[:16, :16] = index * 6
        writer.write(cv2.cvtColor(large, cv2.COLOR_GRAY2BGR))
    writer.release()
    return path


def number_of(pixels: np.ndarray) -> int:
    return round(float(pixels[4:12, 4:12].mean()) / 6)


def test_a_video_file_is_read_completely_and_in_order(video: Path) -> None:
    found = open_input(str(video), MANIFEST)
    samples = list(found)
    assert [number_of(sample.raw) for sample in samples] == list(range(40))
    assert [sample.id for sample in samples[:2]] == ["clothes.avi/1", "clothes.avi/2"]
    assert samples[0].raw.shape == (56, 56, 3)
    assert len(found) == 40
    assert [sample.id for sample in open_input(str(video), MANIFEST, cycle=True, limit=42)][-1] == "clothes.avi/2#2"


def test_colours_are_red_green_blue(tmp_path: Path) -> None:
    cv2 = pytest.importorskip("cv2")
    path = tmp_path / "red.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 5.0, (32, 32))
    writer.write(np.full((32, 32, 3), (0, 0, 255), np.uint8))  # OpenCV writes blue, green, red
    writer.release()
    (sample,) = open_input(str(path), MANIFEST)
    assert sample.raw[5, 5] == pytest.approx([255, 0, 0], abs=8)


@pytest.mark.parametrize(("fps", "kept"), [(5.0, [0, 4, 8]), (10.0, [0, 2, 4]), (100.0, [0, 1, 2])])
def test_frames_are_thinned_evenly(video: Path, fps: float, kept: list[int]) -> None:
    samples = open_input(str(video), MANIFEST, fps=fps, limit=3)
    assert [number_of(sample.raw) for sample in samples] == kept


async def test_a_video_in_real_time_goes_on_without_a_slow_system(video: Path) -> None:
    async with open_live(str(video), MANIFEST) as live:
        seen = []
        async with asyncio.timeout(DEADLINE_S):
            while (sample := await live.next()) is not None:
                seen.append(number_of(sample.raw))
                await until(lambda: live.came >= min(10 * len(seen), 40))
    assert live.came == 40
    assert live.taken + live.skipped == 40
    assert seen[0] <= 1
    assert seen == sorted(seen)
    assert len(seen) <= 6


async def test_a_camera_that_is_lost_is_told_once_and_comes_back(
    video: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file stands for the camera: it is missing at first, and its end is a loss."""
    attempts: list[str] = []

    def counted(target: str, fps: float | None) -> Capture:
        attempts.append(target)
        return Capture(target, fps)

    monkeypatch.setattr("source.inputs.video.Capture", counted)
    monkeypatch.setattr("source.inputs.video._BACKOFF_FIRST_S", 0.02)
    device, content = tmp_path / "device.avi", video.read_bytes()  # noqa: ASYNC240 - nothing else runs yet
    with caplog.at_level(logging.INFO):
        async with open_live(f"camera:{device}", MANIFEST, limit=2) as live:
            await until(lambda: len(attempts) >= 4)
            assert caplog.text.count("cannot be opened; trying again") == 1
            device.write_bytes(content)
            await until(lambda: "the camera is lost; trying again" in caplog.text)
            came = live.came
            await until(lambda: live.came > came)
            first, second, end = [await asyncio.wait_for(live.next(), DEADLINE_S) for _ in range(3)]
    assert first is not None
    assert second is not None
    assert end is None
    assert first.id == f"camera:{device}/{first.id.rpartition('/')[2]}"
    assert int(first.id.rpartition("/")[2]) >= 40
    assert caplog.text.count("cannot be opened") == 1
    assert caplog.text.count("gives frames") >= 2


def test_what_opencv_cannot_read_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("cv2")
    (tmp_path / "text.mp4").write_text("no video")
    with pytest.raises(UsageError, match="expected a video that OpenCV can read"):
        open_input(str(tmp_path / "text.mp4"), MANIFEST)


def test_without_the_extra_a_plain_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for opening in (partial(open_input, "a.mp4"), partial(open_live, "camera"), partial(open_live, "rtsp://cam/x")):
        with pytest.raises(UsageError, match=r"the extra 'video' \(pip install 'mdi-exit\[video\]'\), got none"):
            opening(MANIFEST)
