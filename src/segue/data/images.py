"""Image files to arrays and back.

Pictures are RGB uint8 (H, W, 3), with the EXIF orientation applied (what annotation tools show). Labels keep the
numbers of the file: palette PNGs are read as indices, 16-bit and multi-channel files unchanged.
A file that ends early is an error even where the decoder would return the part that it could read.
"""

from __future__ import annotations

import io
import struct
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from segue.data.errors import DataError
from segue.data.store import File
from segue.files import replacing
from segue.labels import IGNORE, U8

Size = tuple[int, int]

MAX_PIXELS = Image.MAX_IMAGE_PIXELS or 89_478_485
"""A picture that declares more is refused before memory is asked for it; Pillow's own bound (9459 x 9459)."""

PNG = b"\x89PNG\r\n\x1a\n"
_JPEG = b"\xff\xd8\xff"
_PALETTE = 3


def read_rgb(path: Path | File) -> U8:
    """A picture as (H, W, 3) uint8 RGB; 16-bit files are scaled to 8. ``DataError`` when it cannot be read whole."""
    data = _whole(path)
    image = _decode(path, data, cv2.IMREAD_COLOR)
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB, dst=image), np.uint8)


def read_ids(path: Path | File, channel: int | None = None) -> npt.NDArray[Any]:
    """A label file as (H, W) uint8 or uint16 numbers. ``channel``: 0 red, 1 green, 2 blue, 3 alpha of a colour file."""
    data = _whole(path)
    if _indexed(data):
        return _with_pillow(path, data)
    ids = _decode(path, data, cv2.IMREAD_UNCHANGED)
    if ids.dtype not in (np.uint8, np.uint16):
        raise DataError(f"{path}: labels are whole numbers of 8 or 16 bits, this file holds {ids.dtype}")
    channels = 1 if ids.ndim == 2 else ids.shape[2]
    if channels == 1:
        return np.ascontiguousarray(ids.reshape(ids.shape[:2]))
    if channel is None:
        raise DataError(f"{path}: a label with {channels} channels; say which one holds the ids ('channel: 0' is red)")
    if channel >= channels:
        raise DataError(f"{path}: 'channel: {channel}' asked for, but the label has {channels} channels")
    # cv2 hands out blue, green, red(, alpha)
    return np.ascontiguousarray(ids[:, :, 2 - channel if channel < 3 else channel])


def write_image(path: Path, image: npt.NDArray[Any], quality: int = 95) -> None:
    """Store (H, W) or RGB (H, W, 3) as the suffix says, under a temporary name first: nobody reads half a file."""
    data = encode(image, path.suffix, quality)
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def encode(image: npt.NDArray[Any], suffix: str, quality: int = 95) -> bytes:
    """(H, W) or RGB (H, W, 3) as the bytes of a ``.png`` or ``.jpg`` file; ``quality`` 1..100 is for JPEG."""
    options = [cv2.IMWRITE_JPEG_QUALITY, quality] if suffix.lower() in (".jpg", ".jpeg") else []
    bgr = image if image.ndim == 2 else np.ascontiguousarray(image[:, :, ::-1])
    ok, data = cv2.imencode(suffix, bgr, options)
    if not ok:
        raise DataError(f"cannot encode an image of shape {image.shape} as {suffix!r}")
    return bytes(data)


def resize_image(image: U8, size: Size) -> U8:
    """To (height, width): bilinear with half-pixel centres; area averaging where both sides shrink (no aliasing).

    At a factor of exactly 2 the two are the same, so Cityscapes at 512x1024 equals the published pipelines.
    """
    if image.shape[:2] == size:
        return image
    shrinks = size[0] <= image.shape[0] and size[1] <= image.shape[1]
    method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(image, size[::-1], interpolation=method), np.uint8)


def resize_label(label: U8, size: Size) -> U8:
    """To (height, width): nearest pixel centre, aligned with :func:`resize_image` (cv2's INTER_NEAREST is not)."""
    if label.shape == size:
        return label
    rows, columns = nearest_index(label.shape[0], size[0]), nearest_index(label.shape[1], size[1])
    out: U8 = label.take(rows, 0).take(columns, 1)
    return out


