"""The street: what stands where, in metres, sampled from a domain's layout statistics.

Every place where something may stand is a slot with its own fixed random numbers, and a slot is filled when its number
lies below a probability of the domain.  So two nearby domains show nearly the same street for a seed, which is what
makes drift continuous.  The knobs are in ``domains.Layout``.
"""

from __future__ import annotations

from collections.abc import Sequence

from segue.data.scenes import street
from segue.data.scenes.actors import crowd, traffic
from segue.data.scenes.build import (
    ASPHALT,
    BACKDROP,
    BUILDING,
    FLOOR,
    FRONT,
    GRASS,
    GROUND,
    KERB,
    LEAVES,
    PAVING,
    PLASTER,
    ROADC,
    SIDE,
    SIDEWALK,
    SKY,
    SKYC,
    SKYLINE,
    STREET,
    TERRAIN,
    VEGETATION,
    VOID,
    WINDOWS,
    YARD,
    Panes,
    Rgb,
    Thing,
    mix,
    pick,
    shade,
)
from segue.data.scenes.domains import Domain
from segue.data.scenes.plan import END, Dice, Numbers, Street, section
from segue.data.scenes.raster import NEAR, View


def _flat(thing: Thing, x0: float, x1: float, z0: float, z1: float, y: float, rgb: Rgb, label: int, tex: int) -> None:
    z0 = max(z0, NEAR)
    thing.add([(x0, y, z0), (x1, y, z0), (x1, y, z1), (x0, y, z1)], rgb, GROUND, y, label=label, tex=tex)


def ground(d: Domain, st: Street, u: Sequence[float]) -> Thing:
    """Road, sidewalks with kerbs, yards and greens as one thing without an object id."""
    p = d.palette
    floor = Thing(ROADC, FLOOR, -1e3, 1e3, NEAR, END)
    walk = shade(p.sidewalk, 0.95 + 0.1 * u[0])
    grass = pick(p.terrain, u[1], 0.1, u[2])
    road = shade(p.road, 0.93 + 0.14 * u[3])
    for s in (-1.0, 1.0):
        green = st.green[s > 0] or st.yard[s > 0] > 0.8
        rgb, label, tex = (grass, TERRAIN, GRASS) if green else (walk, SIDEWALK, PAVING)
        _flat(floor, s * st.front(s), s * 250.0, NEAR, END, 0.0, shade(rgb, 0.97), label, tex)
        _flat(floor, s * st.edge(s), s * st.front(s), NEAR, END, KERB, walk, SIDEWALK, PAVING)
        if u[4 + (s > 0)] < d.layout.verge_p:
            strip = st.edge(s) + min(1.1, 0.35 * st.walk[s > 0])
            _flat(floor, s * (st.edge(s) + 0.15), s * strip, NEAR, END, KERB, shade(grass, 0.95), TERRAIN, GRASS)
    _flat(floor, st.left, st.right, NEAR, END, 0.0, road, ROADC, ASPHALT)
    for s in (-1.0, 1.0):
        x = s * st.edge(s)
        floor.add(
            [(x, 0, NEAR), (x, 0, END), (x, KERB, END), (x, KERB, NEAR)], p.curb, SIDE, x, label=SIDEWALK, lit=0.7
        )
        _flat(floor, x, x + s * 0.16, NEAR, END, KERB, p.curb, SIDEWALK, 0)
    if st.cross is not None:
        for s in (-1.0, 1.0):
            _flat(floor, s * st.edge(s), s * 250.0, st.cross[0], st.cross[1], 0.0, road, ROADC, ASPHALT)
            x0, x1 = s * st.edge(s), s * 250.0
            far = st.cross[1]
            floor.add(
                [(x0, 0, far), (x1, 0, far), (x1, KERB, far), (x0, KERB, far)],
                p.curb,
                FRONT,
                far,
                label=SIDEWALK,
                lit=0.5,
            )
    return floor


