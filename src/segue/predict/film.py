"""Videos in, films out: one frame in memory at a time, and what was written stays when something stops the writing.

MP4 is MPEG-4 part 2 (``mp4v``), which every build of OpenCV with FFmpeg can write; GIF is written frame by frame with
Pillow, at most ``GIF_PX`` wide or high and 256 colours a frame.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import cv2
import numpy as np
from PIL import Image
from PIL.GifImagePlugin import getdata, getheader

from segue.data.errors import DataError
from segue.errors import UserError
from segue.files import remove, replacing
from segue.labels import U8
from segue.predict.draw import even, fitted

GIF_PX = 1024
LOST = 1  # frames that a container may declare too many: some count by duration
DEFAULT_FPS = 25.0
FILMS = ("mp4", "gif")


@dataclass(frozen=True)
class Video:
    """A video file: frames a second, and how many frames its header declares (0: it does not say)."""

    path: Path
    fps: float
    declared: int

    def frames(self) -> Iterator[U8]:
        """(H, W, 3) uint8 RGB, one after the other; ``DataError`` in the end when fewer could be read than declared."""
        capture = cv2.VideoCapture(str(self.path))
        number = 0
        try:
            while True:
                more, frame = capture.read()
                if not more:
                    break
                number += 1
                yield np.asarray(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB), np.uint8)
        finally:
            capture.release()
        if number < self.declared - LOST:
            raise DataError(f"{self.path} is damaged: {number} of {self.declared} frames could be read")


def open_video(path: Path) -> Video:
    """What a video declares; ``DataError`` when not one frame can be read."""
    capture = cv2.VideoCapture(str(path))
    try:
        if not capture.isOpened() or not capture.grab():
            raise DataError(f"{path} is not a video that can be decoded, or it is damaged")
        fps, declared = capture.get(cv2.CAP_PROP_FPS), capture.get(cv2.CAP_PROP_FRAME_COUNT)
    finally:
        capture.release()
    return Video(path, fps if 0 < fps < 1000 else DEFAULT_FPS, max(0, int(declared)))


@contextmanager
def film(path: Path, fps: float) -> Iterator[Callable[[U8], None]]:
    """Yields what adds a frame (H, W, 3) RGB to a new ``.mp4`` or ``.gif``; the first one gives the size.

    Whatever ends the block, the frames so far become a film that plays. ``UserError`` where no codec is there.
    """
    stop: BaseException | None = None
    with replacing(path) as temporary:
        writer = _Gif(temporary, fps) if path.suffix == ".gif" else _Mp4(temporary, fps)
        try:
            yield writer.add
        except BaseException as error:
            stop = error
        writer.close()
        if not temporary.exists():
            raise stop or DataError(f"not one frame for {path}")
    if stop is not None:
        raise stop


class _Mp4:
    def __init__(self, path: Path, fps: float) -> None:
        # FFmpeg chooses the container by the suffix
        self.path, self.part, self.fps = path, path.with_name(f"{path.name}.mp4"), fps
        self.writer: cv2.VideoWriter | None = None
        self.size = (0, 0)

    def add(self, frame: U8) -> None:
        frame = even(frame) if self.writer is None else fitted(frame, self.size)
        if self.writer is None:
            self.size = frame.shape[0], frame.shape[1]
            code = cv2.VideoWriter.fourcc(*"mp4v")
            self.writer = cv2.VideoWriter(str(self.part), code, self.fps, self.size[::-1])
            if not self.writer.isOpened():
                remove(self.part)
                raise UserError("this OpenCV can write no MP4; use --film gif")
        self.writer.write(np.ascontiguousarray(frame[:, :, ::-1]))

    def close(self) -> None:
        if self.writer is not None:
            self.writer.release()
        if self.part.exists():
            self.part.replace(self.path)


class _Gif:
    def __init__(self, path: Path, fps: float) -> None:
        self.path, self.duration_ms = path, max(20, round(100 / fps) * 10)  # GIF counts hundredths; viewers want two
        self.file: BinaryIO | None = None
        self.size = (0, 0)

    def add(self, frame: U8) -> None:
        if self.file is None:
            factor = min(1.0, GIF_PX / max(frame.shape[:2]))
            height, width = (max(2, round(side * factor)) for side in frame.shape[:2])
            self.size = height + height % 2, width + width % 2
        image = Image.fromarray(fitted(frame, self.size)).quantize(256, dither=Image.Dither.NONE)
        if self.file is None:
            self.file = self.path.open("wb")
            self.file.writelines(getheader(image.copy(), info={"loop": 0})[0])
        self.file.writelines(getdata(image, duration=self.duration_ms, include_color_table=True))

    def close(self) -> None:
        if self.file is not None:
            self.file.write(b";")
            self.file.close()
