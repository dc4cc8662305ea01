"""What stands still along a street: buildings, walls, fences, trees, hedges, poles with lights and signs, boxes.

All functions take real positions and sizes in metres and return things ready for painting.
"""

from __future__ import annotations

from collections.abc import Sequence

from segue.data.scenes.build import (
    BARRIER,
    BARS,
    BRICK,
    BUILDING,
    FENCE,
    FRONT,
    LEAVES,
    LIGHT,
    PLASTER,
    POLE,
    ROW,
    SIDE,
    SIGN,
    STREET,
    VEGETATION,
    VOID,
    WALL,
    WINDOWS,
    YARD,
    Cast,
    Panes,
    Plate,
    Point,
    Rgb,
    Thing,
    mix,
    pick,
    shade,
)
from segue.data.scenes.domains import Domain, Palette
from segue.data.scenes.trees import pack_tree

WHITE: Rgb = (0.92, 0.92, 0.9)


def building(d: Domain, s: float, x: float, z0: float, z1: float, height: float, u: Sequence[float]) -> Thing:
    """A house on side `s` (-1 left, 1 right) whose street facade stands at |x| = `x` from `z0` to `z1`."""
    tex, deep = d.texture, 11.0 + 6.0 * u[0]
    near, back = s * x, s * (x + deep)
    thing = Thing(BUILDING, ROW, min(near, back), max(near, back), z0, z1, 0.0, height)
    thing.casts.append(Cast(thing.x0, thing.x1, z0, z1, 0.0, height, False))
    body = pick(d.palette.buildings, u[1], 0.14, u[2])
    across = tex.window_w_m * (0.85 + 0.4 * u[3])
    floor, fill = tex.floor_m * (0.92 + 0.2 * u[4]), tex.window_fill * (0.8 + 0.45 * u[5])
    pitched = u[6] < d.layout.pitched
    roof = pick(d.palette.roofs, u[5], 0.12, u[2])

    def face(points: list[Point], axis: int, at: float, lit: float, rgb: Rgb) -> None:
        thing.panes.append(Panes(thing.count, across, floor, fill, 0.5 + 0.12 * u[3]))
        thing.add(points, rgb, axis, at, tex=WINDOWS, amp=tex.windows, lit=lit, low=0.0, high=height)

    if pitched:
        rise = 2.5 + 2.0 * u[3]
        ridge = s * (x + deep / 2)
        thing.add(
            [(near, height, z0), (near, height, z1), (ridge, height + rise, z1), (ridge, height + rise, z0)],
            roof,
            SIDE,
            near,
            tex=PLASTER,
            amp=0.15,
            lit=0.8,
        )
        thing.add(
            [(near, height, z0), (back, height, z0), (ridge, height + rise, z0)],
            shade(body, 0.9),
            FRONT,
            z0,
            tex=PLASTER,
            amp=tex.plaster,
            lit=0.35,
        )
    face([(near, 0, z0), (near, 0, z1), (near, height, z1), (near, height, z0)], SIDE, near, 0.75, body)
    face([(near, 0, z0), (back, 0, z0), (back, height, z0), (near, height, z0)], FRONT, z0, 0.4, shade(body, 0.88))
    trim = shade(body, 0.62) if pitched else shade(body, 1.12)
    side = Plate(thing, near, 0.0, z0, along=True)
    side.rect(0, height - 0.45, z1 - z0, height, trim, lit=0.7)
    if u[4] > 0.45:
        side.rect(0.4, 0.3, z1 - z0 - 0.4, 2.7, mix(d.palette.window, body, 0.25), lit=0.5)
        side.rect(0.2, 2.7, z1 - z0 - 0.2, 3.25, pick(d.palette.signs + d.palette.buildings, u[6]), lit=0.8)
    else:
        side.rect(0, 0, z1 - z0, 0.7, shade(body, 0.7), lit=0.7)
        mid = (z1 - z0) * (0.3 + 0.4 * u[5])
        side.rect(mid, 0, mid + 1.3, 2.4, shade(d.palette.trunk, 0.8), lit=0.5)
    return thing


