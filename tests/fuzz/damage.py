"""Damaged and unusual files, drawn from a seed. Written without the code under test: only Pillow, zlib and struct."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

Rng = np.random.Generator
SIZE = (32, 40)

NAMED = "named"
"""Every reader must refuse the file by name."""
CHECKED = "checked"
"""``data check`` must name it; readers may take it, as what it shows is whole."""
LEGAL = "legal"
"""Unusual, and nobody may complain."""
EITHER = "either"
"""Depends on what was hit; who complains must do it properly."""


@dataclass(frozen=True)
class Damage:
    """``make(rng)`` is the content of a file; ``role`` image or label, ``suffix`` of its name."""

    name: str
    role: str
    suffix: str
    expect: str
    make: Callable[[Rng], bytes]


def picture() -> np.ndarray[Any, Any]:
    """A gradient with some noise: it compresses, and every row differs."""
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    noise = np.random.default_rng(7).integers(0, 40, (*SIZE, 3))
    return np.clip(np.stack([8 * x, 10 * y, 4 * (x + y)], -1) + noise - 20, 0, 255).astype(np.uint8)


def ids() -> np.ndarray[Any, Any]:
    """Label ids 1, 2 and 7 in blocks."""
    out = np.full(SIZE, 1, np.uint8)
    out[: SIZE[0] // 2] = 2
    out[:2, :5] = 7
    return out


def saved(image: Image.Image, format: str, **options: Any) -> bytes:
    """An image as a file's bytes."""
    stream = io.BytesIO()
    image.save(stream, format=format, **options)
    return stream.getvalue()


PNG = saved(Image.fromarray(picture()), "PNG")
JPG = saved(Image.fromarray(picture()), "JPEG", quality=90)
LABEL = saved(Image.fromarray(ids()), "PNG")


