"""Sound: files, rates, noise, frames; folders of words; a microphone in whose place a file plays."""

from __future__ import annotations

import asyncio
import io
import itertools
import shutil
import wave
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from tones import RATE_HZ, SPEAKERS, WORDS, tone, tones

from mdi_exit.data import splits
from mdi_exit.data.espeak import VOICES, placed, speak
from mdi_exit.data.espeak import WORDS as ENGLISH
from mdi_exit.data.noise import NOISES, Noise, noise_like, noisy, with_noise
from mdi_exit.data.sound import Clip, read_wav, resampled, wav_bytes
from mdi_exit.data.speech import from_wavs
from mdi_exit.errors import UsageError
from mdi_exit.modality.audio import AudioInput, log_mel
from mdi_exit.model.manifest import AudioSpec, InputSpec
from mdi_exit.workbench.speak import main as speak_command
from source.input_kinds import MICROPHONE, WAV, parse_input
from source.inputs.microphone import Microphone, heard

AUDIO = AudioSpec()
SPEC = InputSpec(kind="audio", shape=(20, 24), mean=(-3.0,) * 24, std=(2.0,) * 24, audio=AUDIO)


def sine(hz: float, seconds: float = 0.5, rate_hz: int = RATE_HZ, loudness: float = 8_000) -> Clip:
    time_T = np.arange(int(seconds * rate_hz)) / rate_hz
    return Clip((loudness * np.sin(2 * np.pi * hz * time_T)).astype(np.int16), rate_hz)


def peak_hz(clip: Clip) -> float:
    return float(np.abs(np.fft.rfft(clip.samples_T)).argmax() * clip.rate_hz / len(clip.samples_T))


def wav(values: bytes, *, width: int, channels: int = 1, rate_hz: int = 8_000) -> bytes:
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(width)
        file.setframerate(rate_hz)
        file.writeframes(values)
    return buffer.getvalue()


# --- files


def test_a_clip_written_is_read_back_as_it_was() -> None:
    clip = tone("high", "ann", 0.2, 0)
    again = read_wav(wav_bytes(clip))
    assert again.rate_hz == clip.rate_hz
    assert (again.samples_T == clip.samples_T).all()


@pytest.mark.parametrize("width", [1, 2, 3, 4])
def test_every_width_of_pcm_gives_the_same_loudness(width: int) -> None:
    value = {1: bytes([192]), 2: b"\x00\x40", 3: b"\x00\x00\x40", 4: b"\x00\x00\x00\x40"}[width]
    assert read_wav(wav(value * 50, width=width)).samples_T.tolist() == [0x4000] * 50


def test_two_channels_become_one() -> None:
    raw = np.array([[100, 300], [-50, 50]], "<i2").tobytes()
    assert read_wav(wav(raw, width=2, channels=2)).samples_T.tolist() == [200, 0]


def long_form(raw: bytes, kind: int) -> bytes:
    """The same file with a header of the long form, behind a chunk that means nothing; ``kind`` 1: PCM, 3: float."""
    junk, guid = b"JUNK\x03\0\0\0abc\0", bytes([kind]) + bytes.fromhex("00000000001000800000aa00389b71")
    form = b"fmt " + (40).to_bytes(4, "little") + b"\xfe\xff" + raw[22:36] + bytes([22, 0, 24, 0, 4, 0, 0, 0]) + guid
    body = b"WAVE" + junk + form + raw[36:]
    return b"RIFF" + len(body).to_bytes(4, "little") + body


def test_a_header_of_the_long_form_is_read_where_the_sound_is_pcm() -> None:
    raw = wav(b"\x00\x00\x40" * 50, width=3)
    for data in (long_form(raw, 1), memoryview(long_form(raw, 1))):
        assert read_wav(data).samples_T.tolist() == [0x4000] * 50
    with pytest.raises(ValueError, match="a WAV file of PCM"):
        read_wav(long_form(raw, 3))


