"""The two domains with a name, ``game`` (a source) and ``city`` (a target), those between, and random ones."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import numpy as np

from segue.data.scenes.build import Rgb
from segue.data.scenes.domains import Camera, Colours, Domain, Layout, Light, Palette, Texture, Weather, blend, drift


def hexes(text: str) -> Colours:
    """Colours from six-digit hex words."""
    return tuple((int(w[0:2], 16) / 255, int(w[2:4], 16) / 255, int(w[4:6], 16) / 255) for w in text.split())


def _one(text: str) -> Rgb:
    return hexes(text)[0]


GAME_PALETTE = Palette(
    road=_one("8c8478"),
    marking=_one("f4efdc"),
    sidewalk=_one("c6bfb2"),
    curb=_one("d8d4c8"),
    buildings=hexes("e2cfae d99f7c e9e3d6 c9805c 9fb6c8 dcc07e"),
    roofs=hexes("a4532f b98f6a 8d5a44"),
    window=_one("38597a"),
    walls=hexes("c79f77 b8805f d9c6a3"),
    fences=hexes("5b6b5e 8f7350 6b747c"),
    poles=hexes("6e7b70 8a8f8c"),
    light_box=_one("d8a91c"),
    signs=hexes("1f7a3f d42a22 f2c417 f0f0ee"),
    leaves=hexes("5f9c26 78ad2c 4b8a2a 94b83c"),
    trunk=_one("7a5a38"),
    terrain=hexes("9db24c b8a860 86ab3f"),
    skin=hexes("e0aa84 b57a54 7c4f35"),
    shirts=hexes("d8332c 2f66c8 f0ece4 f0c02c 2c9c64 9a3fa8"),
    trousers=hexes("34507e 3a3a40 b09a74 6a4a34"),
    cars=hexes("c81e1e f0c21c 1f58c0 f2f2f0 1f9a6c e8791e 33343a 8d1fa0"),
    trucks=hexes("e0e0dc d8681c 2f74b4 c8b048"),
    buses=hexes("f0a41c 2a9cc4 d43a2a"),
    trains=hexes("c42424 2a8f4c e0e4e8"),
    motorcycles=hexes("c01818 1c1c20 e08a12"),
    bicycles=hexes("d02828 1f6fc4 e8c81c"),
    glass=_one("2c4250"),
    tyre=_one("1c1c1e"),
    static=hexes("3c6a48 a06a3a"),
    hood=_one("401012"),
)
GAME_TEXTURE = Texture(
    amount=1.0,
    asphalt=0.10,
    patches=0.10,
    paving=0.16,
    leaves=0.55,
    plaster=0.07,
    windows=0.85,
    grass=0.30,
    clouds=0.8,
    scale=0.8,
    window_w_m=3.6,
    floor_m=3.6,
    window_fill=0.62,
)
GAME_LAYOUT = Layout(
    lane_m=3.5,
    second_lane_p=0.35,
    parking_m=2.2,
    parking_p=0.45,
    verge_p=0.45,
    sidewalk_m=4.6,
    yard_m=2.6,
    green_p=0.32,
    cross_p=0.40,
    building_m=19.0,
    building_sd_m=6.5,
    facade_m=17.0,
    pitched=0.25,
    tree_p=0.64,
    tree_m=6.8,
    wall_p=0.24,
    fence_p=0.36,
    lamp_p=0.75,
    sign_p=0.7,
    light_p=0.45,
    parked_p=0.30,
    traffic_p=0.42,
    people_p=0.35,
    rider_p=0.22,
    moto_p=0.22,
    bike_p=0.42,
    truck_p=0.16,
    bus_p=0.16,
    train_p=0.12,
    static_p=0.35,
    end_building_p=0.5,
)
GAME_LIGHT = Light(
    sun=_one("fff0d0"),
    sun_power=1.0,
    ambient=_one("b8d0f4"),
    ambient_power=0.62,
    elevation_deg=42.0,
    shadow=0.9,
    contact=0.5,
    sky_top=_one("2f78d8"),
    sky_low=_one("b4dcf8"),
    cloud=_one("ffffff"),
    cover=0.35,
    night=0.0,
)
GAME_WEATHER = Weather(fog=0.0022, haze=_one("c4dcf0"), rain=0.0)
GAME_CAMERA = Camera(
    height_m=1.45,
    fov_deg=54.0,
    horizon=0.43,
    jitter=0.5,
    hood=0.0,
    exposure=0.95,
    gain=(1.03, 1.0, 0.96),
    saturation=1.18,
    contrast=1.12,
    lift=0.0,
    gamma=1.0,
    noise=0.004,
    blur_px=0.35,
    vignette=0.03,
)
GAME = Domain(GAME_PALETTE, GAME_TEXTURE, GAME_LAYOUT, GAME_LIGHT, GAME_WEATHER, GAME_CAMERA)

CITY_PALETTE = Palette(
    road=_one("54585e"),
    marking=_one("b8babc"),
    sidewalk=_one("85797a"),
    curb=_one("96928f"),
    buildings=hexes("a89a84 8c8a88 b4aa9c 76685c 9c8c78 8a7468"),
    roofs=hexes("5a4640 4c4a4c 6a5048"),
    window=_one("3c4248"),
    walls=hexes("86807a 74685f 98948c"),
    fences=hexes("4e5654 6c6e70 5c544a"),
    poles=hexes("62666a 787c7e"),
    light_box=_one("2a2e2c"),
    signs=hexes("22488a a8282c c8b23a d2d2ce"),
    leaves=hexes("38503a 485a3c 2f4a3c 565f40"),
    trunk=_one("4a443c"),
    terrain=hexes("66704c 787058 5c6a4a"),
    skin=hexes("c49c86 b08870 8a6450"),
    shirts=hexes("2c3038 4a5466 6a3a3a 8c8a86 3a4a44 20242c"),
    trousers=hexes("30384a 26262a 4c4a48 3a4250"),
    cars=hexes("1c1f24 9a9fa4 5a6068 c8cacb 2a3a58 3a3c40 6c2428 787e86"),
    trucks=hexes("c4c6c4 4a6484 8c8e8c 9a7a4a"),
    buses=hexes("a83c34 c0b478 5a7a8c"),
    trains=hexes("c0a848 98403c a4a8a8"),
    motorcycles=hexes("1c1e22 5c2024 3c4450"),
    bicycles=hexes("26282c 5a6266 4c2c2e"),
    glass=_one("363e44"),
    tyre=_one("1a1b1d"),
    static=hexes("4a4e4a 6a5e50"),
    hood=_one("26282c"),
)
CITY_TEXTURE = Texture(
    amount=1.0,
    asphalt=0.20,
    patches=0.26,
    paving=0.30,
    leaves=0.75,
    plaster=0.15,
    windows=0.95,
    grass=0.36,
    clouds=0.35,
    scale=1.5,
    window_w_m=2.7,
    floor_m=3.2,
    window_fill=0.46,
)
CITY_LAYOUT = Layout(
    lane_m=3.2,
    second_lane_p=0.2,
    parking_m=2.1,
    parking_p=0.55,
    verge_p=0.35,
    sidewalk_m=4.4,
    yard_m=2.2,
    green_p=0.26,
    cross_p=0.45,
    building_m=15.0,
    building_sd_m=4.0,
    facade_m=14.0,
    pitched=0.75,
    tree_p=0.60,
    tree_m=7.0,
    wall_p=0.22,
    fence_p=0.36,
    lamp_p=0.8,
    sign_p=0.7,
    light_p=0.42,
    parked_p=0.40,
    traffic_p=0.34,
    people_p=0.38,
    rider_p=0.20,
    moto_p=0.22,
    bike_p=0.45,
    truck_p=0.15,
    bus_p=0.15,
    train_p=0.11,
    static_p=0.35,
    end_building_p=0.6,
)
CITY_LIGHT = Light(
    sun=_one("f4ead8"),
    sun_power=0.16,
    ambient=_one("dce4ec"),
    ambient_power=0.95,
    elevation_deg=30.0,
    shadow=0.35,
    contact=0.6,
    sky_top=_one("c2ccd2"),
    sky_low=_one("e2e4e0"),
    cloud=_one("a8b0b6"),
    cover=0.8,
    night=0.0,
)
CITY_WEATHER = Weather(fog=0.0036, haze=_one("c2c8c6"), rain=0.0)
CITY_CAMERA = Camera(
    height_m=1.25,
    fov_deg=49.0,
    horizon=0.42,
    jitter=0.5,
    hood=0.05,
    exposure=1.26,
    gain=(0.96, 1.02, 0.97),
    saturation=0.80,
    contrast=0.94,
    lift=0.04,
    gamma=1.06,
    noise=0.022,
    blur_px=0.62,
    vignette=0.26,
)
CITY = Domain(CITY_PALETTE, CITY_TEXTURE, CITY_LAYOUT, CITY_LIGHT, CITY_WEATHER, CITY_CAMERA)

PRESETS: dict[str, Domain] = {"game": GAME, "city": CITY}
NAMES = (*PRESETS, "random-SEED", "A-B-SHARE")
"""What a domain can be called; of the last one ``game-city-0.30`` is an example."""


def random_domain(seed: int) -> Domain:
    """A domain drawn from documented ranges; a pure function of `seed`.

    It starts from a blend of the presets (share 0..1 per part: palette, texture, layout, light, weather, camera) and
    then varies: every palette colour by +-25 % per channel, every texture strength by a factor 0.5..1.8, sun elevation
    12..65 degrees, night 0 (70 %), 0.35..0.6 (dusk, 15 %) or 0.8..1 (15 %), fog extinction 0.001..0.02 per metre, rain
    0 (75 %) or 0.3..1, camera height 1.1..2.0 m, field of view 44..66 degrees, horizon 0.38..0.48 of the height, gains
    0.88..1.12, saturation 0.5..1.3, contrast 0.8..1.2, noise 0..0.04, blur 0.2..1 px, vignetting 0..0.4.
    """
    rng = np.random.default_rng(np.random.SeedSequence([0x5E60E, seed]))
    game, city = PRESETS["game"], PRESETS["city"]
    parts = {
        f.name: blend(getattr(game, f.name), getattr(city, f.name), float(rng.random()))
        for f in dataclasses.fields(Domain)
    }

    def between(low: float, high: float) -> float:
        return float(rng.uniform(low, high))

    def varied(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(varied(v) for v in value)
        return min(1.0, value * between(0.75, 1.25))

    palette = Palette(**{f.name: varied(getattr(parts["palette"], f.name)) for f in dataclasses.fields(Palette)})
    strengths = ("asphalt", "patches", "paving", "leaves", "plaster", "grass", "clouds")
    texture = dataclasses.replace(
        parts["texture"],
        scale=between(0.7, 1.7),
        **{n: getattr(parts["texture"], n) * between(0.5, 1.8) for n in strengths},
    )
    hour, wet = between(0, 1), between(0, 1)
    night = 0.0 if hour < 0.7 else between(0.35, 0.6) if hour < 0.85 else between(0.8, 1.0)
    light = dataclasses.replace(parts["light"], night=night, elevation_deg=between(12, 65), cover=between(0.1, 0.9))
    weather = dataclasses.replace(
        parts["weather"], fog=0.001 * 20.0 ** between(0, 1), rain=0.0 if wet < 0.75 else between(0.3, 1.0)
    )
    camera = dataclasses.replace(
        parts["camera"],
        height_m=between(1.1, 2.0),
        fov_deg=between(44, 66),
        horizon=between(0.38, 0.48),
        gain=(between(0.88, 1.12), between(0.88, 1.12), between(0.88, 1.12)),
        saturation=between(0.5, 1.3),
        contrast=between(0.8, 1.2),
        noise=between(0, 0.04),
        blur_px=between(0.2, 1.0),
        vignette=between(0, 0.4),
    )
    return Domain(palette, texture, parts["layout"], light, weather, camera)


def domain(name: str) -> Domain:
    """The preset called `name`, ``random-<seed>``, or ``A-B-SHARE``: that share (0..1) of the way from A to B."""
    if name in PRESETS:
        return PRESETS[name]
    if found := re.fullmatch(r"random-(\d+)", name, re.ASCII):
        return random_domain(int(found[1]))
    one = rf"{'|'.join(PRESETS)}|random-\d+"
    if found := re.fullmatch(rf"({one})-({one})-(0(?:\.\d+)?|1(?:\.0+)?)", name, re.ASCII):
        return drift(domain(found[1]), domain(found[2]), float(found[3]))
    raise ValueError(f"unknown domain {name!r}: expected one of {', '.join(NAMES)}")
