"""Vehicles on four or more wheels (and rails): cars, trucks, buses, trams, seen along the road or from the side.

A vehicle along the road is a near face, the side turned to the camera and the parts on both.  `rear` says whether the
near face is the back.  Sizes are real ones in metres; shapes vary with the numbers `u` in 0..1 handed in.
"""

from __future__ import annotations

from collections.abc import Sequence

from segue.data.scenes.build import (
    BUS,
    CAR,
    FRONT,
    SIDE,
    STREET,
    TRAIN,
    TRUCK,
    Cast,
    Pair,
    Plate,
    Point,
    Rgb,
    Thing,
    mix,
    pick,
    shade,
)
from segue.data.scenes.domains import Palette

TAIL: Rgb = (0.72, 0.05, 0.05)
HEAD: Rgb = (0.95, 0.95, 0.88)
PLATE: Rgb = (0.85, 0.85, 0.80)
Quad = tuple[tuple[float, float], tuple[float, float], tuple[float, float], tuple[float, float]]


def _box(label: int, x: float, z0: float, width: float, length: float, height: float) -> Thing:
    thing = Thing(label, STREET, x - width / 2, x + width / 2, z0, z0 + length, 0.0, height)
    thing.contact = (thing.x0 - 0.12, thing.x1 + 0.12, z0 - 0.15, z0 + length + 0.15)
    thing.casts.append(Cast(thing.x0, thing.x1, z0, z0 + length, 0.2, height * 0.92, False))
    return thing


def _near_side(x: float, width: float) -> float:
    """x of the side the camera sees."""
    return x - width / 2 if x > 0 else x + width / 2


def _wheels(thing: Thing, xs: float, z0: float, spots: Sequence[float], radius: float, tyre: Rgb) -> None:
    plate = Plate(thing, xs, 0.0, z0, along=True)
    for a in spots:
        plate.disc(a, radius, radius, radius, tyre, lit=0.3)
        plate.disc(a, radius, radius * 0.55, radius * 0.55, mix(tyre, (0.7, 0.7, 0.7), 0.6), lit=0.4)


def car(palette: Palette, x: float, z0: float, rear: bool, u: Sequence[float], detail: bool) -> Thing:
    """A passenger car (hatchback to van) along the road with its near face at `z0` metres."""
    width, length, top = 1.72 + 0.16 * u[0], 3.9 + 0.8 * u[1], 1.42 + 0.12 * u[2]
    van = u[3] > 0.8
    top, length = (top + 0.35, length + 0.3) if van else (top, length)
    body = pick(palette.cars, u[4], 0.12, u[5])
    thing = _box(CAR, x, z0, width, length, top)
    xs, belt = _near_side(x, width), 0.62 * top
    near = (0.12 if van else 0.25 + 0.35 * u[6]) if rear else 1.0 + 0.15 * u[6]
    far = 1.05 if rear else (0.1 if van else 0.5)
    slope = 0.35 if rear else 0.75
    if abs(x) > width / 2:
        side = Plate(thing, xs, 0.0, z0, along=True)
        side.poly(((0, 0.28), (length, 0.28), (length, belt * 0.94), (0, belt)), shade(body, 0.92), lit=0.55)
        cabin: list[Pair] = [(near, belt), (near + slope, top), (length - far - 0.5, top), (length - far, belt)]
        side.poly(cabin, shade(body, 0.9), lit=0.55)
        if detail:
            pane = [
                (a + (0.16 if i in (0, 1) else -0.16), b * 0.98 if i in (1, 2) else b + 0.04)
                for i, (a, b) in enumerate(cabin)
            ]
            side.poly(pane, palette.glass, lit=0.5)
            middle = (near + length - far) / 2
            side.rect(middle - 0.05, belt, middle + 0.05, top, shade(body, 0.8))
            side.rect(0.1, 0.26, length - 0.1, 0.36, shade(body, 0.45))
        _wheels(thing, xs, z0, (0.78, length - 0.78), 0.32, palette.tyre)
    _car_face(thing, palette, x, z0, width, top, belt, near, slope, body, rear, detail)
    return thing