def nearest_index(source: int, target: int, start: int = 0, count: int | None = None) -> npt.NDArray[np.intp]:
    """Source pixel under the centre of each of the target pixels ``start .. start+count`` (default: all of them)."""
    steps = np.arange(start, target if count is None else start + count, dtype=np.intp)
    out: npt.NDArray[np.intp] = (2 * steps + 1) * source // (2 * target)
    return out


def _whole(path: Path | File) -> bytes:
    """Bytes of an image file; ``DataError`` when it is missing, empty or ends early."""
    try:
        data = path.read() if isinstance(path, File) else path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
    if not data:
        raise DataError(f"{path} is empty (0 bytes): fetch or unpack it again")
    height, width = declared_size(data)
    if height * width > MAX_PIXELS:
        raise DataError(
            f"{path} declares {width}x{height} pixels, more than {MAX_PIXELS} are not read: its header is damaged, or "
            f"the picture has to be cut into parts"
        )
    # Decoders may return the readable part of a cut file; the end mark is the cheap and certain sign (PNG), and for
    # JPEG, where cameras may write data after it, its absence is only the reason to decode strictly.
    if data.startswith(PNG) and b"IEND" not in data[-64:]:
        raise DataError(f"{path} ends early (truncated PNG, {len(data)} bytes): fetch or unpack it again")
    if data.startswith(_JPEG) and b"\xff\xd9" not in data[-64:]:
        _with_pillow(path, data)
    return data


def declared_size(data: bytes) -> Size:
    """(height, width) by the header alone, nothing is decoded; (0, 0) when there is no header that can be read."""
    if data.startswith(PNG) and len(data) >= 24:
        width, height = struct.unpack(">II", data[16:24])
        return height, width
    if data.startswith(_JPEG):
        return _declared_jpeg(data)
    try:
        with Image.open(io.BytesIO(data)) as image:
            return image.height, image.width
    except Image.DecompressionBombError:
        return 2**31, 2**31
    except (OSError, SyntaxError, ValueError):
        return 0, 0


def _declared_jpeg(data: bytes) -> Size:
    at = 2
    while at + 9 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):  # a frame header
            height, width = struct.unpack(">HH", data[at + 5 : at + 9])
            return height, width
        # a marker that stands alone or is preceded by filling has no length
        alone = marker in (0x01, 0xFF) or 0xD0 <= marker <= 0xD8
        at += (1 if marker == 0xFF else 2) if alone else 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return 0, 0


def _decode(path: Path | File, data: bytes, flags: int) -> npt.NDArray[Any]:
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error:
        image = None
    if image is None:
        raise _unreadable(path, data)
    return np.asarray(image)


def _with_pillow(path: Path | File, data: bytes) -> npt.NDArray[Any]:
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            pixels = np.asarray(image)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise _unreadable(path, data) from error
    if not _indexed(data) or data[25] == _PALETTE:
        return pixels
    # Pillow spreads grey levels of 1, 2 and 4 bits over 0..255; labels need the numbers themselves
    return pixels.astype(np.uint8) // (1 if data[24] == 1 else IGNORE // (2 ** data[24] - 1))


def _indexed(data: bytes) -> bool:
    """Whether a PNG has a palette, or grey levels of less than 8 bits: what cv2 would turn into colours."""
    return data.startswith(PNG) and len(data) > 26 and (data[25] == _PALETTE or data[24] < 8)


def _unreadable(path: Path | File, data: bytes) -> DataError:
    kind = "PNG" if data.startswith(PNG) else "JPEG" if data.startswith(_JPEG) else None
    if kind is None:
        return DataError(f"{path} is not an image that can be decoded (it starts with {data[:8]!r})")
    return DataError(f"{path} is a damaged {kind} file ({len(data)} bytes): fetch or unpack it again")
