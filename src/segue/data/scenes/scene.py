"""One scene from a domain and a seed: build the street, paint it, light it, photograph it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cache, cached_property

import numpy as np
import numpy.typing as npt

from segue.data.scenes import world
from segue.data.scenes.build import BACKDROP, FLOOR, Thing
from segue.data.scenes.camera import photograph
from segue.data.scenes.domains import Domain
from segue.data.scenes.plan import Dice
from segue.data.scenes.raster import Painting, View, order, paint
from segue.data.scenes.shade import Shader, expose
from segue.data.scenes.shadows import shadow_maps
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


@dataclass(eq=False)
class Scene:
    """A rendered street with exact labels.

    `image` and `clean` (before camera effects) are uint8 RGB, `label` holds train ids (255 = void), `depth` metres
    (1000 = sky), `instance` object ids (0 = sky and ground), `surface` the painted polygon each pixel belongs to,
    `vanishing_point` (x, y) in pixels where pixel i spans i..i+1, `focal` pixels, `objects` what can be seen.
    Training needs image and label only, so `instance` and `objects` are worked out when asked for.
    """

    image: U8
    clean: U8
    label: U8
    depth: F32
    vanishing_point: tuple[float, float]
    focal: float
    things: list[Thing] = field(repr=False)
    painting: Painting = field(repr=False)

    @property
    def surface(self) -> I32:
        return self.painting.surface

    @cached_property
    def instance(self) -> I32:
        out: I32 = self.painting.owner[self.painting.surface]
        return out

    @cached_property
    def objects(self) -> list[Item]:
        return _items(self.things, self.painting, self.instance)


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
    items = []
    for thing, at, end in zip(things, painting.first, painting.first[1:], strict=False):
        if thing.layer not in (BACKDROP, FLOOR) and end > at and counts[thing.ident] > 0:
            low, high = painting.lows[at:end].min(axis=0), painting.highs[at:end].max(axis=0)
            name = names[thing.label] if thing.label < len(names) else "void"
            box = (float(low[0]), float(low[1]), float(high[0]), float(high[1]))
            items.append(
                Item(thing.ident, name, thing.label, thing.z0, thing.base, thing.height, box, int(counts[thing.ident]))
            )
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
    shader = Shader(domain, view, painting, side)
    clean = expose(shader.run(cast, contact), view, domain.camera.exposure)
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([0xCA3E2A, seed])))
    image = photograph(clean, domain, rng)
    label: U8 = painting.label.take(painting.surface)
    depth = shader.g.picture(shader.g.depth)
    return Scene(image, clean, label, depth, (view.u0, view.v0), view.focal, things, painting)


def _sun(domain: Domain, seed: int) -> tuple[tuple[float, float], float]:
    """How far shadows reach per metre of height (x, z), and the side (-1..1) the sun stands on."""
    u, w = Dice(seed).table(9, 1)[0][:2]
    reach = min(1.0 / math.tan(math.radians(domain.light.elevation_deg * (0.85 + 0.3 * w))), 3.0)
    angle = math.pi * (2 * u - 1)
    return (round(reach * math.sin(angle), 6), round(0.6 * reach * math.cos(angle), 6)), -math.sin(angle)
