"""The discriminator of adversarial adaptation in output space (Tsai et al., CVPR 2018, section 3, after DCGAN).

Five 4x4 convolutions of stride 2 with bias, 64, 128, 256, 512 and 1 channels, leaky ReLU (0.2) between them, no norm:
one domain logit for every 32x32 pixels. What it looks at (softmax, weighted self-information, …) and which label is
which domain is the method's business.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

CHANNELS = (64, 128, 256, 512)
STRIDE = 32
SLOPE = 0.2


class Discriminator(nn.Module):
    """Fully convolutional domain classifier of maps with ``channels`` channels; 2,781,121 parameters for 19."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        one, two, three, four = CHANNELS
        self.conv1 = nn.Conv2d(channels, one, 4, 2, 1)
        self.conv2 = nn.Conv2d(one, two, 4, 2, 1)
        self.conv3 = nn.Conv2d(two, three, 4, 2, 1)
        self.conv4 = nn.Conv2d(three, four, 4, 2, 1)
        self.classifier = nn.Conv2d(four, 1, 4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(N,C,H,W) to logits (N,1,H//32,W//32), at least one a side.

        A side below 32 is filled up with zeros, what the convolutions see beyond every border anyway.
        """
        height, width = x.shape[-2:]
        x = F.pad(x, (0, max(0, STRIDE - width), 0, max(0, STRIDE - height)))
        for conv in (self.conv1, self.conv2, self.conv3, self.conv4):
            x = F.leaky_relu(conv(x), SLOPE)
        out: Tensor = self.classifier(x)
        return out
