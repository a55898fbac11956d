from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from segdesk.nn.pretrained import load_encoder_weights
from segdesk.nn.weights import count_parameters
from segdesk_models.deconvnet import SPEC, DeconvNet


def narrow() -> DeconvNet:
    torch.manual_seed(0)
    return DeconvNet(1, 2, width=1, hidden=4).eval()


def test_it_has_the_known_number_of_parameters() -> None:
    with torch.device("meta"):
        assert count_parameters(DeconvNet(3, 21)) == 251_805_653


def test_fc6_sees_224_pixels_at_once() -> None:
    """Of more it makes a map, of which the mirrored fc6 makes all of the poolings' map."""
    network = narrow()
    with torch.inference_mode():
        for height, width in ((224, 224), (224, 288)):
            features, switches = network.encoder(torch.randn(1, 1, height, width))
            assert features.shape == (1, 4, height // 32 - 6, width // 32 - 6)
            mirrored = network.decoder.get_submodule("fc6")(features)
            assert mirrored.shape[-2:] == switches[-1].shape[-2:]
            assert network(torch.randn(1, 1, height, width)).shape == (1, 2, height, width)
    assert SPEC.min_size == 224


def test_the_decoder_mirrors_the_encoder() -> None:
    with torch.device("meta"):
        network = DeconvNet(3, 21)
    down = [(m.in_channels, m.out_channels, m.kernel_size) for m in network.encoder.modules()
            if isinstance(m, nn.Conv2d)]  # fmt: skip
    up = [(m.out_channels, m.in_channels, m.kernel_size) for m in network.decoder.stages.modules()
          if isinstance(m, nn.ConvTranspose2d)]  # fmt: skip
    # 13 convolutions, fc6 and fc7; the mirrored fc6 comes before the stages, and 64 to 64
    # is where the encoder has 3 to 64.
    assert len(down) == 15
    assert up[:-1] == down[12:0:-1]
    assert up[-1] == (64, 64, (3, 3))


def test_the_decoder_puts_what_fc7_says_where_the_maxima_were() -> None:
    """With layers that copy, a value comes out where five maxima, one in the other, were.

    fc6 backwards spreads it over 7x7 places, each with a factor of its own.
    """
    network = DeconvNet(1, 2, width=8, hidden=4).eval()
    fc6, _, _ = network.decoder.fc6
    with torch.no_grad():
        for layer in network.decoder.stages.modules():
            if isinstance(layer, nn.ConvTranspose2d):
                layer.weight.zero_()
                layer.bias.zero_()
                layer.weight[0, 0, 1, 1] = 1.0
        fc6.weight.zero_()
        fc6.bias.zero_()
        factors = torch.arange(1.0, 50.0).reshape(7, 7)
        fc6.weight[2, 0] = factors  # from fc7's channel 2 to the first of the five maps
        _, switches = network.encoder(torch.randn(1, 1, 224, 224))
        found = network.decoder(torch.tensor([0.0, 9.0, 2.0, 0.0]).reshape(1, 4, 1, 1), switches)
    expected = torch.zeros(224, 224)
    for row in range(7):
        for column in range(7):
            y, x = row, column
            for places in reversed(switches):
                width = 2 * places.shape[-1]
                y, x = divmod(int(places[0, 0, y, x]), width)
            expected[y, x] = 2.0 * factors[row, column]
    assert (expected > 0).sum() == 49
    shrunk = (1 + 1e-5) ** -0.5  # by every batch norm
    layers = 1 + sum(isinstance(m, nn.ConvTranspose2d) for m in network.decoder.stages.modules())
    torch.testing.assert_close(found[0, 0], expected * shrunk**layers, rtol=1e-4, atol=1e-6)
    assert not found[0, 1:].any()


def test_every_convolution_is_normalised() -> None:
    network = narrow()
    convolutions = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)]
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    # All but the output layer.
    assert len(norms) == len(convolutions) - 1
    for norm in norms:
        norm.register_forward_hook(lambda module, inputs, outputs: seen.append(module))
    seen: list[nn.Module] = []
    with torch.inference_mode():
        network(torch.randn(1, 1, 224, 224))
    assert len(set(seen)) == len(norms)


def test_it_learns_from_a_single_image_of_224_pixels() -> None:
    """fc6 then has one value for each channel, of which there is no variance."""
    network = narrow().train()
    network(torch.randn(1, 1, 224, 224)).square().sum().backward()
    assert network.encoder.body.pre_logits["fc2"].weight.grad is not None
    assert all(torch.isfinite(b).all() for b in network.buffers())


def test_a_classifiers_weights_fit_without_norms_behind_fc6_and_fc7(tmp_path: Path) -> None:
    network = narrow()
    weights = {
        name.replace("pre_logits.fc1", "classifier.0").replace("pre_logits.fc2", "classifier.3"):
        torch.rand_like(value) if value.is_floating_point() else value
        for name, value in network.encoder.body.state_dict().items()
    }  # fmt: skip
    weights["classifier.0.weight"] = weights["classifier.0.weight"].flatten(1)
    weights["classifier.3.weight"] = weights["classifier.3.weight"].flatten(1)
    weights["classifier.6.weight"] = torch.rand(10, 4)
    save_file(weights, tmp_path / "vgg16_bn.safetensors")
    said = load_encoder_weights(network.encoder, str(tmp_path / "vgg16_bn.safetensors"))
    assert "10 other tensors start from random weights" in said
    fc6 = network.encoder.body.pre_logits["fc1"].weight
    assert torch.equal(fc6.flatten(1), weights["classifier.0.weight"])