def _palette() -> bytes:
    image = Image.frombytes("P", SIZE[::-1], ids().tobytes())
    image.putpalette([v for i in range(256) for v in (i, 255 - i, i // 2)])
    return saved(image, "PNG")


PALETTE = _palette()


def cut(data: bytes, rng: Rng, least: int = 1) -> bytes:
    """The first bytes; at least ``least`` are gone."""
    return data[: int(rng.integers(1, len(data) - least))]


def flip(data: bytes, rng: Rng) -> bytes:
    """One bit is another."""
    out = bytearray(data)
    out[int(rng.integers(len(out)))] ^= 1 << int(rng.integers(8))
    return bytes(out)


def overwrite(data: bytes, rng: Rng) -> bytes:
    """A block of random bytes, as a bad sector or a broken download leaves."""
    out = bytearray(data)
    start = int(rng.integers(len(out)))
    block = rng.bytes(int(rng.integers(1, 64)))
    out[start : start + len(block)] = block[: len(out) - start]
    return bytes(out)


def chunk(kind: bytes, data: bytes) -> bytes:
    """A PNG chunk."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_header(width: int, height: int, bits: int = 8, color: int = 2) -> bytes:
    """A PNG that declares a size and holds hardly anything."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, color, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")


def jpg_header(width: int, height: int) -> bytes:
    """A JPEG whose frame header declares another size."""
    out = bytearray(JPG)
    at = out.index(b"\xff\xc0")
    out[at + 5 : at + 9] = struct.pack(">HH", height, width)
    return bytes(out)


def bmp_header(width: int, height: int) -> bytes:
    """A BMP that declares a size."""
    out = bytearray(saved(Image.fromarray(picture()), "BMP"))
    out[18:26] = struct.pack("<ii", width, height)
    return bytes(out)


def _short_palette() -> bytes:
    """A palette PNG of 8 bits with two colours and the indices 1, 2 and 7."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", SIZE[1], SIZE[0], 8, 3, 0, 0, 0))
    rows = b"".join(b"\0" + row.tobytes() for row in ids())
    parts = chunk(b"PLTE", bytes(6)) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + header + parts


HUGE: list[Callable[[Rng], bytes]] = [
    lambda rng: png_header(int(rng.integers(20_000, 2**31)), int(rng.integers(20_000, 2**31))),
    lambda rng: png_header(30_000, 30_000),
    lambda rng: png_header(2**31 - 1, 1),
    lambda rng: png_header(60_000, 60_000, 16, 6),
    lambda rng: png_header(60_000, 60_000, 8, 0),
    lambda rng: jpg_header(65_500, 65_500),
    lambda rng: jpg_header(int(rng.integers(10_000, 65_500)), int(rng.integers(10_000, 65_500))),
    lambda rng: bmp_header(2**30, 2**30),
    lambda rng: bmp_header(40_000, 40_000),
]
OTHER_TYPES: list[bytes] = [
    b"<html><body>404 Not Found</body></html>",
    b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom" + bytes(500),
    b"RIFF\x24\x08\0\0AVI LIST" + bytes(500),
    b"PK\x03\x04" + bytes(200),
    b"%PDF-1.7\n" + bytes(100),
    b"\x80\x04\x95" + bytes(100),
    b'{"error": "quota exceeded"}',
    b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n",
    b"\0" * 4096,
    b"\n",
]


def _exif(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return saved(Image.fromarray(picture()), "JPEG", exif=exif)


def _interlaced() -> bytes:
    """The same pixels as an Adam7 PNG, written by hand: Pillow cannot."""
    pixels = picture()
    rows = b""
    for y0, x0, dy, dx in (
        (0, 0, 8, 8),
        (0, 4, 8, 8),
        (4, 0, 8, 4),
        (0, 2, 4, 4),
        (2, 0, 4, 2),
        (0, 1, 2, 2),
        (1, 0, 2, 1),
    ):
        rows += b"".join(b"\0" + row.tobytes() for row in pixels[y0::dy, x0::dx])
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", SIZE[1], SIZE[0], 8, 2, 0, 0, 1))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def _sixteen(values: np.ndarray[Any, Any]) -> bytes:
    return saved(Image.fromarray(values.astype(np.uint16)), "PNG")


def _animated(format: str) -> bytes:
    frames = [Image.fromarray(picture()), Image.fromarray(picture()[::-1].copy())]
    return saved(frames[0], format, save_all=True, append_images=frames[1:])


def _sized(height: int, width: int) -> bytes:
    return saved(Image.fromarray(np.ones((height, width), np.uint8)), "PNG")


def _unknown(value: int) -> bytes:
    values = ids()
    values[-1, -1] = value
    return saved(Image.fromarray(values), "PNG")


def _gray(mode: str) -> bytes:
    return saved(Image.fromarray(picture()).convert(mode), "PNG")


def _colour_label(mode: str) -> bytes:
    return saved(Image.fromarray(ids()).convert(mode), "PNG")


def _ancillary(rng: Rng) -> bytes:
    """A text chunk whose checksum is wrong."""
    bad = bytearray(chunk(b"tEXt", b"Comment\0" + rng.bytes(20).replace(b"\0", b"x")))
    bad[10] ^= 1
    return PNG[:33] + bytes(bad) + PNG[33:]


_VALUES = (0, 3, 4, 5, 6, 8, 9, 77, 128, 250, 253, 254)

FAMILIES: dict[str, list[Damage]] = {
    "cut": [
        Damage("cut png image", "image", ".png", NAMED, lambda rng: cut(PNG, rng, 12)),
        Damage("cut jpg image", "image", ".jpg", NAMED, lambda rng: cut(JPG, rng, 30)),
        Damage("cut label", "label", ".png", NAMED, lambda rng: cut(LABEL, rng, 12)),
        Damage("cut palette label", "label", ".png", NAMED, lambda rng: cut(PALETTE, rng, 12)),
        Damage("cut end mark of a png", "image", ".png", CHECKED, lambda rng: PNG[: -int(rng.integers(1, 12))]),
        Damage("cut end mark of a jpg", "image", ".jpg", CHECKED, lambda rng: JPG[: -int(rng.integers(1, 3))]),
    ],
    "flip": [
        Damage("flipped bit of a png image", "image", ".png", EITHER, lambda rng: flip(PNG, rng)),
        Damage("flipped bit of a jpg image", "image", ".jpg", EITHER, lambda rng: flip(JPG, rng)),
        Damage("flipped bit of a label", "label", ".png", EITHER, lambda rng: flip(LABEL, rng)),
        Damage("flipped bit of a palette label", "label", ".png", EITHER, lambda rng: flip(PALETTE, rng)),
    ],
    "overwrite": [
        Damage("bad sector of a png image", "image", ".png", EITHER, lambda rng: overwrite(PNG, rng)),
        Damage("bad sector of a jpg image", "image", ".jpg", EITHER, lambda rng: overwrite(JPG, rng)),
        Damage("bad sector of a label", "label", ".png", EITHER, lambda rng: overwrite(LABEL, rng)),
        Damage("broken comment of a png", "image", ".png", CHECKED, _ancillary),
    ],
    "type": [
        Damage(f"{data[:12]!r} as {role}{suffix}", role, suffix, NAMED, lambda rng, d=data: d)  # type: ignore[misc]
        for data in (b"", *OTHER_TYPES)
        for role, suffix in (("image", ".png"), ("image", ".jpg"), ("label", ".png"))
    ]
    + [
        Damage("noise as image", "image", ".png", NAMED, lambda rng: rng.bytes(int(rng.integers(1, 2000)))),
        Damage("noise as label", "label", ".png", NAMED, lambda rng: rng.bytes(int(rng.integers(1, 2000)))),
    ],
    "huge": [
        Damage(f"huge {role} {n}", role, ".png", NAMED, make)
        for n, make in enumerate(HUGE)
        for role in ("image", "label")
    ]
    + [Damage("no columns", "image", ".png", NAMED, lambda rng: png_header(0, 5))],
    "label": [
        *(Damage(f"unknown id {v}", "label", ".png", NAMED, lambda rng, v=v: _unknown(v)) for v in _VALUES),  # type: ignore[misc]
        *(
            Damage(f"label of {h}x{w}", "label", ".png", CHECKED, lambda rng, h=h, w=w: _sized(h, w))  # type: ignore[misc]
            for h, w in ((1, 1), (31, 40), (32, 39), (40, 32), (64, 80), (240, 320))
        ),
        *(
            Damage(f"{mode} label", "label", ".png", NAMED, lambda rng, m=mode: _colour_label(m))  # type: ignore[misc]
            for mode in ("RGB", "RGBA", "LA")
        ),
        Damage("16-bit ids out of range", "label", ".png", NAMED, lambda rng: _sixteen(ids().astype(np.uint16) * 257)),
        Damage(
            "float label", "label", ".png", NAMED, lambda rng: saved(Image.fromarray(ids() / np.float32(2)), "TIFF")
        ),
        Damage(
            "32-bit label", "label", ".png", NAMED, lambda rng: saved(Image.fromarray(ids().astype(np.int32)), "TIFF")
        ),
        Damage("palette index without colour", "label", ".png", LEGAL, lambda rng: _short_palette()),
        Damage("palette label", "label", ".png", LEGAL, lambda rng: PALETTE),
        Damage("16-bit label", "label", ".png", LEGAL, lambda rng: _sixteen(ids())),
        Damage("rotated by EXIF", "image", ".jpg", CHECKED, lambda rng: _exif(6)),
    ],
    "legal": [
        Damage("CMYK", "image", ".jpg", LEGAL, lambda rng: saved(Image.fromarray(picture()).convert("CMYK"), "JPEG")),
        Damage("turned by EXIF", "image", ".jpg", LEGAL, lambda rng: _exif(3)),
        Damage(
            "progressive",
            "image",
            ".jpg",
            LEGAL,
            lambda rng: saved(Image.fromarray(picture()), "JPEG", progressive=True),
        ),
        Damage("maker note behind", "image", ".jpg", LEGAL, lambda rng: JPG + rng.bytes(300)),
        Damage("interlaced", "image", ".png", LEGAL, lambda rng: _interlaced()),
        Damage("animated png", "image", ".png", LEGAL, lambda rng: _animated("PNG")),
        Damage("animated gif", "image", ".png", LEGAL, lambda rng: _animated("GIF")),
        Damage("grey 16-bit image", "image", ".png", LEGAL, lambda rng: _sixteen(np.arange(1280).reshape(SIZE) * 50)),
        Damage("jpg called png", "image", ".png", LEGAL, lambda rng: JPG),
        *(
            Damage(f"{mode} image", "image", ".png", LEGAL, lambda rng, m=mode: _gray(m))  # type: ignore[misc]
            for mode in ("1", "L", "LA", "P", "RGBA")
        ),
    ],
}
"""Each is drawn again for every seed."""
