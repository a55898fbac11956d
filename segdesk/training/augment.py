"""Augmentation: image, labels and weights together."""

from __future__ import annotations

import torch
from torch import Tensor

from segdesk.config.training import Augmentation
from segdesk.nn.torchvision_compat import import_transforms
from segdesk.training.dataset import Batch


class Augmenter:
    """Flips, turns and scales crops, and varies their contrast and colour.

    torchvision moves image and mask together; pixels from outside the crop get
    weight 0, so that nothing is learnt from them. Contrast is varied here,
    because torchvision's colour transforms take one or three channels only.

    Parameters
    ----------
    kind
        ``FLIPS`` changes no value, ``FULL`` also turns and scales freely and varies
        grey values.
    """

    def __init__(self, kind: Augmentation) -> None:
        v2 = import_transforms()
        from torchvision import tv_tensors

        self._tv = tv_tensors
        self._is_full = kind is Augmentation.FULL
        moves = [v2.RandomHorizontalFlip(), v2.RandomVerticalFlip()]
        if kind is Augmentation.FULL:
            affine = v2.RandomAffine(
                degrees=45,
                scale=(0.8, 1.25),
                interpolation=v2.InterpolationMode.BILINEAR,
                fill={tv_tensors.Image: 0.0, tv_tensors.Mask: 0.0},
            )
            # It blurs and loses corners, so only some crops are moved so.
            moves.append(v2.RandomApply([affine], 0.3))
        self._geometry = v2.Compose(moves)

    def __call__(self, batch: Batch) -> Batch:
        """Return a batch with each crop varied on its own."""
        images, labels, weights = [], [], []
        for image, label, weight in zip(batch.image, batch.labels, batch.weights, strict=True):
            turns = int(torch.randint(4, (1,)))
            planes = torch.stack((label.float(), weight)).rot90(turns, (1, 2))
            image = image.rot90(turns, (1, 2))
            moved, mask = self._geometry(self._tv.Image(image), self._tv.Mask(planes))
            plain_image = moved.as_subclass(Tensor)
            images.append(vary_grey(plain_image) if self._is_full else plain_image)
            plain = mask.as_subclass(Tensor)
            labels.append(plain[0].to(torch.uint8))
            weights.append(plain[1])
        return Batch(torch.stack(images), torch.stack(labels), torch.stack(weights))


def vary_grey(image: Tensor) -> Tensor:
    """Vary contrast and the balance of channels of a scaled image, (C, H, W) in 0..1.

    Brightness and gamma are left alone: images are scaled by their own values, and
    what tells a dim object from the background is a difference of a few hundredths.
    """
    channels = image.shape[0]
    gain = torch.empty(1).uniform_(0.9, 1.1) * torch.empty(channels, 1, 1).uniform_(0.9, 1.1)
    return (image * gain).clamp_(0, 1)
