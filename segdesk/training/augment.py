"""Augmentation: image, labels and weights together."""

from __future__ import annotations

import torch
from torch import Tensor

from segdesk.config.training import Augmentation, TrainingConfig
from segdesk.nn.torchvision_compat import import_transforms
from segdesk.training.dataset import Batch

#: Greatest standard deviation of the noise, where the image's own range is 1.
NOISE = 0.08


class Augmenter:
    """Flips, turns and scales crops, and varies their contrast and colour.

    torchvision moves image and mask together; pixels from outside the crop get
    weight 0, so that nothing is learnt from them. Contrast is varied here,
    because torchvision's colour transforms take one or three channels only.

    Parameters
    ----------
    config
        ``augment``: ``flips`` changes no value, ``full`` also turns and scales freely and
        varies grey values, ``upright`` mirrors left and right only and turns a little;
        ``auto`` is ``full`` here. ``elastic``, ``blur`` and ``noise`` are shares of the crops
        that are bent, blurred and made noisy.
    """

    def __init__(self, config: TrainingConfig) -> None:
        v2 = import_transforms()
        from torchvision import tv_tensors

        self._tv = tv_tensors
        self._is_upright = config.augment is Augmentation.UPRIGHT
        self._varies_values = config.augment is not Augmentation.FLIPS
        self._noise = config.noise
        moves = [v2.RandomHorizontalFlip()]
        if not self._is_upright:
            moves.append(v2.RandomVerticalFlip())
        outside = {tv_tensors.Image: 0.0, tv_tensors.Mask: 0.0}
        if self._varies_values:
            affine = v2.RandomAffine(
                degrees=10 if self._is_upright else 45,
                scale=(0.8, 1.25),
                interpolation=v2.InterpolationMode.BILINEAR,
                fill=outside,
            )
            # It blurs and loses corners, so only some crops are moved so.
            moves.append(v2.RandomApply([affine], 0.3))
        if config.elastic:
            bend = v2.ElasticTransform(alpha=40.0, sigma=5.0, fill=outside)
            moves.append(v2.RandomApply([bend], config.elastic))
        self._geometry = v2.Compose(moves)
        blur = v2.GaussianBlur(kernel_size=7, sigma=(0.5, 2.0))
        self._blur = v2.RandomApply([blur], config.blur) if config.blur else None

    def __call__(self, batch: Batch) -> Batch:
        """Return a batch with each crop varied on its own."""
        images, labels, weights = [], [], []
        for image, label, weight in zip(batch.image, batch.labels, batch.weights, strict=True):
            turns = 0 if self._is_upright else int(torch.randint(4, (1,)))
            planes = torch.stack((label.float(), weight)).rot90(turns, (1, 2))
            image = image.rot90(turns, (1, 2))
            moved, mask = self._geometry(self._tv.Image(image), self._tv.Mask(planes))
            images.append(self._vary_values(moved.as_subclass(Tensor)))
            plain = mask.as_subclass(Tensor)
            labels.append(plain[0].to(torch.uint8))
            weights.append(plain[1])
        return Batch(torch.stack(images), torch.stack(labels), torch.stack(weights))

    def _vary_values(self, image: Tensor) -> Tensor:
        if self._varies_values:
            image = vary_grey(image)
        if self._blur is not None:
            image = self._blur(image)
        if self._noise and float(torch.rand(())) < self._noise:
            strength = torch.empty(1).uniform_(0.01, NOISE)
            image = (image + strength * torch.randn_like(image)).clamp_(0, 1)
        return image


def vary_grey(image: Tensor) -> Tensor:
    """Vary contrast and the balance of channels of a scaled image, (C, H, W) in 0..1.

    Brightness and gamma are left alone: images are scaled by their own values, and
    what tells a dim object from the background is a difference of a few hundredths.
    """
    channels = image.shape[0]
    gain = torch.empty(1).uniform_(0.9, 1.1) * torch.empty(channels, 1, 1).uniform_(0.9, 1.1)
    return (image * gain).clamp_(0, 1)