def _panel(thing: Thing, x: float, low: Point, high: Point, rgb: Rgb, lit: float) -> None:
    """A leaning panel across a car; `low` and `high` are half width, height and depth of its edges."""
    (a, y0, z0), (b, y1, z1) = low, high
    thing.add([(x - a, y0, z0), (x + a, y0, z0), (x + b, y1, z1), (x - b, y1, z1)], rgb, FRONT, z0, lit=lit)


def _car_face(
    thing: Thing,
    palette: Palette,
    x: float,
    z0: float,
    width: float,
    top: float,
    belt: float,
    near: float,
    slope: float,
    body: Rgb,
    rear: bool,
    detail: bool,
) -> None:
    """The end of a car that faces the camera: window, lights, plate, bumper, wheels."""
    half, ceil = width / 2, width * 0.39
    mid, far = z0 + near, z0 + near + slope
    _panel(thing, x, (half * 0.95, belt, mid), (ceil, top, far), shade(body, 1.06), 0.7)
    _panel(thing, x, (half * 0.84, belt + 0.05, mid), (ceil * 0.88, top - 0.1, far), palette.glass, 0.7)
    _panel(thing, x, (half, belt * 0.9, z0), (half * 0.95, belt, mid), shade(body, 1.15), 1.0)
    face = Plate(thing, x, 0.0, z0)
    face.rect(-half * 0.86, 0.0, -half * 0.56, 0.4, palette.tyre, lit=0.2)
    face.rect(half * 0.56, 0.0, half * 0.86, 0.4, palette.tyre, lit=0.2)
    face.rect(-half * 0.9, 0.16, half * 0.9, 0.4, mix(palette.tyre, body, 0.25), lit=0.3)
    face.poly(
        (
            (-half, 0.34),
            (half, 0.34),
            (half, belt * 0.9),
            (half * 0.96, belt),
            (-half * 0.96, belt),
            (-half, belt * 0.9),
        ),
        body,
        lit=0.6,
    )
    lamp, glow = (TAIL, 0.35) if rear else (HEAD, 0.7)
    for s in (-1.0, 1.0):
        face.rect(s * half * 0.97, belt * 0.66, s * half * 0.66, belt * 0.9, lamp, glow=glow)
    if not detail:
        return
    face.rect(-half * 0.95, 0.34, half * 0.95, 0.44, shade(body, 0.5))
    if rear:
        face.rect(-0.26, belt * 0.6, 0.26, belt * 0.72, PLATE)
    else:
        face.rect(-half * 0.55, belt * 0.58, half * 0.55, belt * 0.78, shade(palette.tyre, 1.3))
        face.rect(-0.26, belt * 0.46, 0.26, belt * 0.56, PLATE)


def car_across(palette: Palette, x: float, z: float, u: Sequence[float]) -> Thing:
    """A car crossing the road, seen from the side at `z` metres, centred at `x`."""
    length, top = 4.0 + 0.6 * u[0], 1.42 + 0.12 * u[1]
    thing = Thing(CAR, STREET, x - length / 2, x + length / 2, z, z + 1.8, 0.0, top)
    thing.contact = (thing.x0 - 0.1, thing.x1 + 0.1, z - 0.15, z + 1.9)
    thing.casts.append(Cast(thing.x0, thing.x1, z, z + 1.8, 0.2, top * 0.92, False))
    body = pick(palette.cars, u[2], 0.12, u[3])
    p = Plate(thing, x - length / 2 if u[4] < 0.5 else x + length / 2, 0.0, z, flip=u[4] >= 0.5)
    belt = 0.62 * top
    p.poly(((0, 0.3), (length, 0.3), (length, belt * 0.85), (length - 1.1, belt), (0.1, belt)), body)
    p.poly(((0.25, belt), (0.75, top), (length - 1.9, top), (length - 1.1, belt)), shade(body, 1.05))
    p.poly(((0.45, belt), (0.85, top - 0.1), (length - 1.95, top - 0.1), (length - 1.35, belt)), palette.glass)
    p.rect(length / 2 - 0.35, belt, length / 2 - 0.25, top, body)
    p.rect(0.05, 0.26, length - 0.05, 0.36, shade(body, 0.5))
    p.rect(0.0, belt * 0.7, 0.18, belt * 0.9, TAIL, glow=0.3)
    p.rect(length - 0.2, belt * 0.66, length, belt * 0.82, HEAD, glow=0.5)
    for a in (0.8, length - 0.85):
        p.disc(a, 0.32, 0.32, 0.32, palette.tyre, lit=0.3)
        p.disc(a, 0.32, 0.18, 0.18, (0.6, 0.6, 0.6), lit=0.4)
    return thing