@pytest.mark.parametrize("raw", [b"", b"RIFF", b"\x89PNG", wav_bytes(sine(500))[:30], wav(b"", width=2)])
def test_what_is_no_sound_is_refused(raw: bytes) -> None:
    with pytest.raises(ValueError, match="sound: expected"):
        read_wav(raw)


@pytest.mark.parametrize("rate_hz", [8_000, 22_050, 48_000])
def test_another_rate_keeps_pitch_length_and_loudness(rate_hz: int) -> None:
    clip = resampled(sine(1_000, rate_hz=rate_hz), RATE_HZ)
    assert clip.rate_hz == RATE_HZ
    assert clip.seconds == pytest.approx(0.5, abs=1e-3)
    assert peak_hz(clip) == pytest.approx(1_000, abs=2)
    assert np.abs(clip.samples_T.astype(int)).max() == pytest.approx(8_000, rel=0.05)


@pytest.mark.parametrize("kind", NOISES)
@pytest.mark.parametrize("snr_db", [20.0, 0.0, -5.0])
def test_noise_is_as_strong_as_stated(kind: Noise, snr_db: float) -> None:
    clip, others = sine(700, seconds=2, loudness=1_000), [tone("high", "ann", 0.3, 0), sine(200, rate_hz=8_000)]
    noise_T = noise_like(kind, len(clip.samples_T), clip.rate_hz, others, np.random.default_rng(1))
    added_T = noisy(clip, snr_db, noise_T).samples_T.astype(float) - clip.samples_T
    found_db = 10 * np.log10(np.mean(clip.samples_T.astype(float) ** 2) / np.mean(added_T**2))
    assert found_db == pytest.approx(snr_db, abs=0.3)


def test_pink_noise_is_as_strong_in_each_octave() -> None:
    noise_T = noise_like("pink", 65_536, RATE_HZ, [], np.random.default_rng(0))
    power_F = np.abs(np.fft.rfft(noise_T)) ** 2
    octaves = [power_F[first : 2 * first].sum() for first in (512, 2_048, 8_192)]
    assert max(octaves) / min(octaves) < 1.3


def test_a_share_of_a_set_stays_clean_and_noise_is_another_for_each_clip_and_seed(tmp_path: Path) -> None:
    dataset = from_wavs(tones(tmp_path / "tones"))[0]
    all_clean, some, other = (
        with_noise(dataset, (0, 10), (seed,), share) for seed, share in ((0, 1), (0, 0.5), (1, 0))
    )
    assert all_clean.items == dataset.items
    same = [a is b for a, b in zip(some.items, dataset.items, strict=True)]
    assert 20 < sum(same) < 52
    assert not any(a is b for a, b in zip(other.items, dataset.items, strict=True))
    assert (some.labels_N == dataset.labels_N).all()


# --- frames


def test_a_tone_is_loudest_in_the_band_that_it_lies_in() -> None:
    low, high = (int(log_mel(sine(hz), AUDIO, 20, 24).mean(0).argmax()) for hz in (400, 3_000))
    assert low < high
    assert log_mel(sine(400), AUDIO, 20, 24).shape == (20, 24)


def test_loudness_is_nothing_to_the_model_and_length_is_cut_off_at_the_most() -> None:
    loud, soft = (AudioInput(SPEC).prepared(sine(600, loudness=loudness)) for loudness in (20_000, 200))
    heard = loud > -1  # below that is what 16 bits cannot say of a soft tone
    assert heard.any()
    np.testing.assert_allclose(loud[heard], soft[heard], atol=0.05)
    assert len(AudioInput(SPEC).prepared(sine(600, seconds=0.1))) == 4
    assert len(AudioInput(SPEC).prepared(sine(600, seconds=5))) == 20
    assert len(AudioInput(SPEC).prepared(Clip(np.zeros(3, np.int16), RATE_HZ))) == 1


