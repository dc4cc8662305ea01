"""Name -> class for models, methods and datasets' kin; a new file in the right folder is found by itself.

A registry owns one package folder. Looking a name up imports every module of that package once (each registers its
classes with ``@REGISTRY.register("name")``), then the entry points of the group ``segue.<kind>`` of installed packages.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from importlib.metadata import entry_points
from typing import Generic, TypeVar

from segue.errors import UserError
from segue.labels import nearest

T = TypeVar("T")
C = TypeVar("C")


class UnknownName(UserError):
    """No such model, method, … ; the message names the nearest one."""


class Registry(Generic[T]):
    """Classes of one kind by name; ``package`` is the folder that is searched."""

    def __init__(self, kind: str, package: str) -> None:
        self.kind = kind
        self.package = package
        self._classes: dict[str, type[T]] = {}
        self._scanned = False

    def register(self, name: str) -> Callable[[type[C]], type[C]]:
        """Class decorator; a name can be taken only once."""

        def add(cls: type[C]) -> type[C]:
            if name in self._classes:
                raise ValueError(f"{self.kind} {name!r} is already registered by {self._classes[name].__module__}")
            self._classes[name] = cls  # type: ignore[assignment]
            return cls

        return add

    def names(self) -> list[str]:
        """All registered names, sorted."""
        self._scan()
        return sorted(self._classes)

    def get(self, name: str) -> type[T]:
        """The class of that name; ``UnknownName`` with the nearest name when there is none."""
        self._scan()
        if name not in self._classes:
            raise UnknownName(f"unknown {self.kind} {name!r}{nearest(name, self.names())}")
        return self._classes[name]

    def _scan(self) -> None:
        if self._scanned:
            return
        self._scanned = True
        package = importlib.import_module(self.package)
        for module in pkgutil.walk_packages(package.__path__, prefix=self.package + "."):
            importlib.import_module(module.name)
        for point in entry_points(group=f"segue.{self.kind}s"):
            point.load()
