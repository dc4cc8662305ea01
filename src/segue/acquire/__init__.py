"""Which target regions a person should label: tables of regions, orders of buying, budgets. One file an acquisition."""

from segue.acquire.base import ACQUISITIONS, Acquisition, AcquisitionConfig, AcquisitionError, build_acquisition
from segue.acquire.budget import Purchase, walk
from segue.acquire.cost import CostModel, boundary_vertices, region_vertices
from segue.acquire.partition import Partition, Superpixels, WholeImage, Windows
from segue.acquire.table import RegionTable, TableError

__all__ = [
    "ACQUISITIONS",
    "Acquisition",
    "AcquisitionConfig",
    "AcquisitionError",
    "CostModel",
    "Partition",
    "Purchase",
    "RegionTable",
    "Superpixels",
    "TableError",
    "WholeImage",
    "Windows",
    "boundary_vertices",
    "build_acquisition",
    "region_vertices",
    "walk",
]
