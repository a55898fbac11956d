"""The fine-tuning loop. Reads as a page: see :meth:`FineTuning.run`."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from segdesk import __version__
from segdesk.config.inference import InferenceConfig
from segdesk.config.training import Augmentation, ClassWeights, Recipe, TrainingConfig
from segdesk.core.card import ModelCard, TrainingData
from segdesk.core.errors import CanceledError, InputError, SegDeskError
from segdesk.core.manifest import RunManifest
from segdesk.core.sample import Split
from segdesk.inference.normalize import standardize
from segdesk.inference.predictor import Predictor
from segdesk.io.packages import REHEARSAL
from segdesk.jobs.cancel import CancelToken
from segdesk.jobs.messages import AnyEvent, Evaluated, Progressed, Said, Stepped
from segdesk.nn.device import pick_device, place
from segdesk.nn.losses import Loss, make_loss, median_frequency
from segdesk.nn.pretrained import load_encoder_weights
from segdesk.nn.registry import build_network, find_architecture, resolve_options
from segdesk.nn.weights import LoadedModel, adapt_outputs, load_model, save_model, seed_everything
from segdesk.training.augment import Augmenter
from segdesk.training.checkpoint import save_checkpoint, snapshot
from segdesk.training.dataset import Batch, CropSampler, Item, load_rehearsal, load_sample
from segdesk.training.evaluate import Judge
from segdesk.training.metrics import confusion

#: Every n-th rehearsal image is kept back to see what is still remembered.
KEEP_BACK = 4
WARM_UP = 0.05


@dataclass(frozen=True)
class RunData:
    """The labelled planes of a run, by what they are for."""

    train: list[Item]
    validation: list[Item]
    rehearsal: list[Item]
    remembered: list[Item]


class FineTuning:
    """One run, from its folder to a new model package in ``<folder>/model``.

    Parameters
    ----------
    folder
        Holds ``manifest.json`` and ``config.json``.
    send
        Called with every event but the terminal one.
    token
        Looked at before every step and every tile.

    Raises
    ------
    InputError
        Nothing to learn from, images that changed, a device that is not there.
    CanceledError
        The token was set; ``checkpoints/last.safetensors`` holds the weights.
    SegDeskError
        The loss became NaN or infinite.
    """

    def __init__(
        self,
        folder: Path,
        manifest: RunManifest,
        config: TrainingConfig,
        send: Callable[[AnyEvent], None],
        token: CancelToken,
    ) -> None:
        self._folder = folder
        self._manifest = manifest
        self._config = config
        self._send = send
        self._token = token
        self._device = pick_device(config.device).device
        self._best = -math.inf
        self._best_state: dict[str, Tensor] | None = None
        self._average: dict[str, Tensor] = {}
        self._generator = seed_everything(config.seed)

    def run(self) -> dict[str, Any]:
        """Fine-tune; returns the new model's name and the scores before and after."""
        self._base, self._model = self._load_start()
        data = self._load_data()
        network = place(self._model.network, self._device)
        self._loss = self._make_loss(data.train)
        predictor = Predictor(self._model, self._device)
        optimizer, schedule = self._make_optimizer(network)
        sampler = CropSampler(
            data.train,
            data.rehearsal,
            batch_size=self._config.batch_size,
            crop_size=self._crop_size(),
            replay=self._config.replay,
            generator=self._generator,
        )
        kind = self._config.augment
        augment = None if kind is Augmentation.NONE else Augmenter(kind)
        before = after = self._judge_before(predictor, data)
        began = time.monotonic()
        for step in range(1, self._config.steps + 1):
            self._leave_if_canceled(network, step - 1)
            self._set_training_mode(network)
            batch = sampler.draw()
            loss = self._step(network, optimizer, augment(batch) if augment else batch)
            self._average_in(network, step)
            self._report(step, loss, optimizer, began)
            schedule.step()
            if step % self._config.evaluate_every == 0 or step == self._config.steps:
                after = self._judge_and_keep(network, predictor, data, step, after)
        if self._best_state is not None:
            network.load_state_dict(self._best_state)
        card = self._save(network, after)
        return {"model": card.name, "before": before, "after": after}

    # What goes in --------------------------------------------------------------

    def _load_start(self) -> tuple[LoadedModel | None, LoadedModel]:
        manifest = self._manifest
        if manifest.base_folder is None:
            spec = find_architecture(manifest.architecture)
            card = ModelCard(
                name=manifest.new_model,
                architecture=manifest.architecture,
                options=resolve_options(spec, manifest.variant, manifest.options),
                classes=manifest.classes,
                colors=manifest.colors,
                channels=manifest.channels,
                weights_sha256="",
                parameters=0,
            )
            network = build_network(card)
            if manifest.encoder_weights:
                encoder = network.get_submodule("encoder")
                self._say(load_encoder_weights(encoder, manifest.encoder_weights, self._fetched))
            return None, LoadedModel(network, card, "")
        base = load_model(manifest.base_folder)
        card = base.card.model_copy(
            update={
                "name": manifest.new_model,
                "classes": manifest.classes,
                "colors": manifest.colors,
                "base_model": base.card.name,
                "score": {},
                "description": f"{base.card.name}, fine-tuned.",
            }
        )
        return base, LoadedModel(adapt_outputs(base, card), card, base.weights_sha256)

    def _fetched(self, done: int, total: int, text: str) -> None:
        """Report the bytes of a download, and call it off when the run is."""
        self._token.check()
        done, total = done // 10**6, total // 10**6
        self._send(Progressed(job=self._manifest.run, done=done, total=total, text=f"{text} (MB)"))

    def _load_data(self) -> RunData:
        card = self._model.card
        planes: dict[Split, list[Item]] = {Split.TRAIN: [], Split.VALIDATION: []}
        samples = self._manifest.samples
        for done, sample in enumerate(samples):
            self._token.check()
            text = "Reading images"
            self._send(Progressed(job=self._manifest.run, done=done, total=len(samples), text=text))
            planes[sample.split] += load_sample(sample, card, self._config.corrected_weight)
        if not planes[Split.TRAIN]:
            raise InputError(
                "There is nothing to learn from yet: correct or accept at least one image that "
                "is not held back for validation."
            )
        old: list[Item] = []
        if self._base is not None and self._manifest.base_folder is not None:
            folder = self._manifest.base_folder / REHEARSAL
            old = load_rehearsal(folder, card, self._base.card) if folder.is_dir() else []
            lost = [name for name in self._base.card.classes if name not in card.classes]
            if lost:
                # Images on which only some of the classes have a meaning are no test of
                # memory, and as replay they would teach that the rest is background.
                old = []
                self._say(
                    f"This project has no {', '.join(lost)}, so the images that "
                    f"{self._base.card.name} learnt from are not repeated."
                )
        remembered = old[::KEEP_BACK] if len(old) >= KEEP_BACK else []
        kept_back = {item.name for item in remembered}
        if not planes[Split.VALIDATION]:
            self._say(
                "No corrected image is held back for validation, so the model after the last "
                "step is kept and no score can be given."
            )
        rehearsal = [item for item in old if item.name not in kept_back]
        if self._model.spec.needs_labels:
            self._warn_of_missing_classes([*planes[Split.TRAIN], *rehearsal])
        return RunData(planes[Split.TRAIN], planes[Split.VALIDATION], rehearsal, remembered)

    def _warn_of_missing_classes(self, items: list[Item]) -> None:
        names = self._model.card.classes
        seen = {int(v) for item in items for v in np.unique(item.labels[item.weights > 0])}
        missing = [name for value, name in enumerate(names) if value not in seen]
        if missing:
            self._say(
                f"No pixel of {' or '.join(missing)} is painted or accepted, so the model will "
                "unlearn it: paint some of it too, or accept an image."
            )

    def _crop_size(self) -> int:
        """Return the side of the crops, which must suit the architecture."""
        spec, size = self._model.spec, self._config.crop_size
        if size % spec.stride or size < spec.min_size:
            least = max(spec.stride, spec.min_size)
            nearest = max(round(size / spec.stride), -(-least // spec.stride)) * spec.stride
            raise InputError(
                f"Crops of {size} pixels do not fit {spec.title}: it needs multiples of "
                f"{spec.stride} from {least} on; the nearest is {nearest}."
            )
        return size

    # The steps -----------------------------------------------------------------

    def _parts(self, network: nn.Module) -> list[nn.Module]:
        names = {
            Recipe.ALL: ("encoder", "decoder", "head"),
            Recipe.DECODER: ("decoder", "head"),
            Recipe.HEAD: ("head",),
        }[self._config.recipe]
        return [network.get_submodule(name) for name in names]

    def _make_optimizer(
        self, network: nn.Module
    ) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
        network.requires_grad_(False)
        for part in self._parts(network):
            part.requires_grad_(True)
        config = self._config
        rates = {"encoder": config.encoder_rate, "decoder": 1.0, "head": config.head_rate}
        groups: list[dict[str, Any]] = []
        for name, rate in rates.items():
            learning = [p for p in network.get_submodule(name).parameters() if p.requires_grad]
            if learning:
                lr = rate * config.learning_rate
                groups.append({"params": learning, "lr": lr, "rate": rate})
        optimizer = torch.optim.AdamW(groups, weight_decay=config.weight_decay)
        warm_up = max(1, round(WARM_UP * config.steps))

        def factor(step: int) -> float:
            if step < warm_up:
                return (step + 1) / warm_up
            part = (step - warm_up) / max(1, config.steps - warm_up)
            return 0.5 * (1 + math.cos(math.pi * part))

        return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, factor)

    def _set_training_mode(self, network: nn.Module) -> None:
        network.eval()
        for part in self._parts(network):
            part.train()
        if self._config.freeze_norm and self._base is not None:
            # Two kinds of image in one batch have statistics of neither. Frozen, what
            # the model knew stays: 0.83 instead of 0.77 on the old kind.
            for module in network.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eval()

    def _step(self, network: nn.Module, optimizer: torch.optim.Optimizer, batch: Batch) -> float:
        how = self._model.card.normalization
        image = ((batch.image - how.mean) / how.std).to(
            self._device, memory_format=torch.channels_last
        )
        loss = self._loss_of(network, image, batch)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(network.parameters(), 5.0)
        optimizer.step()
        return float(loss.detach())

    def _make_loss(self, items: list[Item]) -> Loss:
        if self._config.class_weights is ClassWeights.NONE:
            return make_loss(self._config)
        labels = [torch.from_numpy(item.labels) for item in items]
        weights = [torch.from_numpy(item.weights) for item in items]
        classes = len(self._model.card.classes)
        return make_loss(self._config, median_frequency(labels, weights, classes))

    def _loss_of(self, network: nn.Module, image: Tensor, batch: Batch) -> Tensor:
        model: Any = network
        if not self._model.spec.needs_labels:
            own: Tensor = model.own_loss(image)
            return own
        labels, weights = batch.labels.to(self._device), batch.weights.to(self._device)
        # Third parties' networks may know of no auxiliary outputs.
        has_more = hasattr(model, "training_maps")
        outputs = model.training_maps(image) if has_more else [(1.0, model(image))]
        losses = [share * self._loss(maps.float(), labels, weights) for share, maps in outputs]
        return torch.stack(losses).sum()

    def _average_in(self, network: nn.Module, step: int) -> None:
        """Take the new weights into their running mean (Polyak averaging).

        The first steps keep less of it, or a short run would stay where it began.
        """
        kept = min(self._config.averaging, (1 + step) / (10 + step))
        for name, value in network.state_dict().items():
            if not value.is_floating_point() or step == 1:
                self._average[name] = value.detach().clone()
            else:
                self._average[name].lerp_(value, 1 - kept)

    @contextmanager
    def _averaged(self, network: nn.Module) -> Iterator[None]:
        """Lend the network its averaged weights."""
        own = snapshot(network)
        network.load_state_dict(self._average)
        try:
            yield
        finally:
            network.load_state_dict(own)

    def _report(
        self, step: int, loss: float, optimizer: torch.optim.Optimizer, began: float
    ) -> None:
        if not math.isfinite(loss):
            raise SegDeskError(
                f"The loss became {loss} at step {step}, so the run was ended and the model it "
                "started from is untouched; try a lower learning rate."
            )
        total = self._config.steps
        group = optimizer.param_groups[0]
        self._send(
            Stepped(
                job=self._manifest.run,
                step=step,
                total=total,
                loss=loss,
                learning_rate=group["lr"] / group["rate"],
                seconds_left=(time.monotonic() - began) / step * (total - step),
            )
        )

    def _leave_if_canceled(self, network: nn.Module, step: int) -> None:
        if self._token.is_canceled:
            save_checkpoint(
                self._folder / "checkpoints" / "last.safetensors", snapshot(network), step
            )
            raise CanceledError

    # What comes out ------------------------------------------------------------

    def _judge(self, predictor: Predictor, data: RunData, step: int) -> dict[str, Any]:
        card = self._model.card
        self._model.network.eval()
        scores = []
        for items in (data.validation, data.remembered):
            judge = Judge(tuple(items), card.classes, card.normalization)
            scores.append(judge.score(predictor, InferenceConfig(), self._token))
        return {**scores[0], "remembered": scores[1]}

    def _judge_before(self, predictor: Predictor, data: RunData) -> dict[str, Any]:
        """Judge the model it starts from; one that lacks a class has no score."""
        is_known = self._base is not None and self._base.card.classes == self._model.card.classes
        judged = data if is_known else RunData([], [], [], [])
        scores = self._judge(predictor, judged, step=0)
        self._send(Evaluated(job=self._manifest.run, step=0, scores=scores, is_best=False))
        return scores

    def _judge_and_keep(
        self,
        network: nn.Module,
        predictor: Predictor,
        data: RunData,
        step: int,
        best_scores: dict[str, Any],
    ) -> dict[str, Any]:
        """Judge after ``step`` and keep the best weights; returns the best scores."""
        try:
            with self._averaged(network):
                if not self._model.spec.needs_labels:
                    self._name_maps(network, predictor, [*data.train, *data.validation])
                scores = self._judge(predictor, data, step)
                weights = snapshot(network)
        except CanceledError:
            save_checkpoint(
                self._folder / "checkpoints" / "last.safetensors", snapshot(network), step
            )
            raise
        known = [s for s in (scores["dice"], scores["remembered"]["dice"]) if s is not None]
        # Without validation images of the user's, "best" could only mean "least changed".
        value = sum(known) / len(known) if scores["dice"] is not None else float(step)
        is_best = value > self._best
        self._send(Evaluated(job=self._manifest.run, step=step, scores=scores, is_best=is_best))
        if not is_best:
            return best_scores
        self._best = value
        self._best_state = weights
        save_checkpoint(self._folder / "checkpoints" / "best.safetensors", weights, step)
        return scores

    def _name_maps(self, network: nn.Module, predictor: Predictor, items: list[Item]) -> None:
        """Give the maps of a network that learnt without labels the names people use.

        Which map stands for which class is arbitrary to it: the pairing that agrees best
        with what is labelled is taken. Without labels they stay in their order.
        """
        card = self._model.card
        together = np.zeros((len(card.classes),) * 2, np.int64)
        network.eval()
        for item in items:
            plane = standardize(item.image, card.normalization)
            maps = predictor.predict_plane(plane, InferenceConfig(), self._token)
            found = maps.argmax(0).astype(np.uint8)
            together += confusion(item.labels, found, len(card.classes), item.weights > 0)
        if together.any():
            _, order = linear_sum_assignment(-together)
            model: Any = network
            model.assign(torch.from_numpy(order))

    def _save(self, network: nn.Module, after: dict[str, Any]) -> ModelCard:
        manifest, old = self._manifest, self._model.card
        learnt = [s for s in manifest.samples if s.split is Split.TRAIN]
        score = {"validation_dice": after["dice"]} if after["dice"] is not None else {}
        data = TrainingData(name="your corrected images", license="yours", images=len(learnt))
        card = old.model_copy(
            update={
                "training_data": (*old.training_data, data),
                "trained_ids": tuple(
                    dict.fromkeys((*old.trained_ids, *(s.sha256 for s in learnt)))
                ),
                "score": score,
                "run": manifest.run,
                "created": datetime.now(UTC).isoformat(timespec="seconds"),
                "code_version": __version__,
            }
        )
        target = self._folder / "model"
        card = save_model(target, network, card)
        if manifest.base_folder is not None and (manifest.base_folder / REHEARSAL).is_dir():
            shutil.copytree(
                manifest.base_folder / REHEARSAL, target / REHEARSAL, dirs_exist_ok=True
            )
        return card

    def _say(self, text: str) -> None:
        self._send(Said(job=self._manifest.run, text=text))
