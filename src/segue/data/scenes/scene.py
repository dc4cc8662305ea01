"""One scene from a domain and a seed: build the street, paint it, light it, photograph it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cache

import numpy as np
import numpy.typing as npt

from segue.data.scenes import world
from segue.data.scenes.build import BACKDROP, FLOOR, Thing
from segue.data.scenes.camera import photograph
from segue.data.scenes.domains import Domain
from segue.data.scenes.plan import Dice
from segue.data.scenes.raster import Painting, View, order, paint, shadow_maps
from segue.data.scenes.shade import Shader, srgb_table
from segue.labels import load_space

U8 = npt.NDArray[np.uint8]
I32 = npt.NDArray[np.int32]
F32 = npt.NDArray[np.float32]
LEAST = 64
"""Smallest image side, pixels."""


@dataclass(frozen=True)
class Item:
    """One object of a scene. `box` is where it would be drawn (x0, y0, x1, y1 pixels, unclipped, end exclusive)."""

    id: int
    name: str
    train_id: int
    depth_m: float
    base_m: float
    height_m: float
    box: tuple[float, float, float, float]
    visible: int


@dataclass
class Scene:
    """A rendered street with exact labels.

    `image` and `clean` (before camera effects) are uint8 RGB, `label` holds train ids (255 = void), `depth` metres
    (1000 = sky), `instance` object ids (0 = sky and ground), `surface` the painted polygon each pixel belongs to,
    `vanishing_point` (x, y) in pixels where pixel i spans i..i+1, `focal` pixels.
    """

    image: U8
    clean: U8
    label: U8
    depth: F32
    instance: I32
    surface: I32
    vanishing_point: tuple[float, float]
    focal: float
    objects: list[Item] = field(default_factory=list)


@cache
def class_names() -> tuple[str, ...]:
    """Names of the 19 train classes."""
    return load_space("cityscapes19").classes


def view_of(domain: Domain, seed: int, size: tuple[int, int]) -> View:
    """The camera of scene `seed`: the domain's pose with a little jitter (position of the vanishing point, height)."""
    height, width = size
    if height < LEAST or width < LEAST:
        raise ValueError(f"render: size must be at least {LEAST}x{LEAST} pixels, got {height}x{width}")
    c = domain.camera
    a, b, e, f = Dice(seed).table(8, 1)[0][:4]
    focal = 0.5 * width / math.tan(math.radians(c.fov_deg * (1 + 0.06 * c.jitter * (2 * f - 1))) / 2)
    u0 = width * (0.5 + 0.10 * c.jitter * (2 * a - 1))
    v0 = height * (c.horizon + 0.05 * c.jitter * (2 * b - 1))
    return View(width, height, focal, u0, v0, c.height_m * (1 + 0.1 * c.jitter * (2 * e - 1)))


def _items(things: list[Thing], painting: Painting, instance: I32) -> list[Item]:
    """Descriptions of all objects with an id that have at least one visible pixel."""
    names = class_names()
    counts = np.bincount(instance.ravel(), minlength=len(things) + 1)
    at = 0
    items = []
    for thing in things:
        n = len(thing.surfaces)
        if thing.layer not in (BACKDROP, FLOOR) and n and counts[thing.ident] > 0:
            low, high = painting.lows[at:at + n].min(axis=0), painting.highs[at:at + n].max(axis=0)
            name = names[thing.label] if thing.label < len(names) else "void"
            box = (float(low[0]), float(low[1]), float(high[0]), float(high[1]))
            items.append(Item(thing.ident, name, thing.label, thing.z0, thing.base, thing.height, box,
                              int(counts[thing.ident])))
        at += n
    return items


def render(domain: Domain, seed: int, size: tuple[int, int] = (128, 256)) -> Scene:
    """Draw scene `seed` of `domain` at `size` (height, width) pixels; a pure function of its arguments."""
    if seed < 0:
        raise ValueError(f"render: seed must not be negative, got {seed}")
    view = view_of(domain, seed, size)
    things = world.build(domain, seed, view)
    things = [things[k] for k in order(things)]
    painting = paint(things, view)
    sun, side = _sun(domain, seed)
    cast, contact = shadow_maps(things, view, sun)
    shaded = Shader(domain, view, painting, side).run(cast, contact)
    exposed = np.clip(shaded.light * np.float32(domain.camera.exposure * 4095), 0, 4095).astype(np.int32)
    clean = np.rint(srgb_table()[exposed]).astype(np.uint8).reshape(view.height, view.width, 3)
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([0xCA3E2A, seed])))
    image = photograph(clean, domain, rng)
    instance: I32 = painting.owner[painting.surface]
    depth = shaded.depth.reshape(view.height, view.width)
    return Scene(image, clean, painting.label[painting.surface], depth, instance, painting.surface,
                 (view.u0, view.v0), view.focal, _items(things, painting, instance))


def _sun(domain: Domain, seed: int) -> tuple[tuple[float, float], float]:
    """How far shadows reach per metre of height (x, z), and the side (-1..1) the sun stands on."""
    u, w = Dice(seed).table(9, 1)[0][:2]
    reach = min(1.0 / math.tan(math.radians(domain.light.elevation_deg * (0.85 + 0.3 * w))), 3.0)
    angle = math.pi * (2 * u - 1)
    return (round(reach * math.sin(angle), 6), round(0.6 * reach * math.cos(angle), 6)), -math.sin(angle)
