"""What every segmentation network here is: any image size in, logits at the network's own stride out.

A model file subclasses :class:`SegModel`, implements ``decode`` (normalised, padded image to :class:`Output`) and
``classifiers``, and registers itself. Everything else (normalisation, padding to a multiple, freezing, norm policy,
parameter groups, head growth) is here once.
"""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segue.errors import UserError
from segue.models import growth, trained
from segue.ops.resize import bilinear
from segue.registry import Registry

if TYPE_CHECKING:
    from segue.models.anchor import Anchor

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
Extra = Literal["none", "unknown"]


@dataclass(frozen=True)
class Head:
    """An auxiliary output that is supervised beside the main logits.

    ``logits`` (N,K,h,w); ``weight`` its factor in the loss; ``target`` says what it predicts: the classes, or one
    channel of class boundaries; ``window`` (top, left, height, width) in input pixels when it saw a crop only.
    """

    name: str
    logits: Tensor
    weight: float = 1.0
    target: Literal["classes", "boundary"] = "classes"
    window: tuple[int, int, int, int] | None = None


@dataclass(frozen=True)
class Output:
    """What a forward pass returns.

    ``logits`` (N,C,h,w) at the network's own stride; ``embedding`` (N,D,h,w): what the classifier reads; ``stages``:
    backbone maps; ``heads``: auxiliary outputs, empty in eval mode. ``size`` is (H,W) of the given image, ``padded``
    that of the image the network saw. ``extra="unknown"``: one output follows those of the classes. ``weight`` is the
    factor of the logits' own loss beside the heads'.
    """

    logits: Tensor
    embedding: Tensor
    stages: tuple[Tensor, ...] = ()
    heads: tuple[Head, ...] = ()
    size: tuple[int, int] = (0, 0)
    padded: tuple[int, int] = (0, 0)
    align_corners: bool = False
    num_classes: int = 0
    extra: Extra = "none"
    weight: float = 1.0

    def upsample(self, tensor: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """(N,K,h,w) on the network's grid to (N,K,*size*) on the image's, bilinear; default the image's own size.

        The margin that was padded on is cut off.
        """
        height, width = size or self.size
        # as it is for the own size: an export with symbolic sizes cannot round
        full = self.padded if size is None else self.covered(size)
        if tensor.shape[-2:] != full:
            tensor = bilinear(tensor, full, self.align_corners)
        return tensor[..., :height, :width]

    def covered(self, size: tuple[int, int]) -> tuple[int, int]:
        """(H,W) that the network's grid covers when the image without its margin is upsampled to ``size``."""
        return round(self.padded[0] * size[0] / self.size[0]), round(self.padded[1] * size[1] / self.size[1])

    def to_classes(self) -> Tensor:
        """Logits without outputs beyond the label space: (N,C,h,w).

        A model with an ``unknown`` output (:meth:`SegModel.add_unknown`) carries it last; it competes in training and
        never wins in a prediction.
        """
        return self.logits[:, : self.num_classes]


@dataclass(frozen=True)
class ParamGroup:
    """Parameters that share a learning-rate factor and whether they are decayed."""

    name: str
    params: list[nn.Parameter]
    lr_factor: float
    decay: bool


class ModelConfig(trained.TrainedConfig):
    """Settings that every model has."""

    name: str
    """Registered name, see ``segue list models``."""
    weights: str | None = None
    """Start of the encoder: ``none``/null, ``imagenet`` (timm; Hugging Face for Mix Transformers), ``lite0-package``,
    or a file."""
    head_lr_factor: float = 1.0
    """Learning rate of everything outside the encoder, as a multiple of ``optim.lr``."""

    def of_network(self) -> dict[str, Any]:
        """What the network is, without how it starts and is trained, as plain values."""
        how = {"weights", "head_lr_factor", *trained.TrainedConfig.model_fields}
        return self.model_dump(mode="json", exclude=how)


class SegModel(nn.Module):
    """A segmentation network: ``forward`` (N,3,H,W) float 0..1, any size >= 32, to :class:`Output`.

    ``training_only`` names the submodules that serve training alone; ``decode`` and ``classifiers`` must work when such
    an attribute is None, which is what :meth:`deployed` makes of it. ``fixed_size_graph``: ``decode`` counts on sizes
    that are numbers, so that an exported graph holds one. ``not_exported``: why there is no graph; empty: there is.
    ``anchor``: what it keeps of the images that it, or the network it started from, was trained on. ``needs_anchor``:
    it must start with one in a stage that has a stream ``target``.
    """

    Config: type[ModelConfig] = ModelConfig
    multiple: int = 32
    align_corners: bool = False
    encoder_prefix: str = "backbone."
    training_only: tuple[str, ...] = ()
    fixed_size_graph: bool = False
    not_exported: str = ""
    needs_anchor: bool = False

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        config: ModelConfig,
        num_classes: int,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
    ) -> None:
        super().__init__()
        self.config = config
        self.num_classes = num_classes
        self.extra: Extra = "none"
        self.notes: tuple[str, ...] = ()  # of weights that it started from, such as their licence; kept in model.json
        self.anchor: Anchor | None = None
        self._biased: set[str] = set()  # classifiers that got a bias they were not built with
        self._late: frozenset[str] = frozenset()  # patterns of ``gradual`` whose time has not come
        self._waiting: set[str] = set()  # parameters that they have frozen
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(1, 3, 1, 1))

    @classmethod
    def tiny(cls) -> dict[str, Any]:
        """Settings of the smallest useful network of this class, for tests; ``name`` is added by the caller."""
        return {}

    def adopt(self, anchor: Anchor | None) -> None:
        """Keep the anchor of the network that this one starts from."""
        self.anchor = anchor

    def meet(self, images: Iterable[Tensor]) -> None:
        """Look at some images (N,3,H,W) 0..1 of the unlabelled stream, once before training on it (not on resume)."""

    @abstractmethod
    def decode(self, x: Tensor) -> Output:
        """Normalised image, sides a multiple of ``self.multiple``, to logits, embedding, stages and heads."""

    @abstractmethod
    def classifiers(self) -> Mapping[str, nn.Module]:
        """Every module that makes logits from an embedding, by attribute path, the one of ``logits`` first.

        Each is a sum over the convolutions (plain or transposed) in it, most often one 1x1 convolution itself.
        """

    def imagenet_state(self) -> Mapping[str, Tensor] | None:
        """ImageNet weights named like the encoder's own state; may download. None: no library has them."""
        return None

    def forward(self, image: Tensor) -> Output:
        """(N,3,H,W) float 0..1 to logits at the network's stride; ``UserError`` when a side is below 32 pixels."""
        x = self._prepared(image)
        output = self.decode(x)
        return replace(
            output,
            heads=output.heads if self.training else (),
            size=(image.shape[-2], image.shape[-1]),
            padded=(x.shape[-2], x.shape[-1]),
            align_corners=self.align_corners,
            num_classes=self.num_classes,
            extra=self.extra,
        )

    def features(self, image: Tensor) -> tuple[Tensor, ...]:
        """``Output.stages`` of (N,3,H,W) float 0..1, without the cost of what comes after the encoder."""
        encoder = self.get_submodule(self.encoder_prefix.removesuffix("."))
        maps = encoder(self._prepared(image))
        return (maps,) if isinstance(maps, Tensor) else tuple(maps)

    def _prepared(self, image: Tensor) -> Tensor:
        """Normalised, and padded to the network's multiple."""
        height, width = image.shape[-2:]
        if min(height, width) < 32:
            raise UserError(f"image of {height}x{width} is too small, the shorter side must be at least 32 pixels")
        x = (image - self.mean) / self.std
        pad_h, pad_w = -height % self.multiple, -width % self.multiple
        return F.pad(x, (0, pad_w, 0, pad_h)) if pad_h or pad_w else x  # 0 is the mean colour here

    def train(self, mode: bool = True) -> SegModel:
        """Training mode that leaves fixed norm statistics fixed; survives every evaluation as it is asked again."""
        super().train(mode)
        trained.still(self, self.config, self._late)
        return self

    def apply_freeze(self) -> None:
        """Fix what the settings do not train, norm modes included; ``UserError`` if a pattern matches nothing."""
        trained.fix(self, self.config)
        self.train(self.training)  # a new module is in training mode without ever having been asked

    def thaw(self, done: float) -> bool:
        """Freeze what ``gradual`` does not train yet when a share ``done`` (0..1) of the iterations is over, no more.

        True when that has changed: then :meth:`train` is due. Before the first call all of it counts as trained.
        """
        late = frozenset(pattern for pattern, share in self.config.gradual.items() if done < share)
        if late == self._late:
            return False
        self._late = late
        for name, parameter in self.named_parameters():
            if not trained.matches(late, name):
                if name in self._waiting:  # what a method has frozen is not
                    parameter.requires_grad_(True)
                    self._waiting.discard(name)
            elif parameter.requires_grad:
                parameter.requires_grad_(False)
                self._waiting.add(name)
        return True

    def param_groups(self) -> list[ParamGroup]:
        """Trainable parameters as encoder and head, each with and without weight decay (norms, biases: without)."""
        table: dict[tuple[str, bool], list[nn.Parameter]] = {}
        for name, parameter in self.named_parameters():
            if not parameter.requires_grad:
                continue
            part = "encoder" if name.startswith(self.encoder_prefix) else "head"
            table.setdefault((part, parameter.ndim > 1), []).append(parameter)
        factors = {"encoder": 1.0, "head": self.config.head_lr_factor}
        return [
            ParamGroup(part if decay else f"{part}_no_decay", params, factors[part], decay)
            for (part, decay), params in sorted(table.items(), key=lambda item: item[0])
        ]

    def grow_head(
        self,
        added: int,
        init: Literal["random", "background", "unknown"] = "random",
        generator: torch.Generator | None = None,
    ) -> None:
        """Append ``added`` classes to every classifier; an ``unknown`` output stays last.

        ``random``: new outputs start small and random (from ``generator``, a CPU one); no old logit changes.
        ``background``: new outputs start as output 0 and the softmax mass of {0, new} equals the old mass of 0
        (Cermelli et al., CVPR 2020, eq. 10); a classifier without bias gets one. ``unknown``: new outputs start as the
        last old output (Cha et al., NeurIPS 2021). Parameters are new objects: build the optimiser afterwards.
        """
        self._widen(added, init, generator)
        self.num_classes += added

    def add_unknown(self, generator: torch.Generator | None = None) -> None:
        """Append the output of pixels that belong to no class yet (SSUL, Cha et al., NeurIPS 2021), once."""
        if self.extra == "none":
            self._widen(1, "random", generator)
            self.extra = "unknown"

    def deployed(self) -> SegModel:
        """A copy in eval mode without what serves training only: what is exported and whose parameters are counted."""
        model = copy.deepcopy(self)
        for name in self.training_only:
            setattr(model, name, None)
        return model.eval()

    def layout(self) -> dict[str, Any]:
        """How this network differs from one freshly built for its number of classes; empty when it does not.

        Plain values for model.json; :meth:`apply_layout` on a fresh network makes its state dict fit this one's.
        """
        found: dict[str, Any] = {}
        if self.extra != "none":
            found["extra"] = self.extra
        if self._biased:
            found["biased"] = sorted(self._biased)
        if dropped := [name for name in self.training_only if getattr(self, name) is None]:
            found["dropped"] = dropped
        return found

    def apply_layout(self, layout: Mapping[str, Any]) -> None:
        """Give a fresh network the structure that :meth:`layout` of another described."""
        for name in layout.get("dropped", ()):
            setattr(self, name, None)
        if layout.get("extra") == "unknown":
            self.add_unknown()
        self._biased = set(layout.get("biased", ()))
        for path in self._biased & set(self.classifiers()):
            growth.add_bias(self.classifiers()[path])

    def _widen(self, added: int, init: str, generator: torch.Generator | None) -> None:
        for path, classifier in self.classifiers().items():
            if growth.grow(classifier, self.num_classes, added, init, generator):
                self._biased.add(path)


MODELS: Registry[SegModel] = Registry("model", "segue.models")