def markings(d: Domain, st: Street, floor: Thing, u: Sequence[float], rails: bool) -> None:
    """Lane lines, edge lines, zebra, stop line, worn patches and tram rails, all labelled road."""
    paint = mix(d.palette.marking, d.palette.road, 0.35 * u[0])
    road = shade(d.palette.road, 0.93 + 0.14 * u[3])
    for k in range(3):
        z, x = 5.0 + 22.0 * u[k], st.left + (st.right - st.left) * u[k + 3]
        tone = shade(road, 0.82 if u[k] > 0.4 else 1.1)
        _flat(floor, x, min(x + 1.0 + 1.5 * u[k + 1], st.right), z, z + 2.0 + 9.0 * u[k + 2], 0.0, tone, ROADC, ASPHALT)
    middle = -st.lane / 2
    stop = st.cross[0] - 2.0 if st.cross else END
    start = st.cross[1] + 2.0 if st.cross else END
    spans = [(NEAR, stop - 3.4), (start, END)] if st.cross else [(NEAR, END)]
    for z0, z1 in spans:
        if u[1] < 0.35:
            _flat(floor, middle - 0.07, middle + 0.07, z0, z1, 0.0, paint, ROADC, 0)
        for s in (-1.0, 1.0):
            x = s * (st.edge(s) - d.layout.parking_m)
            if u[2] < 0.75 and st.parking[s > 0]:
                _flat(floor, x - 0.06, x + 0.06, z0, z1, 0.0, paint, ROADC, 0)
        for x in ([middle] if u[1] >= 0.35 else []) + ([st.lane / 2, -st.lane * 1.5] if st.lanes == 2 else []):
            z = z0 + 6.0 * u[4]
            while z < min(z1 - 3, 90):
                _flat(floor, x - 0.07, x + 0.07, z, z + 3.0, 0.0, paint, ROADC, 0)
                z += 7.5
    if st.cross and u[5] < 0.75:
        x = st.left + 0.4
        while x < st.right - 0.6:
            _flat(floor, x, x + 0.5, stop - 2.2, stop + 0.8, 0.0, paint, ROADC, 0)
            x += 1.0
        _flat(floor, middle, st.right - 0.3, stop - 3.6, stop - 3.2, 0.0, paint, ROADC, 0)
    if rails:
        for x in (-st.lane - 0.72, -st.lane + 0.72):
            _flat(floor, x - 0.06, x + 0.06, NEAR, END, 0.0, mix(d.palette.road, (0.25, 0.24, 0.24), 0.8), ROADC, 0)


def _end(d: Domain, dice: Dice) -> float:
    """Depth (metres) of the house that closes the street, or where the street fades out."""
    u = dice.table(2, 1)[0]
    return 95.0 + 110.0 * u[0] if u[1] < d.layout.end_building_p else END


def backdrop(d: Domain, st: Street, dice: Dice) -> list[Thing]:
    """Sky, a skyline of roofs and trees far away, and what closes the street."""
    sky = Thing(SKYC, BACKDROP, -1e3, 1e3, 900.0, 901.0)
    sky.add([(-9e3, -9e3, 900), (9e3, -9e3, 900), (9e3, 9e3, 900), (-9e3, 9e3, 900)], d.light.sky_low, SKY, 900.0)
    things = [sky]
    for k, u in enumerate(dice.table(1, 16)):
        x, z = -190.0 + 24.0 * k + 10.0 * u[0], END + 20.0 - 6 * (k % 3)
        if u[1] < 0.55:
            thing = Thing(BUILDING, SKYLINE, x, x + 30, z, z + 5, 0.0, 8.0 + 14.0 * u[2])
            thing.add(
                [(x, 0, z), (x + 30, 0, z), (x + 30, thing.height, z), (x, thing.height, z)],
                pick(d.palette.buildings, u[3], 0.1, u[4]),
                FRONT,
                z,
                tex=PLASTER,
                amp=0.1,
                lit=0.5,
            )
            things.append(thing)
            continue
        thing = Thing(VEGETATION, SKYLINE, x, x + 30, z, z + 5, 0.0, 14.0)
        top = [(x + 32 - 4.0 * i, 5.0 + 9.0 * u[(i * 3) % 8], z) for i in range(9)]
        thing.add(
            [(x, 0, z), (x + 32, 0, z), *top],
            pick(d.palette.leaves, u[3], 0.1, u[4]),
            FRONT,
            z,
            tex=LEAVES,
            amp=0.2,
            lit=0.5,
        )
        things.append(thing)
    u = dice.table(2, 1)[0]
    z = _end(d, dice)
    if z < END:
        x0, x1, height = -14.0 - 8 * u[2], 12.0 + 10 * u[4], 10.0 + 8.0 * u[3]
        house = Thing(BUILDING, SKYLINE, x0, x1, z, z + 12.0, 0.0, height)
        house.panes.append(Panes(0, 3.2, 3.3, 0.5, 0.55))
        house.add(
            [(x0, 0, z), (x1, 0, z), (x1, height, z), (x0, height, z)],
            pick(d.palette.buildings, u[5], 0.1, u[6]),
            FRONT,
            z,
            tex=WINDOWS,
            amp=d.texture.windows,
            lit=0.5,
            high=height,
        )
        things.append(house)
    return things


