"""People, bicycles and motorcycles: flat figures with real sizes, facing the camera or along the road.

Figures are drawn in units of metres from local outlines; `u` are numbers in 0..1 that choose clothes, pose and height.
"""

from __future__ import annotations

from collections.abc import Sequence

from segue.data.scenes.build import (
    BICYCLE,
    MOTORCYCLE,
    PERSON,
    RIDER,
    STREET,
    Cast,
    Plate,
    Rgb,
    Thing,
    mix,
    pick,
    shade,
)
from segue.data.scenes.domains import Palette

HAIR: tuple[Rgb, ...] = ((0.10, 0.08, 0.07), (0.25, 0.16, 0.10), (0.55, 0.42, 0.22), (0.45, 0.44, 0.43))


def _figure(label: int, x: float, z: float, width: float, base: float, height: float) -> Thing:
    thing = Thing(label, STREET, x - width / 2, x + width / 2, z, z + 0.3, base, height)
    thing.contact = (x - width * 0.45, x + width * 0.45, z - 0.2, z + 0.3)
    thing.casts.append(Cast(x - 0.18, x + 0.18, z, z + 0.25, base, base + height, False))
    return thing


def person(palette: Palette, x: float, z: float, base: float, u: Sequence[float]) -> Thing:
    """A pedestrian, 1.5 to 1.92 m tall (now and then a child of 1.2 m), walking or standing."""
    h = 1.2 if u[0] > 0.93 else 1.55 + 0.35 * u[1]
    thing = _figure(PERSON, x, z, 0.6, base, h)
    p = Plate(thing, x, base, z, flip=u[2] > 0.5)
    shirt, legs = pick(palette.shirts, u[3], 0.15, u[4]), pick(palette.trousers, u[5], 0.15, u[6])
    skin, step = pick(palette.skin, u[7], 0.1, u[0]), 0.04 + 0.11 * u[2]
    shoe = shade(palette.tyre, 1.2)
    for s, dark in ((-1.0, 0.8), (1.0, 1.0)):
        foot, hip = s * step * h, s * 0.05 * h
        p.poly(
            (
                (hip - 0.055 * h, 0.5 * h),
                (hip + 0.055 * h, 0.5 * h),
                (foot + 0.035 * h, 0.04 * h),
                (foot - 0.04 * h, 0.04 * h),
            ),
            shade(legs, dark),
        )
        p.rect(foot - 0.045 * h, 0.0, foot + 0.07 * h, 0.045 * h, shoe)
    for s in (-1.0, 1.0):
        swing = -s * step * 0.7 * h
        p.bar(s * 0.125 * h, 0.8 * h, s * 0.14 * h + swing * 0.5, 0.47 * h, 0.06 * h, shade(shirt, 0.78))
        p.disc(s * 0.14 * h + swing * 0.5, 0.46 * h, 0.028 * h, 0.03 * h, skin)
    long = 0.34 if u[6] > 0.75 else 0.47
    p.poly(
        (
            (-0.13 * h, 0.8 * h),
            (-0.07 * h, 0.845 * h),
            (0.07 * h, 0.845 * h),
            (0.13 * h, 0.8 * h),
            (0.105 * h, long * h),
            (-0.105 * h, long * h),
        ),
        shirt,
    )
    p.rect(-0.03 * h, 0.83 * h, 0.03 * h, 0.88 * h, skin)
    p.disc(0.0, 0.925 * h, 0.058 * h, 0.075 * h, skin)
    p.poly(
        (
            (-0.062 * h, 0.92 * h),
            (-0.055 * h, 0.98 * h),
            (0.0, h),
            (0.055 * h, 0.98 * h),
            (0.062 * h, 0.92 * h),
            (0.03 * h, 0.955 * h),
            (-0.03 * h, 0.955 * h),
        ),
        pick(HAIR, u[4]),
    )
    if u[5] > 0.6:
        p.rect(0.1 * h, 0.5 * h, 0.19 * h, 0.72 * h, shade(pick(palette.shirts, u[1]), 0.7))
    return thing


