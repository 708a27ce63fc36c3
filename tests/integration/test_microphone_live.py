"""A live microphone through PortAudio and ALSA: a sink of PulseAudio is the room, what listens to it the microphone."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="needs the extra 'torch'")
try:
    import sounddevice  # noqa: F401
except (ImportError, OSError):  # the package, the library PortAudio
    pytest.skip("needs the extra 'audio' and PortAudio (Debian: libportaudio2)", allow_module_level=True)

import numpy as np
from live import System, environment, until
from tones import RATE_HZ, WORDS, speech_artifacts, tone

from mdi_exit.data.sound import Clip, wav_bytes

pytestmark = pytest.mark.broker

_PLUGINS = "*/alsa-lib/libasound_module_pcm_pulse.so"


@contextmanager
def sound_server(folder: Path) -> Iterator[dict[str, str]]:
    """PulseAudio with one room; yields the environment in which the default microphone hears what is played there."""
    socket = folder / "socket"
    (folder / "asound.conf").write_text(
        f'pcm.!default {{ type pulse\n server "unix:{socket}"\n device "room.monitor" }}\n'
        f'ctl.!default {{ type pulse\n server "unix:{socket}" }}\n'
    )
    own = {"HOME": str(folder), "XDG_RUNTIME_DIR": str(folder), "PULSE_RUNTIME_PATH": str(folder)}
    server = subprocess.Popen(
        ["pulseaudio", "-n", "--daemonize=no", "--exit-idle-time=-1", "--use-pid-file=no", "--disable-shm=yes",
         "-L", f"module-null-sink sink_name=room rate={RATE_HZ} channels=1 format=s16le",
         "-L", f"module-native-protocol-unix auth-anonymous=1 socket={socket}"],
        env={**environment(), **own}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        until(socket.exists, lambda: "PulseAudio listens")
        yield {
            "PULSE_SERVER": f"unix:{socket}",
            "ALSA_CONFIG_PATH": f"/usr/share/alsa/alsa.conf:{folder / 'asound.conf'}",
        }
    finally:
        server.terminate()
        server.wait(20)


def test_each_sound_is_one_item(system: System, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if shutil.which("pulseaudio") is None or shutil.which("paplay") is None:
        pytest.skip("needs pulseaudio and paplay (Debian: pulseaudio, pulseaudio-utils)")
    if not list(Path("/usr/lib").glob(_PLUGINS)):
        pytest.skip("needs ALSA's way to PulseAudio (Debian: libasound2-plugins)")
    made = speech_artifacts(tmp_path)
    (tmp_path / "sound").mkdir()
    with sound_server(tmp_path / "sound") as there:
        for name, value in there.items():
            monkeypatch.setenv(name, value)
        source = system.source("--model", str(made / "keyword"), "--layers", "0-2", "--input", "microphone")
        source.until_says("all layers are held")
        gap = np.zeros(RATE_HZ, np.int16)
        said = [*WORDS, *WORDS]
        parts = [part for word in said for part in (gap, tone(word, "ann", 0.12, 0).samples_T)]
        (tmp_path / "said.wav").write_bytes(wav_bytes(Clip(np.concatenate((*parts, gap)), RATE_HZ)))
        subprocess.run(
            ["paplay", "--device=room", str(tmp_path / "said.wav")], env=dict(os.environ), check=True, timeout=60
        )
        source.until_results(len(said))
        source.signal(2)
        assert source.until_completed()["errors"] == 0
    assert [row["id"] for row in source.rows] == [f"microphone/{number}" for number in range(1, len(said) + 1)]
    assert [row["label_name"] for row in source.rows] == said
