"""Procedural street scenes with exact labels: a source ("game"), a target ("city") and everything between.

``render(domain, seed, size)`` draws one perspective street with the 19 Cityscapes train classes, its depth and object
maps; ``write`` makes data sets in the layouts of Cityscapes and GTA5, constant ones and
streams that drift; ``drift`` blends domains.  See ``domains`` for the knobs, ``world`` for the layout, ``shade`` for
light and texture, ``camera`` for the sensor.
"""

from __future__ import annotations

from segue.data.scenes.domains import (
    Camera,
    Domain,
    Layout,
    Light,
    Palette,
    Texture,
    Weather,
    digest,
    drift,
)
from segue.data.scenes.presets import NAMES, PRESETS, domain, random_domain
from segue.data.scenes.scene import Item, Scene, render
from segue.data.scenes.sheet import contact_sheet
from segue.data.scenes.write import scene_seed, write

__all__ = [
    "NAMES",
    "PRESETS",
    "Camera",
    "Domain",
    "Item",
    "Layout",
    "Light",
    "Palette",
    "Scene",
    "Texture",
    "Weather",
    "contact_sheet",
    "digest",
    "domain",
    "drift",
    "random_domain",
    "render",
    "scene_seed",
    "write",
]