def barrier(d: Domain, s: float, x: float, z0: float, z1: float, fence: bool, u: Sequence[float]) -> Thing:
    """A wall (1.6 to 2.6 m) or a fence (1.2 to 1.8 m) along the sidewalk at |x| = `x`."""
    height = 1.1 + 0.6 * u[0] if fence else 1.5 + 1.0 * u[0]
    label = FENCE if fence else WALL
    at = s * x
    thing = Thing(label, BARRIER, min(at, at + s * 0.2), max(at, at + s * 0.2), z0, z1, 0.0, height)
    thing.casts.append(Cast(thing.x0, thing.x1, z0, z1, 0.0, height, False))
    rgb = pick(d.palette.fences if fence else d.palette.walls, u[1], 0.12, u[2])
    kind, amp = (BARS, 0.75) if fence else (BRICK, 0.35)
    ends = [(at, 0.0, z0), (at + s * 0.25, 0.0, z0), (at + s * 0.25, height, z0), (at, height, z0)]
    thing.add([(at, 0, z0), (at, 0, z1), (at, height, z1), (at, height, z0)], rgb, SIDE, at, tex=kind, amp=amp, lit=0.7)
    if not fence:
        thing.add([(p[0], p[1], p[2]) for p in ends], shade(rgb, 0.85), FRONT, z0, tex=kind, amp=amp, lit=0.4)
    side = Plate(thing, at, 0.0, z0, along=True)
    side.rect(0, height - (0.1 if fence else 0.18), z1 - z0, height, shade(rgb, 0.8 if fence else 1.15), lit=0.8)
    return thing


def tree(d: Domain, x: float, z: float, base: float, layer: int, u: Sequence[float]) -> Thing:
    """A tree, 5 to 10 m tall: trunk and an irregular crown of three lobes."""
    height = d.layout.tree_m * (0.75 + 0.6 * u[0])
    radius = height * (0.24 + 0.10 * u[1])
    stem = height - 1.75 * radius * (1.0 + 0.25 * u[2])
    thing = Thing(VEGETATION, layer, x - radius, x + radius, z, z + 0.5, base, height)
    thing.casts.append(Cast(x - radius * 0.9, x + radius * 0.9, z - radius, z + radius, stem, height * 0.95, True))
    thing.contact = (x - 0.4, x + 0.4, z - 0.4, z + 0.5)
    leaf = pick(d.palette.leaves, u[3], 0.15, u[4])
    thing.tree = pack_tree(x, base, z, height, radius, stem, d.texture.leaves, *leaf, *d.palette.trunk, *u)
    return thing


def hedge(d: Domain, s: float, x: float, z0: float, z1: float, u: Sequence[float]) -> Thing:
    """A hedge or row of bushes along the street at |x| = `x`, 0.9 to 2.4 m high."""
    height, at = 0.9 + 1.5 * u[0], s * x
    thing = Thing(VEGETATION, YARD, min(at, at + s), max(at, at + s), z0, z1, 0.0, height)
    leaf = pick(d.palette.leaves, u[1], 0.15, u[2])
    steps = 9
    top = [(at, height * (0.72 + 0.28 * u[(k * 5) % len(u)]), z0 + (z1 - z0) * k / steps) for k in range(steps, -1, -1)]
    thing.add(
        [(at, 0, z0), (at, 0, z1), *top],
        leaf,
        SIDE,
        at,
        tex=LEAVES,
        amp=d.texture.leaves,
        lit=0.6,
        low=0.0,
        high=height,
    )
    h0 = top[-1][1]
    thing.add(
        [(at, 0, z0), (at + s * 1.2, 0, z0), (at + s * 1.1, h0 * 0.9, z0), (at, h0, z0)],
        shade(leaf, 0.85),
        FRONT,
        z0,
        tex=LEAVES,
        amp=d.texture.leaves,
        lit=0.4,
        low=0.0,
        high=height,
    )
    return thing


def post(d: Domain, x: float, z: float, base: float, height: float, width: float, u: float) -> Thing:
    """A bare post of `height` and `width` metres; signs, lamps, lights and bollards stand on it."""
    thing = Thing(POLE, STREET, x - width / 2, x + width / 2, z, z + width, base, height)
    thing.casts.append(Cast(x - width / 2, x + width / 2, z, z + width, base, base + height, False))
    rgb = pick(d.palette.poles, u, 0.1, u)
    Plate(thing, x, base, z).poly(((-width / 2, 0), (width / 2, 0), (width * 0.4, height), (-width * 0.4, height)), rgb)
    return thing


def lamp(d: Domain, s: float, x: float, z: float, base: float, u: Sequence[float]) -> list[Thing]:
    """A street lamp, 5.5 to 8 m, its arm reaching over the road."""
    height = 5.5 + 2.5 * u[0]
    thing = post(d, x, z, base, height, 0.17, u[1])
    p = Plate(thing, x, base, z)
    rgb = pick(d.palette.poles, u[1], 0.1, u[1])
    arm = -s * (1.0 + 0.9 * u[2])
    p.bar(0, height - 0.25, arm, height - 0.05, 0.09, rgb)
    p.rect(arm - 0.35, height - 0.12, arm + 0.35, height, mix(rgb, (1.0, 0.85, 0.55), d.light.night), glow=0.9)
    return [thing]


