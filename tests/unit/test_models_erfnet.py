"""ERFNet and the discriminator against plain restatements, at their published sizes; growth of unusual classifiers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from helpers import published
from segue.models.base import ModelConfig, Output, SegModel
from segue.models.build import build_model
from segue.models.discriminators import Discriminator
from segue.models.erfnet import ERFNet, ERFNetConfig
from segue.models.growth import add_bias, class_dim, convolutions


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def erfnet(classes: int = 19, **settings: object) -> ERFNet:
    model = build_model({"name": "erfnet", **settings}, classes)
    assert isinstance(model, ERFNet)
    return model


@pytest.mark.parametrize(("classes", "parameters"), [(5, 2_063_281), (11, 2_063_671), (19, 2_064_191)])
def test_network_has_the_published_size(classes: int, parameters: int) -> None:
    model = erfnet(classes)
    assert count(model) == parameters
    assert count(model.encoder) == 1_874_044


def test_network_computes_what_the_layer_table_says() -> None:
    state = published.erfnet(19)
    model = erfnet().eval()
    model.load_state_dict(state, strict=False)
    assert set(model.state_dict()) - set(state) == {"mean", "std"}
    image = torch.rand(2, 3, 64, 104, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        output = model(image)
        expected = published.erfnet_forward(state, (image - model.mean) / model.std)
    assert expected.std() > 0.01
    torch.testing.assert_close(output.logits, expected, rtol=1e-4, atol=1e-4)
    assert [64 // s.shape[-2] for s in output.stages] == [2, 4, 8]
    assert [s.shape[1] for s in output.stages] == [16, 64, 128]
    assert output.embedding.shape == (2, 16, 32, 52)


def test_it_pads_to_multiples_of_eight() -> None:
    output = erfnet(3).eval()(torch.rand(1, 3, 33, 47))
    assert output.padded == (40, 48)
    assert output.logits.shape == (1, 3, 40, 48)
    assert output.upsample(output.logits).shape == (1, 3, 33, 47)


def test_dropout_rates_are_settings_of_the_two_encoder_depths() -> None:
    def rates(model: ERFNet) -> list[float]:
        return [m.p for m in model.modules() if isinstance(m, nn.Dropout2d)]

    assert rates(erfnet()) == [0.03] * 5 + [0.3] * 8 + [0.0] * 4
    assert rates(erfnet(dropout_shallow=0.1, dropout_deep=0.2)) == [0.1] * 5 + [0.2] * 8 + [0.0] * 4
    assert ERFNetConfig(name="erfnet").dropout_deep == 0.3
    model = erfnet(dropout_deep=0.9)
    batch = torch.rand(1, 3, 32, 32)
    assert not torch.equal(model(batch).logits, model(batch).logits)
    model.eval()
    assert torch.equal(model(batch).logits, model(batch).logits)


def test_discriminator_has_the_published_size_and_equation() -> None:
    assert count(Discriminator(19)) == 2_781_121
    names = ("conv1", "conv2", "conv3", "conv4", "classifier")
    state = published.discriminator(names, 7)
    network = Discriminator(7)
    network.load_state_dict(state)
    x = torch.randn(2, 7, 64, 100, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(network(x), published.discriminator_forward(state, x))
    assert network(x).shape == (2, 1, 2, 3)


@pytest.mark.parametrize(("size", "out"), [((1, 1), (1, 1)), ((8, 40), (1, 1)), ((31, 64), (1, 2)), ((32, 32), (1, 1))])
def test_discriminator_of_small_maps_sees_a_margin_of_zeros(size: tuple[int, int], out: tuple[int, int]) -> None:
    network = Discriminator(3)
    x = torch.randn(1, 3, *size)
    assert network(x).shape[-2:] == out
    margin = torch.zeros(1, 3, max(32, size[0]), max(32, size[1]))
    margin[..., : size[0], : size[1]] = x
    torch.testing.assert_close(network(x), network(margin))


class Sum(nn.Module):
    """Three convolutions of different shapes, summed."""

    def __init__(self, outputs: int, biases: tuple[bool, bool, bool]) -> None:
        super().__init__()
        self.near = nn.Conv2d(6, outputs, 3, padding=1, bias=biases[0])
        self.far = nn.Conv2d(6, outputs, 3, padding=4, dilation=4, bias=biases[1])
        self.other = nn.ConvTranspose2d(6, outputs, 3, padding=1, bias=biases[2])

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.near(x) + self.far(x) + self.other(x)
        return out


class Summing(SegModel):
    """Nothing but such a classifier."""

    def __init__(self, biases: tuple[bool, bool, bool]) -> None:
        super().__init__(ModelConfig(name="summing"), 4)
        self.backbone = nn.Conv2d(3, 6, 1)
        self.classifier = Sum(4, biases)

    def decode(self, x: Tensor) -> Output:
        feature = self.backbone(x)
        return Output(self.classifier(feature), feature)

    def classifiers(self) -> dict[str, nn.Module]:
        return {"classifier": self.classifier}


BIASES = [(True, True, True), (False, False, False), (False, True, False)]


@pytest.mark.parametrize("biases", BIASES)
@pytest.mark.parametrize("init", ["random", "background", "unknown"])
def test_the_rules_of_growth_hold_for_a_sum(biases: tuple[bool, bool, bool], init: str) -> None:
    torch.manual_seed(0)
    model = Summing(biases).eval()
    image = torch.rand(1, 3, 32, 40)
    with torch.no_grad():
        model.add_unknown(torch.Generator().manual_seed(1))
        old = model(image).logits
        model.grow_head(3, init, torch.Generator().manual_seed(2))  # type: ignore[arg-type]
        new = model(image).logits
    assert new.shape[1] == 8
    kept = [1, 2, 3] if init == "background" else [0, 1, 2, 3]
    torch.testing.assert_close(new[:, kept], old[:, kept])
    torch.testing.assert_close(new[:, -1], old[:, -1])
    if init == "background":
        before, after = old.softmax(1), new.softmax(1)
        torch.testing.assert_close(after[:, 0] + after[:, 4:7].sum(1), before[:, 0])
        torch.testing.assert_close(after[:, 4], after[:, 0])
    elif init == "unknown":
        torch.testing.assert_close(new[:, 4:7], old[:, 4:].expand(-1, 3, -1, -1))
    else:
        assert all(conv.weight.select(class_dim(conv), 5).std() > 0 for conv in convolutions(model.classifier))
        assert 0 < new[:, 4:7].std() < old.std()
    twin = Summing(biases)
    twin.apply_layout(model.layout())
    assert [n for n, _ in twin.named_parameters()] == [n for n, _ in model.named_parameters()]
    assert model.layout().get("biased", []) == (["classifier"] if init == "background" and not any(biases) else [])


def test_a_bias_is_added_once() -> None:
    classifier = Sum(3, (False, False, False))
    assert add_bias(classifier)
    assert [conv.bias is not None for conv in convolutions(classifier)] == [True, False, False]
    assert not add_bias(classifier)