def _block(thing: Thing, x: float, z: float, width: float, length: float, low: float, top: float, body: Rgb) -> None:
    """The visible side and near face of a box, the near face a little brighter."""
    xs = _near_side(x, width)
    if abs(x) > width / 2:
        thing.add(
            [(xs, low, z), (xs, low, z + length), (xs, top, z + length), (xs, top, z)],
            shade(body, 0.9),
            SIDE,
            xs,
            lit=0.5,
            low=low,
            high=top,
        )
    h = width / 2
    thing.add([(x - h, low, z), (x + h, low, z), (x + h, top, z), (x - h, top, z)], body, FRONT, z, lit=0.65)


def bus(palette: Palette, x: float, z0: float, rear: bool, u: Sequence[float]) -> Thing:
    """A city bus, 2.5 m wide and 3.1 m high, with a window band, doors, wheels and a destination sign."""
    width, length, top = 2.5, 10.5 + 2.0 * u[0], 3.05 + 0.15 * u[1]
    body = pick(palette.buses, u[2], 0.1, u[3])
    thing = _box(BUS, x, z0, width, length, top)
    _block(thing, x, z0, width, length, 0.3, top, body)
    xs = _near_side(x, width)
    if abs(x) > width / 2:
        side = Plate(thing, xs, 0.0, z0, along=True)
        side.rect(0.3, 1.25, length - 0.3, 2.45, palette.glass, lit=0.5)
        for k in range(1, 7):
            side.rect(k * length / 7 - 0.07, 1.25, k * length / 7 + 0.07, 2.45, shade(body, 0.75))
        side.rect(0, 0.3, length, 0.55, shade(body, 0.55))
        _wheels(thing, xs, z0, (2.2, length - 2.6), 0.48, palette.tyre)
    face = Plate(thing, x, 0.0, z0)
    face.rect(-1.05, 0.0, -0.75, 0.5, palette.tyre, lit=0.2)
    face.rect(0.75, 0.0, 1.05, 0.5, palette.tyre, lit=0.2)
    face.rect(-1.2, 0.3, 1.2, 0.6, shade(body, 0.5))
    face.rect(-1.12, 1.7 if rear else 1.1, 1.12, 2.5, palette.glass, lit=0.7)
    face.rect(-0.85, 2.62, 0.85, top - 0.12, (0.08, 0.08, 0.07))
    face.rect(-0.6, 2.68, 0.45, top - 0.18, (0.95, 0.6, 0.1), glow=0.6)
    lamp, glow = (TAIL, 0.4) if rear else (HEAD, 0.7)
    for s in (-1.0, 1.0):
        face.rect(s * 1.18, 0.68, s * 0.85, 0.95, lamp, glow=glow)
        if not rear:
            face.rect(s * 1.22, 1.9, s * 1.42, 2.3, palette.tyre)
    return thing