def test_no_frame_counts_as_padding_even_where_it_would_be_zero() -> None:
    silence = Clip(np.zeros(4_000, np.int16), RATE_HZ)
    floor = float(log_mel(silence, AUDIO, 20, 24)[0, 0])
    spec = InputSpec(kind="audio", shape=(20, 24), mean=(floor,) * 24, std=(1.0,) * 24, audio=AUDIO)
    assert AudioInput(spec).prepared(silence).any(axis=1).all()


def test_a_batch_is_padded_and_each_clip_is_in_it_as_it_is_alone() -> None:
    modality = AudioInput(SPEC)
    clips = (sine(500, seconds=0.1), sine(900, seconds=0.3))
    x_NTM = modality.batch(clips)
    for row, clip in zip(x_NTM, clips, strict=True):
        alone = modality.prepared(clip)
        assert (row[: len(alone)] == alone).all()
        assert not row[len(alone) :].any()


def test_other_things_than_sound_are_refused() -> None:
    modality = AudioInput(SPEC)
    for wrong in ("a text", np.zeros((4, 4), np.uint8)):
        with pytest.raises(UsageError, match="sound"):
            modality.prepared(wrong)
    with pytest.raises(UsageError, match="sound"):
        modality.batch(("a text",))
    for values in (np.zeros((21, 24), np.float32), np.zeros((3, 23), np.float32), np.full((3, 24), np.nan, np.float32)):
        with pytest.raises(ValueError, match="array"):
            modality.ready(values)


# --- folders


def test_words_and_voices_of_one_folder_are_split_alike(tmp_path: Path) -> None:
    folder = tones(tmp_path / "tones", clips=4)
    words, voices = (splits(f"{kind}:{folder}", seed=3) for kind in ("wav", "voices"))
    assert words.test.kind == "audio"
    assert words.test.classes == tuple(sorted(WORDS))
    assert voices.test.classes == tuple(sorted(SPEAKERS))
    for one, other in ((words.train, voices.train), (words.test, voices.test)):
        assert (one.ids_N == other.ids_N).all()
        assert (one.labels_N != other.labels_N).any()
    assert words.record.sha256 != voices.record.sha256


def test_other_labels_of_a_folder_need_no_clip_read_again(tmp_path: Path) -> None:
    words = from_wavs(tones(tmp_path / "tones"))
    voices, again = from_wavs(tmp_path / "tones", "voices", words)[0], from_wavs(tmp_path / "tones", "voices")[0]
    assert voices.items is words[0].items
    assert voices.classes == again.classes
    assert (voices.labels_N == again.labels_N).all()
    (tmp_path / "tones" / "low" / "ann_nohash_0.wav").unlink()
    with pytest.raises(UsageError, match="came or went"):
        from_wavs(tmp_path / "tones", "voices", words)


def test_a_folder_without_speakers_has_words_only(tmp_path: Path) -> None:
    (tmp_path / "yes").mkdir()
    (tmp_path / "yes" / "1.wav").write_bytes(wav_bytes(sine(500)))
    (tmp_path / "_background_noise_").mkdir()
    (tmp_path / "_background_noise_" / "rain.wav").write_bytes(b"not looked at")
    assert from_wavs(tmp_path)[0].classes == ("yes",)
    with pytest.raises(UsageError, match="_nohash_"):
        from_wavs(tmp_path, "voices")


def test_a_broken_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "yes").mkdir()
    (tmp_path / "yes" / "1.wav").write_bytes(b"RIFFWAVE")
    with pytest.raises(UsageError, match=r"1\.wav"):
        from_wavs(tmp_path)


def spoken(seconds: float, silence_s: float = 0.1) -> Clip:
    """A tone, as loud in all of it as a word, between silences."""
    word, silence_T = sine(440.0, seconds), np.zeros(int(silence_s * RATE_HZ), np.int16)
    return Clip(np.concatenate([silence_T, word.samples_T, silence_T]), RATE_HZ)


