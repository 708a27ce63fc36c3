"""Inputs and outputs of a real source: images by MQTT, a watched folder, a network camera; results on a topic and as CSV."""

from __future__ import annotations

import csv
import http.server
import io
import json
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from live import Listener, System, until
from PIL import Image

from broker.embedded import free_port
from mdi_exit.data import shipped

pytestmark = pytest.mark.broker

WHOLE = ("--layers", "0-8")
SYSTEM_PYTHON = "/usr/bin/python3"
RTSP_SERVER = """
import gi, sys
gi.require_version("Gst", "1.0"); gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtspServer
Gst.init(None)
server, factory = GstRtspServer.RTSPServer(), GstRtspServer.RTSPMediaFactory()
server.set_address("127.0.0.1"); server.set_service(sys.argv[1])
factory.set_launch("( videotestsrc is-live=true ! video/x-raw,format=I420,width=160,height=120,framerate=15/1"
                   " ! jpegenc ! rtpjpegpay name=pay0 pt=26 )")
factory.set_shared(True)
server.get_mount_points().add_factory("/cam", factory); server.attach(None)
print("up", flush=True); GLib.MainLoop().run()
"""


def jpeg(index: int) -> bytes:
    content = io.BytesIO()
    Image.fromarray(shipped().images_NHWC[index, ..., 0]).resize((112, 112)).save(content, "JPEG", quality=95)
    return content.getvalue()


def test_images_on_a_topic_are_classified_and_published(mosquitto: Any, system: System) -> None:
    table = system.folder / "results.csv"
    with Listener(mosquitto.url, "house/labels") as labels:
        source = system.source("--input", "mqtt:frigate/+/person/snapshot", *WHOLE, "--limit", "4", "--publish",
                               "house/labels", "--publish-qos", "1", "--results", str(table))  # fmt: skip
        source.until_says("all layers are held")
        for number in range(4):
            labels.publish("frigate/front/person/snapshot", b"no picture")
            labels.publish("frigate/front/bicycle/snapshot", jpeg(number))
            labels.publish("frigate/front/person/snapshot", jpeg(number))
            until(lambda wanted=number + 1: len(labels.messages) >= wanted, lambda: f"a label\n{source.log}")
        assert source.until_ends() == 0, source.log
        answers = [json.loads(payload) for payload in labels.on("house/labels")]
        assert not any(retain for _, _, retain in labels.messages)
    assert [answer["id"] for answer in answers] == [f"frigate/front/person/snapshot/{n}" for n in (2, 4, 6, 8)]
    truths = shipped().labels_N[:4].tolist()
    assert sum(answer["label"] == truth for answer, truth in zip(answers, truths, strict=True)) >= 3
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["id"], int(row["label"])) for row in rows] == [(answer["id"], answer["label"]) for answer in answers]
    assert "passed over: image: expected a file of JPEG" in source.log
    assert source.summary["completed"] == 4


def test_a_watched_folder_never_ends_and_stops_when_told(system: System, tmp_path: Path) -> None:
    inbox = tmp_path / "inbox"
    inbox.mkdir()
    (inbox / "old.jpg").write_bytes(jpeg(0))
    source = system.source("--input", f"watch:{inbox}", *WHOLE)
    source.until_says("1 already there are left alone")
    for number in range(3):
        (inbox / f"{number}.jpg").write_bytes(jpeg(number))
        source.until_results(number + 1)
    assert source.stop() == 0, source.log
    assert [row["id"] for row in source.rows] == ["0.jpg", "1.jpg", "2.jpg"]


class _Pictures(http.server.BaseHTTPRequestHandler):
    """A network camera that hangs up after 20 pictures."""

    connections = 0
    gone = threading.Event()

    def do_GET(self) -> None:
        type(self).connections += 1
        self.send_response(200)
        self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
        self.end_headers()
        try:
            for number in range(20):
                body = jpeg(number)
                head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(body)}\r\n\r\n"
                self.wfile.write(head.encode() + body + b"\r\n")
                if self.gone.wait(0.02):
                    return
        except OSError:
            return

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def network_camera() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Pictures)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/stream.mjpg"
    _Pictures.gone.set()
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_network_camera_that_hangs_up_is_connected_again(system: System, network_camera: str) -> None:
    pytest.importorskip("cv2")
    source = system.source("--input", network_camera.replace("//", "//me:hush@"), *WHOLE, "--fps", "20")
    source.until_says("the stream is lost; trying again")
    source.until_says("the stream gives frames", times=2)
    count = len(source.rows)
    source.until_results(count + 2)
    assert source.stop() == 0, source.log
    assert "hush" not in source.log
    assert _Pictures.connections >= 2
    assert all(row["id"].startswith(f"{network_camera}/") for row in source.rows)
    numbers = [int(row["id"].rpartition("/")[2]) for row in source.rows]
    assert numbers == sorted(set(numbers))
    assert source.summary["admitted"] == len(source.rows)


def has_rtsp_server() -> bool:
    check = "import gi; gi.require_version('GstRtspServer', '1.0'); from gi.repository import GstRtspServer"
    python = shutil.which(SYSTEM_PYTHON)
    return (
        python is not None and subprocess.run([python, "-c", check], capture_output=True, check=False).returncode == 0
    )


def test_an_rtsp_camera_is_followed_and_waited_for(system: System) -> None:
    pytest.importorskip("cv2")
    if not has_rtsp_server():
        pytest.skip("needs GStreamer's RTSP server (gir1.2-gst-rtsp-server-1.0, gstreamer1.0-plugins-good)")
    port = free_port()
    source = system.source("--input", f"rtsp://127.0.0.1:{port}/cam", *WHOLE)
    source.until_says("the stream cannot be opened; trying again")
    camera = [SYSTEM_PYTHON, "-c", RTSP_SERVER, str(port)]
    with subprocess.Popen(camera, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as server:
        source.until_results(10)
        server.kill()
        server.wait()
        source.until_says("the stream is lost; trying again")
    assert source.stop() == 0, source.log
    assert len({row["label"] for row in source.rows}) == 1
    assert source.summary["completed"] == len(source.rows)


def test_a_slow_system_keeps_up_with_a_video_in_real_time_by_passing_frames_over(
    system: System, tmp_path: Path
) -> None:
    cv2 = pytest.importorskip("cv2")
    video = tmp_path / "fast.avi"
    writer = cv2.VideoWriter(str(video), cv2.VideoWriter_fourcc(*"MJPG"), 60.0, (28, 28))
    for picture in shipped().images_NHWC[:120, ..., 0]:
        writer.write(np.repeat(picture[..., None], 3, axis=2))
    writer.release()
    source = system.source("--input", str(video), "--realtime", *WHOLE, "--profile", "raspberry-pi-4x0.5")
    assert source.until_ends() == 0, source.log
    summary = source.summary
    assert 0 < summary["admitted"] == summary["completed"] < 60
    assert summary["refused"] > 0
    assert summary["admitted"] + summary["refused"] <= 120
    numbers = [int(row["id"].rpartition("/")[2]) for row in source.rows]
    assert numbers[-1] > 80  # not behind
