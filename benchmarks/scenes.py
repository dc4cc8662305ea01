"""CPU time of rendering scenes: ``python benchmarks/scenes.py [scenes] [height] [width]`` prints ms per scene."""

from __future__ import annotations

import sys
import time

from segue.data import scenes


def main(num: int = 64, height: int = 128, width: int = 256) -> None:
    """Render `num` scenes of each preset and of some random domains and print CPU milliseconds per scene."""
    print(f"{num} scenes of {height}x{width}")
    for name in (*scenes.PRESETS, "random-1", "random-2"):
        domain = scenes.domain(name)
        scenes.render(domain, 0, (height, width))
        start = time.process_time()
        for seed in range(num):
            scenes.render(domain, seed, (height, width))
        print(f"{name:10s} {(time.process_time() - start) / num * 1e3:7.1f} CPU ms/scene")


if __name__ == "__main__":
    main(*(int(a) for a in sys.argv[1:]))
