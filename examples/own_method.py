"""A method of your own in 20 lines, without a change to Segue: sharpen the predictions on target images.

The method is entropy minimisation with a ramp; see CONTRIBUTING.md for what a method may do. A registered class can be
named in any recipe that is run in the same process; a package makes it known everywhere by the entry point group
``segue.methods``. Run it in an empty folder: python own_method.py [FOLDER].
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

from pydantic import Field

import segue
from segue.data import scenes
from segue.methods.base import METHODS, Batches, Method, MethodConfig, Terms
from segue.ops.entropy import entropy
from segue.ops.losses import CriterionConfig


class RampConfig(MethodConfig):
    """Settings of ``entropy_ramp``."""

    criterion: CriterionConfig = CriterionConfig()
    weight: float = Field(0.01, ge=0)
    """Weight of the target term at the end of its ramp."""
    ramp_iterations: int = Field(10, ge=1)


@METHODS.register("entropy_ramp")
class EntropyRamp(Method):
    """Supervised on the source; more and more certain on the target."""

    Config = RampConfig
    config: RampConfig
    needs = ("source", "target")

    def losses(self, batches: Batches, iteration: int) -> Iterator[Terms]:
        """Two graphs, freed one after the other."""
        source = batches["source"]
        yield Terms(source=self.supervised(self.model(source.image), source, self.config.criterion))
        weight = self.config.weight * min(1.0, iteration / self.config.ramp_iterations)
        output = self.model(batches["target"].image)
        yield Terms(entropy=weight * entropy(output.logits).mean())


def main(folder: Path) -> None:
    """Two domains, one stage, and what the method logged."""
    size = (64, 96)
    scenes.write(folder / "game", num=8, seed=1, domain=scenes.domain("game"), size=size, layout="gta5")
    scenes.write(folder / "city", num=8, seed=2, domain=scenes.domain("city"), size=size)
    recipe = {
        "name": "own_method",
        "labels": "cityscapes19",
        "model": {"name": "bisenet", "width": 0.125},
        "data": {
            "game": {"dataset": "gta5", "root": str(folder / "game")},
            "city": {"dataset": "cityscapes", "root": str(folder / "city")},
        },
        "train": {"iterations": 20, "batch_size": 4, "log_every": 5},
        "optim": {"name": "adamw", "lr": 0.01},
        "stages": [
            {
                "name": "sharp",
                "method": {"name": "entropy_ramp", "weight": 0.02},
                "data": {"source": "game:train", "target": "city:train"},
            }
        ],
    }
    result = segue.run(recipe, folder / "run", device="cpu")
    for line in (result.folder / "stages/0_sharp/metrics.jsonl").read_text().splitlines():
        row = json.loads(line)
        if "loss/source" in row:  # other lines are looks at the target (docs/alarms.md)
            print(f"iteration {row['iteration']}: source {row['loss/source']:.3f}, entropy {row['loss/entropy']:.4f}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "example"))