def row(d: Domain, st: Street, s: float, numbers: Numbers) -> list[Thing]:
    """One side of the street from front to back: houses and gaps, their yards with trees, walls, fences, hedges."""
    things: list[Thing] = []
    lay, z = d.layout, -6.0
    fenced = numbers[0][7]
    for u in numbers:
        length = lay.facade_m * (0.6 + 0.8 * u[0])
        z0, z1 = z, z + length
        z = z1 + (0.0 if u[1] < 0.6 else 3.0 * u[2])
        if st.cross and z1 > st.cross[0] and z0 < st.cross[1]:
            if z0 < st.cross[0] - 6.0:
                z1 = st.cross[0] - 1.5
            else:
                z = st.cross[1] + 1.5
                continue
        z0 = max(z0, NEAR)
        if z0 > 190 or z1 - z0 < 2.0:
            continue
        house = (u[3] > 0.72 and u[7] > 0.4) if st.green[s > 0] else u[3] > 0.09
        x = st.facade(s)
        if house:
            height = max(4.0, lay.building_m + lay.building_sd_m * 1.7 * (2 * u[4] - 1))
            things.append(street.building(d, s, x + (4.0 if st.green[s > 0] else 0.0), z0, z1, height, u[1:]))
        else:
            things += _grove(d, s, x, z0, z1, u)
        if st.yard[s > 0] > 0.5 or not house or st.green[s > 0]:
            things += _border(d, st, s, z0, z1, fenced, u)
    return things


def _grove(d: Domain, s: float, x: float, z0: float, z1: float, u: list[float]) -> list[Thing]:
    """A gap between houses filled with trees in two rows."""
    things = []
    for k in range(3):
        z = z0 + (z1 - z0) * (k + u[k]) / 3
        things.append(street.tree(d, s * (x + 2.2 + 2.5 * u[k + 3]), max(z, 4.0), 0.0, YARD, u[k:] + u[:k]))
        far = s * (x + 8.0 + 4.0 * u[k + 1])
        things.append(street.tree(d, far, max(z, 4.0) + 2.0, 0.0, YARD, u[k + 2 :] + u[: k + 2]))
    return things


def _border(d: Domain, st: Street, s: float, z0: float, z1: float, fenced: float, u: Sequence[float]) -> list[Thing]:
    """What stands between sidewalk and yard: a wall, a fence, a hedge or nothing."""
    lay, x = d.layout, st.front(s) + 0.15
    z0 = max(z0, 2.0)
    if z1 - z0 < 1.5:
        return []
    if fenced < lay.wall_p:
        return [street.barrier(d, s, x, z0, z1, False, u)]
    if fenced < lay.wall_p + lay.fence_p:
        back = [street.hedge(d, s, x + 0.6, z0, z1, u)] if u[5] > 0.5 else []
        return [*back, street.barrier(d, s, x, z0, z1, True, u)]
    return [street.hedge(d, s, x + 0.2, z0, z1, u)] if u[6] > 0.4 else []


