"""D2ADA's ``checkpoint0X.tar`` (Wu et al., ECCV 2022): DeepLabV2 with the region head, DeepLabV3 and V3+.

The network is the table ``model_state_dict``. Names are those of the VainF code, but the classifier is
``classifier.final`` and reads the feature of the regions. The discriminator that a warm-up stores beside the network is
another table of the file.
"""

from __future__ import annotations

from segue.foreign.base import LAYOUTS, Foreign, Layout, State
from segue.foreign.vainf import has_backbone, read_network, read_v3

FINAL = r"classifier\.final"
REGION_RULES = [
    (FINAL + r"\.(weight|bias)", r"classifier.\1"),
    (r"classifier\.aspp\.convs\.([0-3])\.0\.weight", r"pyramid.convs.\1.weight"),
]
NOTES = ("its batch norms were never trained: norm: frozen continues that",)


@LAYOUTS.register("d2ada")
class D2ADA(Layout):
    """DeepLabV2 (region head), V3 and V3+ of D2ADA."""

    def fits(self, state: State) -> bool:
        """Whether the classifier is ``classifier.final`` under a known backbone."""
        return has_backbone(state) and any(key.startswith("classifier.final.") for key in state)

    def read(self, state: State) -> Foreign:
        """The whole network."""
        if any(key.startswith(("classifier.classifier.", "classifier.project.")) for key in state):
            return read_v3(state, last={True: FINAL, False: FINAL}, notes=NOTES)
        return read_network(state, REGION_RULES, {"name": "deeplabv2", "head": "region"}, NOTES)
