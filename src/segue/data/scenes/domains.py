"""Domains: everything that makes two worlds look different, as frozen dataclasses of numbers.

A :class:`Domain` holds a palette (sRGB colours), texture strengths, layout statistics, light, weather and a camera.
Every leaf is a float, so :func:`drift` can blend any two domains.  The knobs that matter most for the gap between two
domains: ``palette`` (class-wise colours), ``light`` (sun against overcast), ``camera`` (tone, cast, noise, blur).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from typing import Any

from segue.data.scenes.build import Rgb

Colours = tuple[Rgb, ...]


@dataclass(frozen=True)
class Palette:
    """Surface colours, sRGB in 0..1, as seen under white light of strength one."""

    road: Rgb
    marking: Rgb
    sidewalk: Rgb
    curb: Rgb
    buildings: Colours
    roofs: Colours
    window: Rgb
    walls: Colours
    fences: Colours
    poles: Colours
    light_box: Rgb
    signs: Colours
    leaves: Colours
    trunk: Rgb
    terrain: Colours
    skin: Colours
    shirts: Colours
    trousers: Colours
    cars: Colours
    trucks: Colours
    buses: Colours
    trains: Colours
    motorcycles: Colours
    bicycles: Colours
    glass: Rgb
    tyre: Rgb
    static: Colours
    hood: Rgb


@dataclass(frozen=True)
class Texture:
    """Texture strengths (relative contrast, 0 = flat) and sizes; `amount` scales all of them at once."""

    amount: float
    asphalt: float
    patches: float
    paving: float
    leaves: float
    plaster: float
    windows: float
    grass: float
    clouds: float
    scale: float
    window_w_m: float
    floor_m: float
    window_fill: float


@dataclass(frozen=True)
class Layout:
    """Layout statistics: lengths in metres, `*_p` probabilities, the rest expected densities."""

    lane_m: float
    second_lane_p: float
    parking_m: float
    parking_p: float
    verge_p: float
    sidewalk_m: float
    yard_m: float
    green_p: float
    cross_p: float
    building_m: float
    building_sd_m: float
    facade_m: float
    pitched: float
    tree_p: float
    tree_m: float
    wall_p: float
    fence_p: float
    lamp_p: float
    sign_p: float
    light_p: float
    parked_p: float
    traffic_p: float
    people_p: float
    rider_p: float
    moto_p: float
    bike_p: float
    truck_p: float
    bus_p: float
    train_p: float
    static_p: float
    end_building_p: float


@dataclass(frozen=True)
class Light:
    """Sun and sky. Powers are relative, `night` in 0..1 turns lamps and lit windows on."""

    sun: Rgb
    sun_power: float
    ambient: Rgb
    ambient_power: float
    elevation_deg: float
    shadow: float
    contact: float
    sky_top: Rgb
    sky_low: Rgb
    cloud: Rgb
    cover: float
    night: float


@dataclass(frozen=True)
class Weather:
    """`fog` is the extinction per metre, `haze` the colour distance fades to, `rain` in 0..1 wets and streaks."""

    fog: float
    haze: Rgb
    rain: float


@dataclass(frozen=True)
class Camera:
    """Pose, optics and sensor. `blur_px` is the Gaussian sigma for an image 128 pixels high."""

    height_m: float
    fov_deg: float
    horizon: float
    jitter: float
    hood: float
    exposure: float
    gain: Rgb
    saturation: float
    contrast: float
    lift: float
    gamma: float
    noise: float
    blur_px: float
    vignette: float


@dataclass(frozen=True)
class Domain:
    """A place, a season, a time of day and a camera; :func:`render` is a pure function of it, a seed and a size."""

    palette: Palette
    texture: Texture
    layout: Layout
    light: Light
    weather: Weather
    camera: Camera


def blend(a: Any, b: Any, t: float) -> Any:
    """Each number of `a` (dataclasses, tuples, floats) moved a share `t` of the way to that of `b`."""
    if isinstance(a, tuple):
        return tuple(blend(x, y, t) for x, y in zip(a, b, strict=True))
    if dataclasses.is_dataclass(a) and not isinstance(a, type):
        names = [f.name for f in dataclasses.fields(a)]
        return type(a)(**{n: blend(getattr(a, n), getattr(b, n), t) for n in names})
    return a + (b - a) * t


def drift(a: Domain, b: Domain, t: float) -> Domain:
    """The domain a share `t` of the way from `a` to `b`; exactly `a` at 0 and `b` at 1."""
    if not 0.0 <= t <= 1.0:
        raise ValueError(f"drift: t must lie in 0..1, got {t}")
    if t in (0.0, 1.0):
        return b if t else a
    result: Domain = blend(a, b, t)
    return result


def canonical(value: Domain) -> str:
    """Canonical JSON of a domain (sorted keys, floats rounded to 9 digits), the text :func:`digest` hashes."""

    def plain(item: Any) -> Any:
        if isinstance(item, dict):
            return {k: plain(v) for k, v in item.items()}
        if isinstance(item, (tuple, list)):
            return [plain(v) for v in item]
        return round(float(item), 9)

    return json.dumps(plain(dataclasses.asdict(value)), sort_keys=True, separators=(",", ":"))


def digest(value: Domain) -> str:
    """SHA-256 (hex) of :func:`canonical`."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()