def furniture(d: Domain, st: Street, s: float, dice: Dice) -> list[Thing]:
    """Street trees, lamps, signs, traffic lights and static boxes on one sidewalk."""
    lay, things = d.layout, []
    x = s * (st.edge(s) + 0.45)
    planted, lamps, offset = (dice.table(10 + int(s), 1)[0])[:3]
    for k, u in enumerate(dice.table(20 + int(s), 11)):
        z = 7.0 + 9.5 * (k + 0.5 * u[7]) + 4.0 * offset
        if planted < lay.tree_p and u[6] < 0.8 and not st.crossing(z - 2, z + 2):
            things.append(street.tree(d, x + s * 0.5, z, KERB, STREET, u))
    for k, u in enumerate(dice.table(30 + int(s), 9)):
        z = 6.0 + 15.0 * k + 10.0 * u[7]
        if st.crossing(z - 1, z + 1):
            continue
        if lamps < lay.lamp_p and k % 2 == (s > 0):
            things += street.lamp(d, s, x, z, KERB, u)
        if u[6] < lay.sign_p * 0.5:
            things += street.sign(d, x + s * 0.1, z + 3.0 + 3 * u[5], KERB, u)
        if u[6] > 0.72:
            things += [_bollard(d, x - s * 0.1, z + 1.8 * i + 1.0, u[4]) for i in range(3)]
    u = dice.table(40 + int(s), 1)[0]
    if u[4] < lay.light_p:
        z = st.cross[0] - 1.2 if st.cross else 9.0 + 26.0 * u[5]
        things += street.signal(d, x, z, KERB, u)
    for u in dice.table(50 + int(s), 2):
        if u[6] < lay.static_p:
            things.append(street.clutter(d.palette, s * (st.front(s) - 0.6), 7.0 + 24.0 * u[5], KERB, u))
    return things


def _bollard(d: Domain, x: float, z: float, u: float) -> Thing:
    return street.post(d, x, z, KERB, 0.95, 0.12, u)


def hood(d: Domain, view: View) -> Thing | None:
    """The bonnet of the own car at the lower edge, labelled void; None when it is out of view."""
    share = d.camera.hood
    if share <= 0.002:
        return None
    z = 0.5
    k = z / view.focal
    low = (view.v0 - view.height - 4) * k + view.camera_m
    half = (view.width / 2 + 8) * k

    def up(rows: float) -> float:
        return (view.v0 - view.height * (1 - rows)) * k + view.camera_m

    centre = (view.width / 2 - view.u0) * k
    arc = [(centre + half * (1 - i / 4), up(share * (1 - ((i - 4) / 4) ** 2 * 0.75)), z) for i in range(9)]
    thing = Thing(VOID, STREET + 1, -9, 9, z, z + 0.1, low, 0.1)
    thing.add([(centre - half, low, z), (centre + half, low, z), *arc], d.palette.hood, FRONT, z, lit=0.5)
    return thing


def build(d: Domain, seed: int, view: View) -> list[Thing]:
    """All things of the street of `seed`; object ids 1.. are given in order."""
    dice = Dice(seed)
    u, v, w = dice.table(0, 3)
    st = section(d, u, v)
    floor = ground(d, st, w)
    moving, rails = traffic(d, st, view, dice)
    markings(d, st, floor, dice.table(3, 1)[0], rails)
    things = [*backdrop(d, st, dice), floor]
    for s in (-1.0, 1.0):
        things += row(d, st, s, dice.table(5 + int(s), 16))
        things += furniture(d, st, s, dice)
    things += moving + crowd(d, st, dice)
    end = _end(d, dice)  # nothing is seen through the house that closes the street
    things = [t for t in things if t.layer <= SKYLINE or t.z0 < end - 1.0]
    cover = hood(d, view)
    if cover is not None:
        things.append(cover)
    ident = 0
    for thing in things:
        if thing.layer not in (BACKDROP, FLOOR):
            ident += 1
            thing.ident = ident
    return things
