"""Regions of images: superpixels computed once or taken over, kept as 16-bit PNGs with a table of areas."""

from segue.data.regions.folder import Index, Regions
from segue.data.regions.published import Published, PublishedConfig
from segue.data.regions.slic import SuperpixelConfig, superpixels
from segue.data.regions.write import make

__all__ = ["Index", "Published", "PublishedConfig", "Regions", "SuperpixelConfig", "make", "superpixels"]
