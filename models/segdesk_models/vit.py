"""ViT: an image classifier that shows where it looks, also used patch by patch.

Dosovitskiy et al.: An Image is Worth 16x16 Words: Transformers for Image Recognition at
Scale, ICLR 2021.

The image is cut into patches of 16x16 pixels. They and a class token attend to one another
in every layer, and the classifier sees the class token only. What the token attended to is
a map of what mattered.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from segdesk.nn.encoders import TimmEncoder
from segdesk.nn.heads import Head, HeadConfig
from segdesk.nn.segmenter import Segmenter
from segdesk.nn.spec import Initialisation, ModelSpec, deviations_of

#: timm has each as ``vit_<size>_patch16_224``.
ENCODERS = ("tiny", "small", "base", "large")


class ViTEncoder(TimmEncoder):
    """timm's vision transformer with class token and final norm.

    Parameters
    ----------
    size
        One of :data:`ENCODERS`.
    in_channels
        Channels of the image.
    depth
        Layers; None: as many as that size has.
    image_size
        Side in pixels of the images the position embeddings are for.
    dropout
        Rate behind every dense layer but queries, keys and values, and behind the
        position embeddings.
    """

    def __init__(
        self, size: str, in_channels: int, depth: int | None, image_size: int, dropout: float
    ) -> None:
        if size not in ENCODERS:
            raise ValueError(f"encoder is one of {', '.join(ENCODERS)}, not {size!r}")
        layers = depth or (24 if size == "large" else 12)
        super().__init__(
            f"vit_{size}_patch16_224",
            in_channels,
            [layers - 1],
            depth=layers,
            img_size=image_size,
            dynamic_img_size=True,
            pos_drop_rate=dropout,
            proj_drop_rate=dropout,
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the patches' features, one map (N, D, H/16, W/16)."""
        return [self.tokens(x)[0]]

    def tokens(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the features of the patches, (N, D, h, w), and of the class token, (N, D)."""
        [(patches, prefix)] = self.body.forward_intermediates(
            x, indices=self.levels, return_prefix_tokens=True, norm=True, intermediates_only=True
        )
        return patches, prefix[:, 0]

    def attend(
        self, x: Tensor, keep: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Return :meth:`tokens`, and for each layer what ``keep`` made of its attention.

        Parameters
        ----------
        keep
            Takes (N, heads, tokens, tokens): how much each token, by row, takes in of
            each, by column. The class token comes first and rows sum to 1.
        """
        kept: list[Tensor] = []
        attentions = [block.attn for block in self.body.blocks]
        were_fused = [attention.fused_attn for attention in attentions]

        # Its input is the softmax; dropout, if there is any, is not part of the map.
        def remember(_dropout: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            kept.append(keep(inputs[0]))

        hooks = []
        try:
            for attention in attentions:
                # A fused kernel never holds the attention.
                attention.fused_attn = False
                hooks.append(attention.attn_drop.register_forward_pre_hook(remember))
            patches, token = self.tokens(x)
        finally:
            for hook in hooks:
                hook.remove()
            for attention, was_fused in zip(attentions, were_fused, strict=True):
                attention.fused_attn = was_fused
        return patches, token, kept


class ViT(Segmenter):
    """Vision transformer.

    Parameters
    ----------
    in_channels
        Channels of the image.
    classes
        Number of classes.
    encoder
        Size of the transformer, one of :data:`ENCODERS`.
    depth
        Its layers; None: as many as that size has.
    image_size
        Side in pixels of the images the position embeddings are for. For others they
        are interpolated.
    dropout
        Rate in the transformer.
    head, activation
        See :mod:`segdesk.nn.heads`.

    Deviations from the paper
    -------------------------
    - The paper classifies whole images, as it still can here; for a mask the same classifier
      is applied to every patch of 16x16 pixels and the result is enlarged.
    - The output layer starts at small random values (the paper: at zero).
    """

    encoder: ViTEncoder

    def __init__(
        self,
        in_channels: int,
        classes: int,
        encoder: str = "base",
        depth: int | None = None,
        image_size: int = 224,
        dropout: float = 0.1,
        head: str = "A",
        activation: str = "none",
    ) -> None:
        transformer = ViTEncoder(encoder, in_channels, depth, image_size, dropout)
        config = HeadConfig.of(classes, head, activation)
        # The head sees the transformer's features themselves.
        super().__init__(transformer, nn.Identity(), Head(config, transformer.channels[-1]))
        for part in self.head.modules():
            if isinstance(part, nn.Conv2d):
                nn.init.trunc_normal_(part.weight, std=0.02)
                if part.bias is not None:
                    nn.init.zeros_(part.bias)

    def classify(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Classify whole images.

        Parameters
        ----------
        x
            (N, C, H, W), multiples of 16.

        Returns
        -------
        logits
            (N, classes).
        attention
            (N, layers, heads, H/16, W/16): how much of each patch the class token took in.
        """
        patches, token, rows = self.encoder.attend(x, lambda attention: attention[:, :, 0, 1:])
        logits: Tensor = self.head(token[:, :, None, None])
        maps = torch.stack(rows, 1)
        return logits.flatten(1), maps.reshape(*maps.shape[:-1], *patches.shape[-2:])

    def rollout(self, x: Tensor) -> Tensor:
        """Return how much of each patch reaches the class token over all layers.

        Of attention averaged over the heads and of the connection past it, each layer
        takes one half (Abnar and Zuidema, Quantifying Attention Flow in Transformers,
        ACL 2020); the layers are multiplied.

        Returns
        -------
        Tensor
            (N, H/16, W/16), with a sum of 1 less what stays with the class token.
        """
        patches, _, layers = self.encoder.attend(x, lambda attention: attention.mean(1))
        reached = torch.eye(layers[0].shape[-1], device=x.device)
        for attention in layers:
            reached = 0.5 * (attention @ reached + reached)
        return reached[:, 0, 1:].reshape(len(x), *patches.shape[-2:])


SPEC = ModelSpec(
    name="vit",
    title="Vision transformer",
    year=2021,
    reference="Dosovitskiy et al., ICLR 2021",
    build=ViT,
    stride=16,
    options={
        "encoder": "base",
        "depth": None,
        "image_size": 224,
        "dropout": 0.1,
        "head": "A",
        "activation": "none",
    },
    small={"encoder": "tiny", "depth": 4},
    initialisation=Initialisation.TRUNCATED_NORMAL,
    has_dropout=True,
    deviations=deviations_of(ViT),
)
