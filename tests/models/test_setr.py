from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from segdesk.nn.weights import count_parameters
from segdesk_models.setr import SETR, SETRMLA, SETRPUP, SPECS, SETRNaive

VARIANTS = (SETRNaive, SETRPUP, SETRMLA)
each = pytest.mark.parametrize("variant", VARIANTS)


def small(variant: type[SETR], **options: object) -> SETR:
    torch.manual_seed(0)
    settings = {"encoder": "tiny", "depth": 4, "width": 16, "image_size": 64, **options}
    return variant(3, 2, **settings).eval()


@pytest.mark.parametrize(
    ("encoder", "image_size", "classes", "expected"),
    [
        ("large", 768, 19, (305_728_019, 309_596_947, 310_737_427)),
        ("large", 512, 150, (304_450_966, 308_319_894, 310_030_486)),
        ("base", 768, 19, (87_619_859, 90_964_499, 92_431_123)),
        ("base", 512, 21, (86_637_333, 89_981_973, 91_457_301)),
        ("base", 224, 21, (86_001_429, 89_346_069, 90_821_397)),
    ],
)
def test_it_has_the_known_number_of_parameters(
    encoder: str, image_size: int, classes: int, expected: tuple[int, int, int]
) -> None:
    """The embeddings of the patches' positions are learned, so their number counts."""
    with torch.device("meta"):
        counts = tuple(
            count_parameters(
                variant(3, classes, encoder=encoder, image_size=image_size, auxiliary=False)
            )
            for variant in VARIANTS
        )
    assert counts == expected


def test_heads_have_the_known_number_of_parameters() -> None:
    with torch.device("meta"):
        counts = []
        for variant in VARIANTS:
            network = variant(3, 19, auxiliary=False)
            counts.append(count_parameters(network.decoder) + count_parameters(network.head))
    assert counts == [269_843, 4_138_771, 5_279_251]


@pytest.mark.parametrize(
    ("variant", "weights", "outputs"),
    [(SETRNaive, 3, 3 * 269_843), (SETRPUP, 4, 4 * 2_366_995), (SETRMLA, 4, 4 * 256 * 19)],
)
def test_auxiliary_outputs_are_those_of_the_paper(
    variant: type[SETR], weights: int, outputs: int
) -> None:
    with torch.device("meta"):
        network = variant(3, 19)
        assert count_parameters(network.decoder.auxiliary) == outputs
    network = small(variant, auxiliary=True)
    x = torch.randn(1, 3, 64, 48)
    with torch.inference_mode():
        maps = network.training_maps(x)
        assert [weight for weight, _ in maps] == [1.0] + [0.4] * weights
        assert all(m.shape == (1, 2, 64, 48) for _, m in maps)
        # Which of them is the mask: the same as without training.
        assert torch.equal(maps[0][1], network(x))
    assert len(small(variant, auxiliary=False).training_maps(x)) == 1


@pytest.mark.parametrize(
    ("variant", "layers"),
    [(SETRNaive, [10, 15, 20, 24]), (SETRPUP, [10, 15, 20, 24]), (SETRMLA, [6, 12, 18, 24])],
)
def test_it_takes_the_papers_layers(variant: type[SETR], layers: list[int]) -> None:
    with torch.device("meta"):
        assert [level + 1 for level in variant(3, 2).encoder.levels] == layers
        quarter = small(variant, depth=8, auxiliary=False).encoder.levels
    assert quarter == ([1, 3, 5, 7] if variant is SETRMLA else [7])


def test_too_shallow_or_unknown_transformers_are_refused() -> None:
    with pytest.raises(ValueError, match="four layers"):
        small(SETRMLA, depth=3)
    with pytest.raises(ValueError, match="tiny, small, base, large"):
        small(SETRMLA, encoder="giant")