def _wheel(p: Plate, a: float, r: float, tyre: Rgb, spoke: Rgb) -> None:
    p.disc(a, r, r, r, tyre, lit=0.35)
    p.disc(a, r, r * 0.78, r * 0.78, spoke, lit=0.4)
    p.bar(a - r * 0.6, r * 0.6, a + r * 0.6, r * 1.4, 0.03, tyre)
    p.bar(a - r * 0.6, r * 1.4, a + r * 0.6, r * 0.6, 0.03, tyre)


def bicycle(
    palette: Palette, x: float, z: float, base: float, u: Sequence[float], *, side: bool, along: bool = False
) -> Thing:
    """A bicycle, 1.05 m high; `side` shows its profile, `along` puts the profile parallel to the road."""
    thing = _figure(BICYCLE, x, z, 0.5 if along or not side else 1.7, base, 1.05)
    if along:
        thing.z1 = z + 1.75
    frame = pick(palette.bicycles, u[0], 0.12, u[1])
    if not side:
        p = Plate(thing, x, base, z)
        p.rect(-0.045, 0.0, 0.045, 0.68, palette.tyre)
        p.rect(-0.06, 0.45, 0.06, 0.9, frame)
        p.rect(-0.12, 0.86, 0.12, 0.94, palette.tyre)
        p.bar(-0.3, 1.0, 0.3, 1.0, 0.07, shade(palette.tyre, 2.0))
        p.rect(-0.06, 0.62, 0.06, 0.7, (0.75, 0.06, 0.05), glow=0.3)
        return thing
    p = Plate(thing, x if along else x - 0.85, base, z, along=along)
    if u[2] > 0.5 and not along:
        p = Plate(thing, x + 0.85, base, z, flip=True)
    spoke = mix(palette.tyre, (0.55, 0.55, 0.55), 0.45)
    _wheel(p, 0.35, 0.34, palette.tyre, spoke)
    _wheel(p, 1.38, 0.34, palette.tyre, spoke)
    for a0, b0, a1, b1 in (
        (0.35, 0.34, 0.62, 0.78),
        (0.35, 0.34, 0.8, 0.32),
        (0.8, 0.32, 0.62, 0.88),
        (0.8, 0.32, 1.2, 0.78),
        (0.64, 0.78, 1.2, 0.8),
        (1.18, 0.96, 1.38, 0.34),
    ):
        p.bar(a0, b0, a1, b1, 0.07, frame)
    p.rect(0.48, 0.88, 0.74, 0.95, palette.tyre)
    p.bar(1.08, 1.02, 1.28, 0.98, 0.06, palette.tyre)
    return thing


def motorcycle(palette: Palette, x: float, z: float, u: Sequence[float], *, side: bool) -> Thing:
    """A motorcycle or scooter, 1.15 m high, from behind or in profile."""
    thing = _figure(MOTORCYCLE, x, z, 2.0 if side else 0.8, 0.0, 1.13 if side else 1.16)
    body = pick(palette.motorcycles, u[0], 0.12, u[1])
    grey = shade(palette.tyre, 2.6)
    if not side:
        p = Plate(thing, x, 0.0, z)
        p.rect(-0.1, 0.0, 0.1, 0.62, palette.tyre)
        p.poly(((-0.28, 0.35), (0.28, 0.35), (0.34, 0.6), (0.22, 0.9), (-0.22, 0.9), (-0.34, 0.6)), body)
        p.rect(0.16, 0.22, 0.3, 0.42, grey)
        p.bar(-0.42, 1.02, 0.42, 1.02, 0.09, palette.tyre)
        p.rect(-0.14, 0.84, 0.14, 0.96, shade(palette.tyre, 1.3))
        p.rect(-0.12, 0.62, 0.12, 0.74, (0.8, 0.06, 0.05), glow=0.5)
        p.disc(-0.4, 1.1, 0.09, 0.06, grey)
        p.disc(0.4, 1.1, 0.09, 0.06, grey)
        return thing
    p = Plate(thing, x - 1.0, 0.0, z) if u[2] < 0.5 else Plate(thing, x + 1.0, 0.0, z, flip=True)
    for a in (0.34, 1.66):
        p.disc(a, 0.32, 0.32, 0.32, palette.tyre, lit=0.35)
        p.disc(a, 0.32, 0.17, 0.17, grey, lit=0.4)
    p.poly(((0.1, 0.78), (0.5, 0.5), (0.75, 0.28), (1.25, 0.28), (1.5, 0.75), (1.3, 1.0), (0.95, 0.82)), body)
    p.rect(0.65, 0.25, 1.25, 0.5, grey)
    p.poly(((0.2, 0.84), (0.95, 0.82), (0.95, 0.92), (0.15, 0.96)), palette.tyre)
    p.bar(1.35, 1.05, 1.68, 0.32, 0.09, grey)
    p.bar(1.15, 1.1, 1.4, 1.08, 0.07, palette.tyre)
    p.disc(1.5, 0.92, 0.1, 0.1, (0.95, 0.95, 0.85), glow=0.6)
    return thing


