from __future__ import annotations

from pathlib import Path

import pytest

from mdi_exit.errors import UsageError
from source.config import resolve_source
from source.input_kinds import CAMERA, FOLDER, KINDS, REQUESTS, SET, STREAM, TOPIC, VIDEO, WATCH, parse_input


@pytest.mark.parametrize(
    ("text", "kind", "target"),
    [
        ("shipped", SET, "shipped"),
        ("cifar10:20", SET, "cifar10:20"),
        ("pictures", FOLDER, "pictures"),
        ("./mqtt", FOLDER, "./mqtt"),
        ("door.MP4", VIDEO, "door.MP4"),
        ("camera", CAMERA, "0"),
        ("camera:2", CAMERA, "2"),
        ("camera:/dev/video0", CAMERA, "/dev/video0"),
        ("rtsp://10.0.0.7:554/live", STREAM, "rtsp://10.0.0.7:554/live"),
        ("https://cam.example/stream.mjpg", STREAM, "https://cam.example/stream.mjpg"),
        ("watch:inbox", WATCH, "inbox"),
        ("requests", REQUESTS, ""),
        ("mqtt:frigate/+/person/snapshot", TOPIC, "frigate/+/person/snapshot"),
    ],
)
def test_a_text_is_told_by_its_form(text: str, kind: object, target: str) -> None:
    spec = parse_input(text)
    assert (spec.kind, spec.target, str(spec)) == (kind, target, text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "watch:DIR, mqtt:TOPIC, requests"),
        ("camera:", "camera, camera:N or camera:DEVICE"),
        ("rtsp://", r"rtsp://HOST\[:PORT\]/PATH"),
        ("rtsp://cam:99999/x", "a bad port"),
        ("watch:", "watch:DIR"),
        ("mqtt:", "a topic such as frigate"),
        ("mqtt:a/#/b", "a topic such as"),
        ("mqtt:a/b+", "a topic such as"),
        ("mqtt:mdi/default/results/a", "not under mdi/"),
        ("mqtt:$SYS/#", "a topic such as"),
    ],
)
def test_what_has_no_form_is_refused(text: str, expected: str) -> None:
    with pytest.raises(UsageError, match=expected):
        parse_input(text)


def test_a_folder_named_like_a_video_is_a_folder(tmp_path: Path) -> None:
    (tmp_path / "old.mp4").mkdir()
    assert parse_input(str(tmp_path / "old.mp4")).kind is FOLDER


def test_a_cameras_password_is_never_shown(capsys: pytest.CaptureFixture[str]) -> None:
    url = "rtsp://admin:hush@cam:554/live?token=hush"
    spec = parse_input(url)
    assert spec.target == url
    assert str(spec) == "rtsp://cam:554/live"
    assert "hush" not in repr(spec)
    with pytest.raises(SystemExit):
        resolve_source(["--check", "--input", url], {})
    assert "hush" not in capsys.readouterr().out
    with pytest.raises(UsageError) as caught:
        parse_input("rtsp://admin:hush@:99999/")
    assert "hush" not in str(caught.value)


def test_the_help_names_every_form(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        resolve_source(["--help"], {})
    said = "".join(capsys.readouterr().out.split())
    for kind in KINDS:
        assert kind.form.replace(" ", "") in said
        assert kind.meaning.replace(" ", "") in said


@pytest.mark.parametrize(
    ("given", "prefix"),
    [([], None), (["--home-assistant"], "homeassistant"), (["--home-assistant", "ha/x"], "ha/x"),
     (["--home-assistant", "off"], "off")],
)  # fmt: skip
def test_home_assistants_prefix_may_be_left_out(given: list[str], prefix: str | None) -> None:
    assert resolve_source(["--input", "shipped", *given], {}).settings.home_assistant == prefix


@pytest.mark.parametrize("topic", ["mdi/x", "house/+", "a/#", "$SYS/x", "a\0b"])
def test_results_go_to_a_topic_of_the_users_own(topic: str) -> None:
    with pytest.raises(UsageError, match="--publish: expected a topic such as"):
        resolve_source(["--input", "shipped", "--publish", topic], {})


@pytest.mark.parametrize(
    ("given", "pending"),
    [(["shipped"], 512), (["camera"], 16), (["a.mp4"], 512), (["a.mp4", "--realtime"], 16),
     (["camera", "--max-pending", "3"], 3)],
)  # fmt: skip
def test_of_a_live_input_few_items_are_under_way_unless_asked(given: list[str], pending: int) -> None:
    assert resolve_source(["--input", *given], {}).settings.max_pending == pending