def test_features_are_the_sum_of_all_layers_without_a_norm() -> None:
    """Each layer adds to its input, and nothing follows the last one."""
    network = small(SETRNaive, auxiliary=False)
    x = torch.randn(1, 3, 64, 64)
    added: list[torch.Tensor] = []
    body = network.encoder.body
    for block in body.blocks:
        block.attn.register_forward_hook(lambda *a: added.append(a[2]))
        block.mlp.register_forward_hook(lambda *a: added.append(a[2]))
    with torch.inference_mode():
        [features] = network.encoder(x)
        patches = F.conv2d(x, body.patch_embed.proj.weight, body.patch_embed.proj.bias, stride=16)
    positions = body.pos_embed[0, 1:].T.reshape(1, -1, 4, 4)
    sums = sum(a[:, 1:] for a in added).transpose(1, 2).reshape(1, -1, 4, 4)
    assert len(added) == 8
    torch.testing.assert_close(features, patches + positions + sums)


def test_the_naive_decoder_is_a_formula() -> None:
    network = small(SETRNaive, auxiliary=False)
    norm, (conv, batch_norm, _) = network.decoder.norm, network.decoder.block
    with torch.no_grad():
        for part in (norm.weight, norm.bias, batch_norm.running_mean, batch_norm.bias):
            part.uniform_(-1, 1)
        batch_norm.running_var.uniform_(0.5, 2)
    [output] = network.head.branches[0]
    x = torch.randn(1, 3, 48, 64)
    with torch.inference_mode():
        maps = network(x)
        [features] = network.encoder(x)
        token = features[0].flatten(1).T  # (patches, channels)
        token = (token - token.mean(1, keepdim=True)) / (
            token.var(1, correction=0, keepdim=True) + 1e-6
        ).sqrt()
        token = (token * norm.weight + norm.bias) @ conv.weight[:, :, 0, 0].T + conv.bias
        token = (token - batch_norm.running_mean) / (batch_norm.running_var + 1e-5).sqrt()
        token = (token * batch_norm.weight + batch_norm.bias).clamp_min(0)
        token = token @ output.weight[:, :, 0, 0].T + output.bias
        expected = F.interpolate(token.T.reshape(1, 2, 3, 4), (48, 64), mode="bilinear")
    torch.testing.assert_close(maps, expected, rtol=1e-4, atol=1e-5)


def shake(decoder: nn.Module) -> None:
    """Give every norm statistics, scale and shift of its own, so that leaving one out shows."""
    with torch.no_grad():
        for part in decoder.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.running_mean.uniform_(-1, 1)
                part.running_var.uniform_(0.5, 2)
        for name, parameter in decoder.named_parameters():
            if parameter.ndim == 1:
                parameter.uniform_(*((0.5, 1.5) if name.endswith("weight") else (-1, 1)))