def rider(palette: Palette, x: float, z: float, u: Sequence[float], *, side: bool, motor: bool) -> Thing:
    """The person on a bicycle or motorcycle (the vehicle is a thing of its own, painted just before)."""
    seat, top = (0.82, 1.62) if motor else (0.9, 1.78)
    low = 0.3
    thing = _figure(RIDER, x, z - 0.01, 0.7, low, top - low)
    thing.contact = None
    shirt, legs = pick(palette.shirts, u[3], 0.15, u[4]), pick(palette.trousers, u[5], 0.15, u[6])
    skin = pick(palette.skin, u[7])
    helmet = pick(palette.cars, u[0]) if motor or u[1] > 0.5 else pick(HAIR, u[1])
    z -= 0.01
    if not side:
        p = Plate(thing, x, 0.0, z)
        for s in (-1.0, 1.0):
            p.poly(((s * 0.05, seat), (s * 0.2, seat + 0.03), (s * 0.27, 0.55), (s * 0.2, low), (s * 0.1, low)), legs)
            p.bar(s * 0.22, top - 0.4, s * 0.34, 1.04, 0.11, shade(shirt, 0.8))
        p.poly(
            (
                (-0.17, seat - 0.05),
                (0.17, seat - 0.05),
                (0.25, top - 0.36),
                (0.1, top - 0.26),
                (-0.1, top - 0.26),
                (-0.25, top - 0.36),
            ),
            shirt,
        )
        p.disc(0.0, top - 0.14, 0.1, 0.14, skin)
        p.poly(((-0.12, top - 0.16), (-0.1, top - 0.04), (0.0, top), (0.1, top - 0.04), (0.12, top - 0.16)), helmet)
        return thing
    flip = u[2] >= 0.5
    half = 1.0 if motor else 0.85
    p = Plate(thing, x + half if flip else x - half, 0.0, z, flip=flip)
    a = 0.62
    p.bar(a, seat, a + 0.42, 0.66, 0.16, legs)
    p.bar(a + 0.4, 0.7, a + 0.22, low + 0.02, 0.13, shade(legs, 0.85))
    p.rect(a + 0.14, low, a + 0.4, low + 0.08, palette.tyre)
    p.poly(
        (
            (a - 0.14, seat - 0.04),
            (a + 0.14, seat - 0.04),
            (a + 0.42, top - 0.34),
            (a + 0.3, top - 0.26),
            (a + 0.1, top - 0.32),
        ),
        shirt,
    )
    p.bar(a + 0.34, top - 0.4, a + 0.6, 1.04, 0.1, shade(shirt, 0.78))
    p.disc(a + 0.38, top - 0.14, 0.1, 0.14, skin)
    p.poly(
        (
            (a + 0.26, top - 0.16),
            (a + 0.28, top - 0.04),
            (a + 0.38, top),
            (a + 0.48, top - 0.04),
            (a + 0.5, top - 0.12),
        ),
        helmet,
    )
    return thing