def test_a_word_stands_whole_in_a_second_of_a_quiet_room() -> None:
    clip = placed(spoken(0.4), np.random.default_rng(0))
    assert len(clip.samples_T) == RATE_HZ
    assert clip.samples_T.dtype == np.int16
    loud = np.flatnonzero(np.abs(clip.samples_T.astype(int)) > 1_000)
    first, last = loud[0], loud[-1]
    assert (last - first) / RATE_HZ == pytest.approx(0.4, abs=0.005)
    room_T = np.concatenate([clip.samples_T[: first - 100], clip.samples_T[last + 100 :]]).astype(float)
    room = float(np.sqrt((room_T**2).mean()))
    assert -71 < 20 * np.log10(room / 2**15) < -54
    word_T = sine(440.0, 0.4).samples_T.astype(float)
    apart = min(
        np.abs(clip.samples_T[at : at + len(word_T)] - word_T).max()
        for at in range(max(first - 50, 0), min(first + 50, RATE_HZ - len(word_T)))
    )
    assert apart < 6 * room


def test_the_seed_says_where_a_word_stands() -> None:
    def begin(seed: int) -> int:
        clip = placed(spoken(0.4), np.random.default_rng(seed))
        return int(np.flatnonzero(np.abs(clip.samples_T.astype(int)) > 1_000)[0])

    begins = [begin(seed) for seed in range(40)]
    assert begins == [begin(seed) for seed in range(40)]
    assert min(begins) < 0.15 * RATE_HZ
    assert max(begins) > 0.45 * RATE_HZ