def truck(palette: Palette, x: float, z0: float, rear: bool, u: Sequence[float]) -> Thing:
    """A rigid truck: a cab in a strong colour and a light box body on a dark frame."""
    width, length, top = 2.4, 6.8 + 2.5 * u[0], 3.1 + 0.4 * u[1]
    cargo = mix(pick(palette.trucks, u[2], 0.08, u[3]), (0.85, 0.85, 0.83), 0.45)
    cab = pick(palette.trucks, u[4], 0.1, u[5])
    thing = _box(TRUCK, x, z0, width, length, top)
    xs = _near_side(x, width)
    frame = shade(palette.tyre, 1.6)
    if rear:
        _block(thing, x, z0 + length - 1.9, width * 0.94, 1.9, 0.45, top * 0.8, cab)
        _block(thing, x, z0, width, length - 2.1, 0.95, top, cargo)
    else:
        _block(thing, x, z0 + 2.1, width, length - 2.1, 0.95, top, cargo)
        _block(thing, x, z0, width * 0.94, 1.9, 0.45, top * 0.8, cab)
    if abs(x) > width / 2:
        side = Plate(thing, xs, 0.0, z0, along=True)
        side.rect(0.2, 0.55, length - 0.2, 0.95, frame, lit=0.3)
        a = length - 1.5 if rear else 0.4
        side.rect(a, 1.5, a + 1.0, top * 0.8 - 0.35, palette.glass, lit=0.5)
        _wheels(thing, xs, z0, (1.2, length - 1.2), 0.5, palette.tyre)
    face = Plate(thing, x, 0.0, z0)
    for s in (-1.0, 1.0):
        face.rect(s * 1.08, 0.0, s * 0.68, 0.9, palette.tyre, lit=0.2)
    if rear:
        face.rect(-1.1, 0.55, 1.1, 0.95, frame, lit=0.3)
        face.rect(-0.03, 1.05, 0.03, top - 0.1, shade(cargo, 0.6))
        face.rect(-1.15, top - 0.14, 1.15, top - 0.06, shade(cargo, 0.7))
    else:
        face.rect(-1.1, 0.35, 1.1, 0.8, shade(cab, 0.5))
        face.rect(-1.0, 1.45, 1.0, top * 0.8 - 0.25, palette.glass, lit=0.7)
        face.rect(-0.7, 0.85, 0.7, 1.25, frame)
    lamp, glow = (TAIL, 0.4) if rear else (HEAD, 0.7)
    for s in (-1.0, 1.0):
        face.rect(s * 1.12, 0.6, s * 0.8, 0.84, lamp, glow=glow)
    return thing


def tram(palette: Palette, x: float, z0: float, u: Sequence[float]) -> Thing:
    """A tram on the track, 2.5 m wide, 3.5 m high, 24..34 m long: long window band, round front, pantograph."""
    width, length, top = 2.5, 24.0 + 10.0 * u[0], 3.4 + 0.15 * u[1]
    body = pick(palette.trains, u[2], 0.08, u[3])
    light = mix(body, (0.92, 0.92, 0.9), 0.75)
    thing = _box(TRAIN, x, z0, width, length, top)
    _block(thing, x, z0, width, length, 0.18, top, body)
    xs = _near_side(x, width)
    if abs(x) > width / 2:
        side = Plate(thing, xs, 0.0, z0, along=True)
        side.rect(0, 2.7, length, top, light, lit=0.5)
        side.rect(0.4, 1.3, length - 0.4, 2.6, palette.glass, lit=0.5)
        for k in range(1, 12):
            wide = 0.35 if k % 4 == 0 else 0.08
            side.rect(
                k * length / 12 - wide,
                0.3,
                k * length / 12 + wide,
                top,
                shade(palette.tyre, 1.8) if k % 4 == 0 else shade(body, 0.8),
            )
        side.rect(0, 0.18, length, 0.4, shade(palette.tyre, 1.5))
    face = Plate(thing, x, 0.0, z0)
    face.rect(-1.25, 2.75, 1.25, top, light)
    face.poly(((-1.1, 1.25), (1.1, 1.25), (0.95, 2.7), (-0.95, 2.7)), palette.glass, lit=0.7)
    face.rect(-0.6, 2.85, 0.6, top - 0.2, (0.95, 0.65, 0.12), glow=0.6)
    face.rect(-1.25, 0.18, 1.25, 0.45, shade(palette.tyre, 1.4))
    for s in (-1.0, 1.0):
        face.disc(s * 0.9, 0.8, 0.14, 0.12, HEAD, glow=0.8)
    roof = Plate(thing, x, top, z0 + 3.0)
    roof.bar(-0.5, 0.0, 0.5, 0.75, 0.06, shade(palette.tyre, 2.0))
    roof.bar(-0.8, 0.75, 0.8, 0.75, 0.06, shade(palette.tyre, 2.0))
    return thing
