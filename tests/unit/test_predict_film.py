"""Videos in and films out, with generated clips."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from helpers.toys import SPACE, Pictures, Toy
from segue.data.errors import DataError
from segue.errors import UserError
from segue.labels import load_space
from segue.predict import Look, Network, predict_folder
from segue.predict.film import film, open_video

SIZE = (48, 64)


def _frames(number: int, size: tuple[int, int] = SIZE) -> list[np.ndarray]:
    return Pictures(*[size] * number, seed=3).images


def _clip(path: Path, number: int = 5, code: str = "mp4v") -> Path:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*code), 10, SIZE[::-1])
    assert writer.isOpened()
    for frame in _frames(number):
        writer.write(np.ascontiguousarray(frame[:, :, ::-1]))
    writer.release()
    return path


def _decoded(path: Path) -> list[np.ndarray]:
    capture, out = cv2.VideoCapture(str(path)), []
    while (got := capture.read())[0]:
        out.append(got[1][:, :, ::-1])
    capture.release()
    return out


def test_frames_as_ids(tmp_path: Path) -> None:
    clip, calls = _clip(tmp_path / "drive.mp4"), []
    model = Toy()
    outcome = predict_folder(
        model, SPACE, clip, tmp_path / "out", format="trainid", progress=lambda d, t: calls.append((d, t))
    )
    names = [p.relative_to(tmp_path / "out").as_posix() for p in outcome.written]
    assert names == [f"drive/{n:06d}.png" for n in range(1, 6)]
    assert calls == [(n, 5) for n in range(6)]
    for path, frame in zip(outcome.written, _decoded(clip), strict=True):
        assert np.array_equal(np.asarray(Image.open(path)), Network((model,)).predict(np.ascontiguousarray(frame)))
    outcome.written[2].unlink()
    again = predict_folder(model, SPACE, clip, tmp_path / "out", format="trainid", skip_existing=True)
    assert again.written == [outcome.written[2]] and again.skipped == 4


def test_video_becomes_a_film_of_the_same_pace(tmp_path: Path) -> None:
    clip, model = _clip(tmp_path / "drive.mp4"), Toy()
    for side_by_side, width in ((False, SIZE[1]), (True, 2 * SIZE[1] + 4)):
        out = tmp_path / str(side_by_side)
        look = Look(side_by_side=side_by_side)
        assert predict_folder(model, SPACE, clip, out, look=look).written == [out / "drive.mp4"]
        made = open_video(out / "drive.mp4")
        frames = list(made.frames())
        assert (made.fps, len(frames), frames[0].shape[1]) == (10, 5, width)
        expected = SPACE.colorize(Network((model,)).predict(np.ascontiguousarray(_decoded(clip)[4])))
        assert np.abs(frames[4][-SIZE[0] :, -SIZE[1] :].astype(int) - expected).mean() < 25  # lossy
        assert sorted(p.name for p in out.iterdir()) == ["drive.mp4"]
    assert predict_folder(model, SPACE, clip, out, look=look, skip_existing=True).skipped == 1
    with pytest.raises(UserError, match="would replace"):
        predict_folder(model, SPACE, clip, tmp_path)
    with pytest.raises(UserError, match="no Cityscapes names"):
        predict_folder(Toy(classes=19), load_space("cityscapes19"), clip, out, format="cityscapes")
    with pytest.raises(UserError, match="goes with images"):
        predict_folder(model, SPACE, clip, out, ground_truth=tmp_path)


def test_gif_shows_every_frame_exactly_and_repeats(tmp_path: Path) -> None:
    clip, model = _clip(tmp_path / "drive.mp4"), Toy()
    made = []
    for out in ("one", "two"):
        predict_folder(model, SPACE, clip, tmp_path / out, look=Look(film="gif"))
        made.append((tmp_path / out / "drive.gif").read_bytes())
    assert made[0] == made[1]
    with Image.open(tmp_path / "one/drive.gif") as gif:
        assert gif.n_frames == 5 and gif.info["duration"] == 100 and gif.info["loop"] == 0
        for number, frame in enumerate(_decoded(clip)):
            gif.seek(number)
            expected = SPACE.colorize(Network((model,)).predict(np.ascontiguousarray(frame)))
            assert np.array_equal(np.asarray(gif.convert("RGB")), expected)


def test_folder_as_film_fits_pictures_of_other_sizes(tmp_path: Path) -> None:
    for name, size in {"a": (41, 51), "b": (80, 60), "c": (41, 51)}.items():
        (tmp_path / "frames").mkdir(exist_ok=True)
        Image.fromarray(_frames(1, size)[0]).save(tmp_path / f"frames/{name}.png")
    for kind in ("mp4", "gif"):
        outcome = predict_folder(Toy(), SPACE, tmp_path / "frames", tmp_path / "out", look=Look(film=kind, fps=4))
        assert outcome.written == [tmp_path / f"out/frames.{kind}"]
    assert [f.shape for f in _decoded(tmp_path / "out/frames.mp4")] == [(42, 52, 3)] * 3
    with Image.open(tmp_path / "out/frames.gif") as gif:
        assert (gif.n_frames, gif.size, gif.info["duration"]) == (3, (52, 42), 250)


@pytest.mark.parametrize("kind", ["mp4", "gif"])
def test_a_stopped_film_plays_as_far_as_it_got(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"cut.{kind}"
    with pytest.raises(KeyboardInterrupt), film(path, 5) as add:
        for frame in _frames(3):
            add(frame)
        raise KeyboardInterrupt
    assert len(_decoded(path)) == 3 and [p.name for p in tmp_path.iterdir()] == [path.name]
    with pytest.raises(UserError, match="not one frame"), film(tmp_path / f"none.{kind}", 5):
        pass
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_interrupted_frames_stay(tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    clip = _clip(tmp_path / "drive.mp4")
    with pytest.raises(KeyboardInterrupt):
        predict_folder(Toy(), SPACE, clip, tmp_path / "out", format="labelid", progress=stop)
    assert sorted(p.name for p in (tmp_path / "out/drive").iterdir()) == ["000001.png", "000002.png"]


def test_damaged_videos_are_named(tmp_path: Path) -> None:
    whole = _clip(tmp_path / "whole.avi", 40, "MJPG").read_bytes()
    for name, data in {
        "cut.avi": whole[: len(whole) // 2],
        "head.mp4": b"\0\0\0\x18ftypmp42",
        "empty.mov": b"",
    }.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(DataError, match=name.replace(".", r"\.")) as caught:
            predict_folder(Toy(), SPACE, tmp_path / name, tmp_path / "out", format="trainid")
        if name == "cut.avi":
            assert "frames could be read" in str(caught.value)
            assert 10 < len(list((tmp_path / "out/cut").iterdir())) < 39


def test_no_codec_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cv2.VideoWriter, "isOpened", lambda self: False)
    with pytest.raises(UserError, match="--film gif"), film(tmp_path / "a.mp4", 5) as add:
        add(_frames(1)[0])
    assert not list(tmp_path.iterdir())
