from __future__ import annotations

from typing import Any

import pytest
import torch

from segdesk.nn.encoders import import_timm
from segdesk.nn.weights import count_parameters
from segdesk_models.vit import ViT


def small(**options: Any) -> ViT:
    torch.manual_seed(0)
    settings = {"encoder": "tiny", "depth": 3, "image_size": 64, **options}
    network = ViT(3, 5, **settings).eval()
    # As drawn, attention is almost even; sharper, there is something to see.
    with torch.no_grad():
        for block in network.encoder.body.blocks:
            block.attn.qkv.weight *= 3
    return network


def test_it_has_the_known_number_of_parameters() -> None:
    with torch.device("meta"):
        assert count_parameters(ViT(3, 1000)) == 86_567_656
        encoders = {
            ("tiny", 224): 5_524_416,
            ("small", 224): 21_665_664,
            ("base", 224): 85_798_656,
            ("large", 384): 303_690_752,
        }
        for (encoder, image_size), expected in encoders.items():
            network = ViT(3, 2, encoder=encoder, image_size=image_size)
            assert count_parameters(network.encoder) == expected


def test_its_classifier_is_timms() -> None:
    """The 1x1 convolution on the class token is timm's linear layer."""
    network = small()
    theirs = import_timm().create_model(
        "vit_tiny_patch16_224", depth=3, img_size=64, num_classes=5
    ).eval()  # fmt: skip
    [output] = network.head.branches[0]
    weights = dict(network.encoder.body.state_dict())
    weights |= {"head.weight": output.weight[:, :, 0, 0], "head.bias": output.bias}
    theirs.load_state_dict(weights, strict=True)
    x = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(network.classify(x)[0], theirs(x))


def test_attention_is_the_softmax_of_the_class_tokens_query() -> None:
    network = small(depth=1)
    x = torch.randn(1, 3, 64, 64)
    body = network.encoder.body
    with torch.inference_mode():
        _, attention = network.classify(x)
        tokens = body.blocks[0].norm1(body._pos_embed(body.patch_embed(x)))[0]  # noqa: SLF001
        qkv = body.blocks[0].attn.qkv(tokens)
        for head in range(3):
            channels = slice(64 * head, 64 * (head + 1))
            query, keys = qkv[0, :192][channels], qkv[:, 192:384][:, channels]
            expected = (keys @ query / 8).softmax(0)[1:]
            torch.testing.assert_close(attention[0, 0, head].flatten(), expected)


@pytest.mark.parametrize(("height", "width"), [(64, 64), (32, 96), (16, 16)])
def test_any_image_is_classified_and_has_attention_maps(height: int, width: int) -> None:
    network = small()
    x = torch.randn(2, 3, height, width)
    with torch.inference_mode():
        logits, attention = network.classify(x)
        rollout = network.rollout(x)
    assert logits.shape == (2, 5)
    assert attention.shape == (2, 3, 3, height // 16, width // 16)
    assert (attention > 0).all()
    # What is missing to 1 the class token took of itself.
    assert (attention.sum((3, 4)) < 1).all()
    assert rollout.shape == (2, height // 16, width // 16)
    assert (rollout > 0).all()
    assert (rollout.sum((1, 2)) < 1).all()


def test_attention_maps_lie_as_the_image_does() -> None:
    """A patch unlike the others draws attention, and the map shows it in its place."""
    network = small(depth=1)
    body = network.encoder.body
    with torch.no_grad():
        body.pos_embed.zero_()
        x = torch.zeros(1, 3, 32, 96)
        _, even = network.classify(x)
        x[:, :, 16:32, 64:80] = torch.randn(3, 16, 16)
        _, attention = network.classify(x)
    change = (attention / attention[..., :1, :1] - even / even[..., :1, :1]).abs().amax((0, 1, 2))
    assert change.argmax() == 1 * 6 + 4
    there = float(change[1, 4])
    change[1, 4] = 0
    assert change.max() < 0.01 * there


def test_rollout_of_one_layer_is_half_its_mean_attention() -> None:
    network = small(depth=1)
    x = torch.randn(1, 3, 64, 32)
    with torch.inference_mode():
        _, attention = network.classify(x)
        torch.testing.assert_close(network.rollout(x), attention[:, 0].mean(1) / 2)


def test_rollout_multiplies_the_layers() -> None:
    """By hand: two layers, three tokens (the class token and two patches)."""
    first = torch.tensor([[0.2, 0.5, 0.3], [0.0, 1.0, 0.0], [0.0, 0.5, 0.5]])
    second = torch.tensor([[0.4, 0.6, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    network = small(depth=2)
    patches = torch.zeros(1, 192, 1, 2)
    network.encoder.attend = lambda x, keep: (patches, None, [first[None], second[None]])
    # Row of the class token in (second + 1) / 2 times (first + 1) / 2: 0.7 and 0.3 of
    # the rows (0.6, 0.25, 0.15) and (0, 1, 0).
    expected = [0.7 * 0.25 + 0.3 * 1.0, 0.7 * 0.15]
    found = network.rollout(torch.zeros(1, 3, 16, 32))
    assert found.flatten().tolist() == pytest.approx(expected)


def test_looking_at_the_attention_changes_nothing() -> None:
    network = small()
    x = torch.randn(1, 3, 64, 64)
    attentions = [block.attn for block in network.encoder.body.blocks]
    before = [attention.fused_attn for attention in attentions]
    with torch.inference_mode():
        maps = network(x)
        network.classify(x)
        with pytest.raises(RuntimeError, match="channels"):
            network.classify(torch.randn(1, 1, 64, 64))
        assert torch.equal(network(x), maps)
    assert [attention.fused_attn for attention in attentions] == before
    assert not any(attention.attn_drop._forward_pre_hooks for attention in attentions)  # noqa: SLF001


def test_masks_are_the_classifiers_opinion_of_each_patch() -> None:
    network = small()
    x = torch.randn(1, 3, 64, 48)
    with torch.inference_mode():
        maps = network(x)
        patches, _ = network.encoder.tokens(x)
        logits = torch.stack(
            [network.head(p[..., None, None]) for p in patches.flatten(2).unbind(2)]
        )
    assert maps.shape == (1, 5, 64, 48)
    # Outermost pixels lie beyond the patches' centres and are their patch's own.
    corners = maps[0, :, [0, 0, -1, -1], [0, -1, 0, -1]].T
    torch.testing.assert_close(corners, logits[[0, 2, 9, 11], 0, :, 0, 0])


def test_classification_learns_through_the_attention_maps_pass() -> None:
    network = small().train()
    logits, _ = network.classify(torch.randn(2, 3, 32, 32))
    (logits * torch.randn(2, 5)).sum().backward()
    silent = [n for n, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert silent == []


def test_unknown_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="tiny, small, base, large"):
        ViT(3, 2, encoder="giant")