def signal(d: Domain, x: float, z: float, base: float, u: Sequence[float]) -> list[Thing]:
    """A traffic light: post and a box with three lamps, one of them lit; now and then a second box over the road."""
    height = 3.0 + 0.6 * u[0]
    pole = post(d, x, z, base, height, 0.14, u[1])
    box = Thing(LIGHT, STREET, x - 0.2, x + 0.2, z - 0.02, z, base + height - 1.1, 1.1)
    spots = [(0.0, height - 1.1)]
    if u[2] > 0.55:
        reach = -2.6 if x > 0 else 2.6
        over = 5.2
        p = Plate(pole, x, base, z)
        p.rect(-0.08, 0, 0.08, over, pick(d.palette.poles, u[1], 0.1, u[1]))
        p.bar(0, over - 0.1, reach, over - 0.1, 0.12, pick(d.palette.poles, u[1], 0.1, u[1]))
        pole.height = over
        spots.append((reach, over - 1.15))
    lit = int(u[3] * 3)
    p = Plate(box, x, base, z - 0.02)
    colours = ((0.1, 0.9, 0.35), (1.0, 0.75, 0.1), (0.98, 0.12, 0.08))
    for a, b in spots:
        p.rect(a - 0.2, b, a + 0.2, b + 1.1, d.palette.light_box)
        for k, rgb in enumerate(colours):
            on = k == lit
            p.disc(a, b + 0.2 + 0.34 * k, 0.13, 0.14, rgb if on else shade(rgb, 0.25), glow=0.9 if on else 0.0)
    if len(spots) > 1:
        box.height = over - 0.05 - (height - 1.1)
        box.x0, box.x1 = min(box.x0, x + reach - 0.2), max(box.x1, x + reach + 0.2)
    return [pole, box]


TRIANGLE = ((-0.42, 0.0), (0.42, 0.0), (0.0, 0.74))


def sign(d: Domain, x: float, z: float, base: float, u: Sequence[float]) -> list[Thing]:
    """A traffic sign on a post: disc, triangle, square or (bigger) direction board."""
    kind, colours = int(u[0] * 5), d.palette.signs
    low = 2.0 + 0.4 * u[1]
    size = 0.8 if kind < 3 else 0.7 if kind == 3 else 1.0
    pole = post(d, x, z, base, low + size * 0.5, 0.09, u[2])
    thing = Thing(SIGN, STREET, x - 0.5, x + 0.5, z - 0.02, z, base + low, size)
    p = Plate(thing, x, base + low, z - 0.02)
    if kind == 0:
        p.disc(0, 0.4, 0.4, 0.4, colours[1])
        p.disc(0, 0.4, 0.27, 0.27, WHITE)
    elif kind == 1:
        thing.height = 0.74
        p.poly(TRIANGLE, colours[1])
        p.poly(((-0.22, 0.12), (0.22, 0.12), (0.0, 0.5)), WHITE)
    elif kind == 2:
        p.disc(0, 0.4, 0.4, 0.4, colours[0])
        p.bar(0, 0.2, 0, 0.62, 0.12, WHITE)
    elif kind == 3:
        p.rect(-0.35, 0, 0.35, 0.7, colours[0])
        p.rect(-0.12, 0.12, 0.12, 0.56, WHITE)
    else:
        p.rect(-1.0, 0, 1.0, 1.0, colours[2] if u[3] > 0.5 else colours[0])
        p.rect(-0.8, 0.58, 0.6, 0.74, WHITE if u[3] <= 0.5 else (0.1, 0.1, 0.1))
        p.rect(-0.8, 0.24, 0.3, 0.4, WHITE if u[3] <= 0.5 else (0.1, 0.1, 0.1))
        thing.x0, thing.x1 = x - 1.0, x + 1.0
    return [pole, thing]


def clutter(palette: Palette, x: float, z: float, base: float, u: Sequence[float]) -> Thing:
    """A static thing without a train class (bin, cabinet, bench): labelled void."""
    height, width = 0.8 + 0.7 * u[0], 0.6 + 0.6 * u[1]
    thing = Thing(VOID, STREET, x - width / 2, x + width / 2, z, z + 0.6, base, height)
    thing.contact = (thing.x0, thing.x1, z - 0.1, z + 0.6)
    rgb = pick(palette.static, u[2], 0.15, u[3])
    p = Plate(thing, x, base, z)
    p.rect(-width / 2, 0, width / 2, height, rgb)
    p.rect(-width / 2, height - 0.1, width / 2, height, shade(rgb, 0.7))
    return thing
