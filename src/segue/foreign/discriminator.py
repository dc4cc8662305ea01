"""Five-convolution discriminators of adversarial adaptation (Tsai et al., CVPR 2018, section 3), in two spellings."""

from __future__ import annotations

from segue.foreign.base import LAYOUTS, Foreign, Layout, State, outputs

NAMES = ("conv1", "conv2", "conv3", "conv4", "classifier")
INDICES = ("0", "2", "4", "6", "8")
KINDS = ("weight", "bias")
ENOUGH = 8
"""Of the ten tensors: one may be missing and the file is still known for what it is."""


class _DiscriminatorLayout(Layout):
    theirs: tuple[str, ...]

    def fits(self, state: State) -> bool:
        """Nearly all of the ten names, with 4x4 kernels."""
        found = [f"{name}.{kind}" for name in self.theirs for kind in KINDS if f"{name}.{kind}" in state]
        kernels = [state[key].shape[-2:] for key in found if key.endswith("weight")]
        return len(found) >= ENOUGH and any(kernel == (4, 4) for kernel in kernels)

    def read(self, state: State) -> Foreign:
        """The ten tensors under our names."""
        pairs = zip(self.theirs, NAMES, strict=True)
        renamed = {f"{a}.{k}": f"{b}.{k}" for a, b in pairs for k in KINDS if f"{a}.{k}" in state}
        return Foreign(
            part="discriminator",
            state={ours: state[key] for key, ours in renamed.items()},
            renamed=renamed,
            num_classes=outputs(state, f"{self.theirs[0]}.weight", dim=1),
        )


@LAYOUTS.register("discriminator")
class NamedDiscriminator(_DiscriminatorLayout):
    """Discriminators of AdaptSegNet, FDA, D2ADA (``model_D``) and the ``_disc`` files of real-time adaptation."""

    theirs = NAMES


@LAYOUTS.register("discriminator_sequential")
class SequentialDiscriminator(_DiscriminatorLayout):
    """Discriminators of ADVENT, a plain sequence numbered 0, 2, 4, 6, 8."""

    theirs = INDICES
