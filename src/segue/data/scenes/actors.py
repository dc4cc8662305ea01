"""Who is on the street: traffic lane by lane, parked vehicles, pedestrians, riders, crossing cars.

The knobs are the `*_p` densities of ``domains.Layout``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from segue.data.scenes import people, vehicles
from segue.data.scenes.build import KERB, Thing
from segue.data.scenes.domains import Domain
from segue.data.scenes.plan import Dice, Numbers, Street
from segue.data.scenes.raster import View


def traffic(d: Domain, st: Street, view: View, dice: Dice) -> tuple[list[Thing], bool]:
    """Moving and parked vehicles lane by lane; also whether there are tram rails."""
    lay = d.layout
    rare = dice.table(60, 6)
    flags = {"truck": rare[0][0] < lay.truck_p, "bus": rare[1][0] < lay.bus_p, "moto": rare[2][0] < lay.moto_p}
    rails = rare[3][0] < lay.train_p
    things: list[Thing] = []
    lanes = [(0.0, True, 8.0, lay.traffic_p), (-st.lane, False, 7.0, lay.traffic_p)]
    if st.lanes == 2:
        lanes += [(st.lane, True, 6.0, lay.traffic_p), (-2 * st.lane, False, 7.0, lay.traffic_p)]
    lanes += [
        (x, rear, first, lay.parked_p)
        for x, rear, first, beside in (
            (st.right - 1.05, True, 5.5, st.parking[1]),
            (st.left + 1.05, rare[4][1] < 0.3, 7.0, st.parking[0]),
        )
        if beside
    ]
    special = [(name, int(rare[i][1] * 2), rare[i]) for i, name in enumerate(("truck", "bus", "moto")) if flags[name]]
    for lane, (x, rear, first, share) in enumerate(lanes):
        if lane == 1 and rails:
            things.append(vehicles.tram(d.palette, x, 19.0 + 45.0 * rare[3][1], rare[3][2:]))
            continue
        parked = share == lay.parked_p and lane > 1
        things += _lane(
            d,
            st,
            view,
            x,
            rear,
            first,
            share,
            parked,
            dice.table(70 + lane, 9),
            [s for s in special if (s[1] == lane or (rails and lane == 0))],
        )
    return things, rails


def _lane(
    d: Domain,
    st: Street,
    view: View,
    x: float,
    rear: bool,
    first: float,
    share: float,
    parked: bool,
    numbers: Numbers,
    special: list[tuple[str, int, list[float]]],
) -> list[Thing]:
    """Vehicles of one lane in driving order; `special` ones take the first free places."""
    things: list[Thing] = []
    z = first + (4.0 if parked else 9.0) * numbers[0][7]
    queue = list(special)
    for k, u in enumerate(numbers):
        present = u[7 - (k % 2)] < share
        gap = 1.0 + 1.6 * u[6] if parked else 4.0 + 14.0 * u[6] * u[6]
        if z > 150 or (parked and st.crossing(z - 1, z + 6)):
            z += 5.5
            continue
        if queue and k >= 1:
            kind, _, w = queue.pop(0)
            things += _special(d, kind, x, z + 4.0 * w[3], rear, w)
            z += 13.5 + 4.0 * w[3] + gap
            continue
        if present:
            detail = view.focal * 1.5 / z > 9
            things.append(vehicles.car(d.palette, x + 0.3 * (u[5] - 0.5), z, rear, u, detail))
        z += 4.9 + gap
    return things


def _special(d: Domain, kind: str, x: float, z: float, rear: bool, w: Sequence[float]) -> list[Thing]:
    if kind == "bus":
        return [vehicles.bus(d.palette, x, z, rear, w[2:])]
    if kind == "truck":
        return [vehicles.truck(d.palette, x, z, rear, w[2:])]
    at = 8.0 + 0.5 * (z - 8.0)
    bike = people.motorcycle(d.palette, x + 0.4, at, w, side=False)
    return [bike, people.rider(d.palette, x + 0.4, at, w, side=False, motor=True)]


def crowd(d: Domain, st: Street, dice: Dice) -> list[Thing]:
    """Pedestrians on sidewalks and crossing, riders, parked two-wheelers and crossing cars."""
    lay, pal, things = d.layout, d.palette, list[Thing]()
    for s in (-1.0, 1.0):
        for u in dice.table(90 + int(s), 9, 10):
            z = 6.5 * math.exp(2.1 * u[8])
            if u[9] < lay.people_p and not st.crossing(z - 0.5, z + 0.5):
                x = s * (st.edge(s) + 0.7 + (st.walk[s > 0] - 1.0) * u[6])
                things.append(people.person(pal, x, z, KERB, u))
                if u[0] < 0.3:
                    things.append(people.person(pal, x + 0.55, z + 0.25, KERB, u[3:] + u[:3]))
    for u in dice.table(100, 3, 10):
        if u[9] < lay.people_p * 0.5:
            z = st.cross[0] - 2.6 if st.cross else 14.0 + 25.0 * u[8]
            things.append(people.person(pal, st.left + 1 + (st.right - st.left - 2) * u[7], z + 0.6 * u[6], 0.0, u))
    for u in dice.table(101, 3):
        if u[7] < lay.rider_p * 0.55:
            things += _cyclist(d, st, u)
    for u in dice.table(102, 7):
        if u[7] < lay.bike_p * 0.5:
            s = 1.0 if u[6] < 0.5 else -1.0
            z, x = 6.0 + 13.0 * u[5], s * (st.front(s) - 0.45 - 0.8 * u[3])
            if not st.crossing(z - 1, z + 2):
                things.append(people.bicycle(pal, x, z, KERB, u, side=True, along=u[4] < 0.6))
    u = dice.table(103, 1)[0]
    if u[7] < lay.moto_p * 0.6:
        s = 1.0 if u[6] < 0.5 else -1.0
        things.append(people.motorcycle(pal, s * (st.edge(s) - 0.8), 7.0 + 10.0 * u[5], u, side=u[4] < 0.6))
    if st.cross:
        for s, u in zip((-1.0, 1.0), dice.table(104, 2), strict=True):
            if u[7] < lay.traffic_p:
                x = s * (st.edge(s) * 0.35 + 3.0 * u[6])
                things.append(vehicles.car_across(pal, x, (st.cross[0] + st.cross[1]) / 2 + s * 2.2, u))
    return things


def _cyclist(d: Domain, st: Street, u: Sequence[float]) -> list[Thing]:
    """A rider and the bicycle: along the right or left road edge, or crossing."""
    across = u[6] < 0.3
    if across:
        z = st.cross[0] + 1.0 if st.cross else 12.0 + 18.0 * u[5]
        x = st.left + 1.5 + (st.right - st.left - 3.0) * u[4]
    else:
        z = 7.0 + 20.0 * u[5] * u[5]
        right = u[4] < 0.6
        inset = d.layout.parking_m + 0.1 if st.parking[right] else 0.8
        x = st.right - inset if right else st.left + inset
        across = u[3] < 0.2
    bike = people.bicycle(d.palette, x, z, 0.0, u, side=across)
    return [bike, people.rider(d.palette, x, z, u, side=across, motor=False)]
