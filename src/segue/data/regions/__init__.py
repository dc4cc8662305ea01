"""Regions of images: superpixels computed once, kept as 16-bit PNGs with a table of areas."""

from segue.data.regions.folder import Index, Regions
from segue.data.regions.slic import SuperpixelConfig, superpixels
from segue.data.regions.write import make

__all__ = ["Index", "Regions", "SuperpixelConfig", "make", "superpixels"]