def by_hand(block: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Convolution, batch norm and ReLU by their formulas; the padding keeps the size."""
    conv, norm, _ = block
    size = conv.weight.shape[-1]
    patches = F.unfold(x, size, padding=size // 2)
    y = conv.weight.flatten(1) @ patches
    if conv.bias is not None:
        y = y + conv.bias[:, None]
    y = (y - norm.running_mean[:, None]) / (norm.running_var[:, None] + norm.eps).sqrt()
    y = (y * norm.weight[:, None] + norm.bias[:, None]).clamp_min(0)
    return y.reshape(len(x), -1, *x.shape[-2:])


def normed(norm: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Layer norm of every patch."""
    y = (x - x.mean(1, keepdim=True)) / (x.var(1, correction=0, keepdim=True) + 1e-6).sqrt()
    return y * norm.weight[:, None, None] + norm.bias[:, None, None]


def test_the_progressive_decoder_is_a_formula() -> None:
    decoder = small(SETRPUP, auxiliary=False).decoder
    shake(decoder)
    features = [torch.randn(2, 192, 3, 4)]
    with torch.inference_mode():
        found = decoder(features)
        x = by_hand(decoder.blocks[0], normed(decoder.norm, features[0]))
        for step in (1, 2, 3):
            size = (3 * 2**step, 4 * 2**step)
            x = by_hand(
                decoder.blocks[step],
                F.interpolate(x, size, mode="bilinear", align_corners=False),
            )
    torch.testing.assert_close(found, x, rtol=1e-4, atol=1e-5)


def test_the_multi_level_decoder_is_a_formula() -> None:
    """Each stream adds all deeper ones; corners stay corners when they are enlarged."""
    decoder = small(SETRMLA, auxiliary=False).decoder
    shake(decoder)
    features = [torch.randn(2, 192, 3, 4) for _ in range(4)]
    with torch.inference_mode():
        found = decoder(features)
        reduced = [
            by_hand(decoder.reductions[i], normed(decoder.norms[i], features[i])) for i in range(4)
        ]
        streams = []
        for i in range(4):
            x = by_hand(decoder.sums[i], sum(reduced[i:]))
            for block in decoder.streams[i][:2]:
                x = by_hand(block, x)
            streams.append(F.interpolate(x, (12, 16), mode="bilinear", align_corners=True))
    torch.testing.assert_close(found, torch.cat(streams, 1), rtol=1e-4, atol=1e-5)


def test_progressive_upsampling_doubles_between_its_convolutions() -> None:
    network = small(SETRPUP, auxiliary=False)
    widths = []
    for block in network.decoder.blocks:
        assert block[0].kernel_size == (3, 3)
        block.register_forward_hook(lambda *a: widths.append(a[2].shape[-1]))
    with torch.inference_mode():
        features = network.decoder(network.encoder(torch.randn(1, 3, 64, 64)))
        assert features.shape == (1, 16, 32, 32)
    assert widths == [4, 8, 16, 32]


def test_aggregation_runs_from_the_last_layer_to_the_first() -> None:
    decoder = small(SETRMLA, auxiliary=False).decoder
    features = [torch.randn(1, 192, 4, 4) for _ in range(4)]
    with torch.inference_mode():
        before = decoder.aggregate(features)
        for changed in range(4):
            other = list(features)
            other[changed] = torch.randn(1, 192, 4, 4)
            after = decoder.aggregate(other)
            touched = [not torch.equal(a, b) for a, b in zip(before, after, strict=True)]
            # Streams of the same layer and of all before it.
            assert touched == [stream <= changed for stream in range(4)]
        assert decoder(features).shape == (1, 32, 16, 16)


def test_position_embeddings_tell_equal_patches_apart() -> None:
    network = small(SETRNaive, auxiliary=False)
    x = torch.ones(1, 3, 64, 96)
    with torch.inference_mode():
        assert network(x).std((2, 3)).min() > 1e-3
        network.encoder.body.pos_embed.zero_()
        assert network(x).std((2, 3)).max() < 1e-4


@each
def test_patches_attend_to_the_class_token(variant: type[SETR]) -> None:
    network = small(variant, auxiliary=False)
    x = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        before = network(x)
        network.encoder.body.cls_token += 10
        assert not torch.allclose(network(x), before)


@each
def test_a_transformer_sees_the_whole_image_at_once(variant: type[SETR]) -> None:
    network = small(variant, auxiliary=False)
    x = torch.zeros(1, 3, 128, 64)
    changed = x.clone()
    changed[0, 0, 0, 0] = 10
    with torch.inference_mode():
        felt = (network(x) != network(changed)).any(1)[0]
    assert felt[-16:].any()


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
def test_defaults_are_the_papers(spec: object) -> None:
    with torch.device("meta"):
        network = spec.build(3, 2, **spec.options)
        assert count_parameters(network) == count_parameters(spec.build(3, 2))
    body = network.encoder.body
    assert len(body.blocks) == 24
    assert body.blocks[0].attn.num_heads == 16
    assert body.embed_dim == 1024