def test_a_longer_word_stands_alone() -> None:
    clip = placed(spoken(1.5, silence_s=0.5), np.random.default_rng(0))
    assert clip.seconds == pytest.approx(1.5, abs=0.005)
    assert np.abs(clip.samples_T[: RATE_HZ // 100].astype(int)).max() > 4_000


def test_silence_becomes_a_quiet_room() -> None:
    clip = placed(Clip(np.zeros(4_000, np.int16), RATE_HZ), np.random.default_rng(0))
    assert len(clip.samples_T) == RATE_HZ
    assert 0 < np.abs(clip.samples_T.astype(int)).max() < 500


@pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="needs the program espeak-ng")
def test_espeak_says_words_by_each_voice_and_what_is_there_stays(tmp_path: Path) -> None:
    assert speak(tmp_path, 2, seed=0, words=ENGLISH[:3]) == 3 * 2 * len(VOICES["usual"].names)
    assert speak(tmp_path, 2, seed=0, words=ENGLISH[:3]) == 0
    with pytest.raises(UsageError, match="--out"):
        speak(next(tmp_path.rglob("*.wav")), 1, seed=0)
    dataset, _ = from_wavs(tmp_path, "voices")
    assert len(dataset.classes) == len(VOICES["usual"].names)
    assert all(isinstance(clip, Clip) and 0.1 < clip.seconds < 3 for clip in dataset.items)


def test_other_voices_share_no_variant_with_the_usual_ones() -> None:
    usual, others = ({name.partition("+")[2] for name in VOICES[of].names} for of in ("usual", "others"))
    assert len(usual) == len(others) == 20
    assert not usual & others


@pytest.mark.parametrize("kind", ["others", "flite"])
def test_other_voices_say_the_words_too(kind: str, tmp_path: Path) -> None:
    voices = VOICES[kind]
    if shutil.which(voices.program) is None:
        pytest.skip(f"needs the program {voices.program}")
    assert speak(tmp_path, 1, seed=0, words=ENGLISH[:2], voices=voices) == 2 * len(voices.names)
    dataset, _ = from_wavs(tmp_path, "voices")
    assert len(dataset.classes) == len(voices.names)
    assert len({clip.samples_T.tobytes() for clip in dataset.items if isinstance(clip, Clip)}) == len(dataset)


def test_voices_that_there_are_not_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--voices"):
        speak_command(["--out", str(tmp_path), "--voices", "mine"])


# --- inputs


def test_forms_of_inputs() -> None:
    assert parse_input("wav:here").kind is WAV
    assert parse_input("microphone").target == ""
    assert parse_input("microphone:2").kind is MICROPHONE
    for wrong in ("wav:", "microphone:"):
        with pytest.raises(UsageError):
            parse_input(wrong)


class Played:
    """A clip in the place of a microphone."""

    def __init__(self, clip: Clip) -> None:
        self._left = clip.samples_T

    def read(self, count: int) -> tuple[NDArray[np.int16], bool]:
        now, self._left = self._left[:count], self._left[count:]
        return now[:, None], False


async def heard_of(*parts: NDArray[np.int16]) -> list[Clip]:
    """What a microphone makes of the parts, one after the other, whatever is still waiting for its turn."""

    @contextmanager
    def opened() -> Iterator[Played]:
        yield Played(Clip(np.concatenate(parts), RATE_HZ))

    windows: list[Clip] = []
    live = heard(Microphone("file", RATE_HZ, opened), SPEC)
    live.offer = lambda frame: windows.append(frame.read())  # type: ignore[method-assign]
    async with asyncio.timeout(20), live:
        assert await live.next() is None
    return windows


def quiet(seconds: float) -> NDArray[np.int16]:
    return np.zeros(round(seconds * RATE_HZ), np.int16)


def fan(seconds: float) -> NDArray[np.int16]:
    return np.random.default_rng(0).normal(0, 300, round(seconds * RATE_HZ)).astype(np.int16)


WINDOW_S = 0.405  # of SPEC


async def test_a_microphone_gives_a_sound_whole_with_a_little_before_it() -> None:
    tone = sine(800, seconds=0.3).samples_T
    sound = (quiet(1.0), tone, quiet(1.0), tone, quiet(0.01))
    off_zero = [part + np.int16(300) for part in sound]  # louder than silence, were it not always the same
    whole, last = await heard_of(*off_zero)
    assert whole.seconds == pytest.approx(WINDOW_S)
    begin = np.flatnonzero(whole.samples_T != 300)[0] / RATE_HZ
    assert 0.2 * WINDOW_S - 0.001 <= begin <= 0.2 * WINDOW_S + 0.051  # to a block of 0.05 s
    assert begin + 0.3 < WINDOW_S
    assert peak_hz(whole) == pytest.approx(800, abs=5)
    assert len(AudioInput(SPEC).prepared(whole)) == SPEC.shape[0]
    assert 0.3 < last.seconds <= WINDOW_S  # the sound ended before the window did


async def test_while_a_sound_goes_on_windows_overlap_by_half() -> None:
    rising = np.concatenate([sine(hz, seconds=0.1).samples_T for hz in range(500, 1500, 100)])
    windows = await heard_of(quiet(0.5), rising, quiet(0.5))
    assert len(windows) == 5
    half = round(WINDOW_S * RATE_HZ) // 2
    for before, after in itertools.pairwise(windows):
        assert np.array_equal(before.samples_T[half:][:half], after.samples_T[:half])


async def test_what_a_room_sounds_like_all_the_time_is_silence_and_a_word_in_it_is_not() -> None:
    assert len(await heard_of(fan(10.0))) < 20  # of 49 windows: it takes some seconds until the room is known
    known = len(await heard_of(fan(6.0)))
    windows = await heard_of(fan(6.0), fan(0.3) + sine(800, seconds=0.3).samples_T, fan(2.0))
    assert len(windows) == known + 1
    assert peak_hz(windows[-1]) == pytest.approx(800, abs=5)


async def test_a_microphone_that_fails_ends_the_input_in_one_line() -> None:
    @contextmanager
    def opened() -> Iterator[Played]:
        raise RuntimeError("unplugged")
        yield Played(sine(1))

    async with asyncio.timeout(20), heard(Microphone("file", RATE_HZ, opened), SPEC) as live:
        with pytest.raises(Exception, match="input file: unplugged"):
            await live.next()
