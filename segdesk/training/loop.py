"""The fine-tuning loop. Reads as a page: see :meth:`FineTuning.run`."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from segdesk import __version__
from segdesk.config.inference import InferenceConfig
from segdesk.config.training import ClassWeights, Recipe, TrainingConfig
from segdesk.core.card import ModelCard, TrainingData
from segdesk.core.errors import CanceledError, SegDeskError
from segdesk.core.manifest import CHECKPOINT, RunManifest
from segdesk.core.sample import Split
from segdesk.inference.predictor import Predictor
from segdesk.io.packages import REHEARSAL
from segdesk.jobs.control import RunControl
from segdesk.jobs.heap import give_back_freed_memory
from segdesk.jobs.messages import (
    AnyEvent,
    Evaluated,
    Paused,
    Previewed,
    Progressed,
    Said,
    Stepped,
)
from segdesk.nn.device import free_spare, is_out_of_memory, place
from segdesk.nn.losses import Loss, make_loss, median_frequency
from segdesk.nn.weights import save_model, seed_everything
from segdesk.training.checkpoint import (
    load_state,
    random_state,
    save_checkpoint,
    save_state,
    set_random_state,
    snapshot,
)
from segdesk.training.dataset import CropSampler, Item
from segdesk.training.devices import Team
from segdesk.training.evaluate import Judge, predict_item
from segdesk.training.feeds import CropFeed, Feed, few_threads
from segdesk.training.metrics import confusion
from segdesk.training.optimizing import (
    WeightAverage,
    are_finite,
    keeps_norm,
    make_optimizer,
    set_training_mode,
)
from segdesk.training.preview import write_preview
from segdesk.training.quick import feature_feed
from segdesk.training.settings import require_crop
from segdesk.training.start import RunData, load_data, load_start
from segdesk.training.upright import choose_augmentation

if TYPE_CHECKING:
    import numpy.typing as npt

    Labels = npt.NDArray[np.uint8]

#: A checkpoint is written at every check, and so often at least while checks are far apart.
CHECKPOINT_SECONDS = 30.0
#: Writing them takes at most this share of the time, unless one takes no longer than so many
#: seconds: a run of few and fast steps would lose many of them otherwise.
CHECKPOINT_SHARE = 0.05
CHEAP_SECONDS = 0.05


class FineTuning:
    """One run, from its folder to a new model package in ``<folder>/model``.

    A run whose folder holds a checkpoint goes on exactly where that was taken.

    Parameters
    ----------
    folder
        Holds ``manifest.json`` and ``config.json``.
    send
        Called with every event but the terminal one.
    control
        Looked at before every step and every tile.

    Raises
    ------
    InputError
        Nothing to learn from, images that changed, a device that is not there.
    CanceledError
        The control was set; ``checkpoints/`` holds the weights and all else.
    SegDeskError
        The loss or its gradients became NaN or infinite, or memory is too small for a single crop.
    """

    def __init__(
        self,
        folder: Path,
        manifest: RunManifest,
        config: TrainingConfig,
        send: Callable[[AnyEvent], None],
        control: RunControl,
    ) -> None:
        self._folder = folder
        self._manifest = manifest
        self._config = config
        self._send = send
        self._control = control
        self._team = Team(config)
        # Each process of a team draws crops of its own.
        self._generator = seed_everything(config.seed + self._team.rank)
        self._average = WeightAverage(config.averaging)
        self._parts = 1  # of a batch, each with a backward pass of its own
        self._best = -math.inf
        self._best_state: dict[str, Tensor] | None = None
        self._worse = 0  # checks since the best
        self._saved = self._took = 0.0  # when the last checkpoint was written, and how long

    def run(self) -> dict[str, Any]:
        """Fine-tune; returns the new model's name and the scores before and after."""
        self._start = load_start(self._manifest, self._config, self._say, self._progress)
        self._model = self._start.model
        self._data = load_data(self._manifest, self._config, self._start, self._say, self._progress)
        self._network = place(self._model.network, self._team.device)
        self._predictor = Predictor(self._model, self._team.device)
        self._optimizer, self._schedule = make_optimizer(self._network, self._config)
        self._keeps_norm = keeps_norm(self._config, is_new=self._start.base is None)
        self._loss = self._make_loss()
        self._feed = self._make_feed()
        wrapped, optimizer = self._team.take(self._network, self._optimizer)
        first = self._go_on() or self._begin()
        began = time.monotonic()
        for step in range(first, self._config.total_steps + 1):
            began += self._control.wait(self._tell_pause)
            self._leave_if_canceled(step - 1)
            losses = self._step(wrapped, optimizer, step)
            self._average.take(self._network, step)
            self._report(step, *losses, began, first)
            self._schedule.step()
            if self._config.is_check_due(step):
                self._judge_and_keep(step)
                self._keep_state(step, is_due=step < self._config.total_steps)
                # Asked of all: each judges what it computed itself, and all must end together.
                if self._team.any(self._is_patience_out()):
                    self._say(f"Ended early: no better for {self._worse} checks.")
                    break
            else:
                self._keep_state(step, is_due=False)
        if self._best_state is not None:
            self._network.load_state_dict(self._best_state)
        card = self._save()
        return {"model": card.name, "before": self._before, "after": self._after}

    # What goes in --------------------------------------------------------------

    def _make_feed(self) -> Feed:
        data, config = self._data, self._config
        if config.recipe is Recipe.QUICK:
            cache = self._manifest.features or self._folder / "features"
            return feature_feed(
                self._model, self._team.device, data, config, self._generator, cache, self._progress
            )
        require_crop(self._model.spec, config.crop_size)
        sampler = CropSampler(
            data.train,
            data.rehearsal,
            batch_size=self._team.share_of(config.batch_size),
            crop_size=config.crop_size,
            replay=config.replay,
            generator=self._generator,
        )
        # Of the user's images alone: what the model knew before may be of another kind.
        augment, words = choose_augmentation(config.augment, data.train, self._model.card.classes)
        if words:
            self._say(words)
        settled = config.model_copy(update={"augment": augment})
        return CropFeed.of(self._model, self._team.device, sampler, settled)

    def _make_loss(self) -> Loss:
        if self._config.class_weights is ClassWeights.NONE:
            return make_loss(self._config)
        labels = [torch.from_numpy(item.labels) for item in self._data.train]
        weights = [torch.from_numpy(item.weights) for item in self._data.train]
        classes = len(self._model.card.classes)
        return make_loss(self._config, median_frequency(labels, weights, classes))

    # Beginning, and going on ----------------------------------------------------

    def _begin(self) -> int:
        """Judge the model it starts from; one that lacks a class has no score."""
        judged = self._data if self._start.is_known else RunData([], [], [], [])
        self._before = self._after = self._judge(judged)
        self._tell(Evaluated(job=self._manifest.run, step=0, scores=self._before, is_best=False))
        self._saved = time.monotonic()
        return 1

    def _go_on(self) -> int | None:
        """Take up the run's last checkpoint, if it has one; returns the next step."""
        path = self._folder / CHECKPOINT
        if not path.is_file():
            return None
        state = load_state(path)
        self._network.load_state_dict(state["network"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._schedule.load_state_dict(state["schedule"])
        self._average.mean = {k: v.to(self._team.device) for k, v in state["average"].items()}
        self._best, self._best_state = state["best"], state["best_state"]
        self._worse, self._parts = state["worse"], state["parts"]
        self._before, self._after = state["before"], state["after"]
        self._team.restore(state["scaler"])
        self._team.skipped = state.get("skipped", 0)  # older checkpoints lack it
        self._feed.restore(state["feed"])
        set_random_state(self._generator, state["random"])
        self._saved = time.monotonic()
        step = int(state["step"])
        self._say(f"Goes on after step {step}.")
        if not state["is_judged"]:
            self._judge_and_keep(step)
        return step + 1

    def _keep_state(self, step: int, *, is_due: bool) -> None:
        """Write a checkpoint, unless the last is young or they take too much of the time."""
        passed = time.monotonic() - self._saved
        is_late = passed > CHECKPOINT_SECONDS
        is_dear = self._took > max(CHEAP_SECONDS, passed * CHECKPOINT_SHARE)
        if (is_due or is_late) and not is_dear:
            self._save_state(step)

    def _save_state(self, step: int, *, is_judged: bool = True) -> None:
        if not self._team.is_first:
            return
        began = time.monotonic()
        state = {
            "step": step,
            "is_judged": is_judged,
            "network": self._network.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "schedule": self._schedule.state_dict(),
            "average": self._average.mean,
            "best": self._best,
            "best_state": self._best_state,
            "worse": self._worse,
            "parts": self._parts,
            "before": self._before,
            "after": self._after,
            "scaler": self._team.state(),
            "skipped": self._team.skipped,
            "feed": self._feed.state(),
            "random": random_state(self._generator),
        }
        save_state(self._folder / CHECKPOINT, state)
        self._saved = time.monotonic()
        self._took = self._saved - began

    def _leave_if_canceled(self, step: int, *, is_judged: bool = True) -> None:
        if self._team.any(self._control.is_canceled):
            if step:
                self._save_state(step, is_judged=is_judged)
                path = self._folder / "checkpoints" / "last.safetensors"
                save_checkpoint(path, snapshot(self._network), step)
            raise CanceledError

    # The steps -----------------------------------------------------------------

    def _step(
        self, wrapped: nn.Module, optimizer: torch.optim.Optimizer, step: int
    ) -> tuple[float, float]:
        """Make one step with a new batch; a network with losses of its own, one for each.

        Returns the loss of the main output and of all others.
        """
        config = self._config
        set_training_mode(self._network, config.recipe, freeze_norm=self._keeps_norm)
        batch = self._feed.draw()
        main, others = 0.0, 0.0
        for turn in range(self._feed.turns):
            losses = self._gradients(wrapped, optimizer, batch, turn)
            main, others = main + losses[0], others + losses[1]
            if not math.isfinite(main + others):
                self._leave_diverged(f"The loss became {main + others}", step)
            if not self._team.clip(wrapped, optimizer, config.clip):
                self._leave_diverged("The gradients became infinite or no numbers", step)
            if wrong := self._team.step(optimizer):
                self._leave_diverged(wrong, step, last_good=step - self._team.skipped)
        return main, others

    def _gradients(
        self, wrapped: nn.Module, optimizer: torch.optim.Optimizer, batch: Any, turn: int
    ) -> tuple[float, float]:
        """Compute a batch's gradients; where memory is too small for it, in parts of it.

        Those of the parts are summed, so the batch stays what it was. (Dice is taken over
        each part, and so a little noisier.)
        """
        while True:
            try:
                with few_threads(self._feed.is_light):
                    return self._accumulate(wrapped, optimizer, batch, turn)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
            # Outside the handler, which would hold on to the tensors of the failed try.
            self._take_smaller_parts(len(batch))

    def _leave_diverged(self, what: str, step: int, last_good: int | None = None) -> NoReturn:
        """End the run before a step that would spoil the weights; those so far are kept."""
        kept = ""
        last_good = step - 1 if last_good is None else last_good
        # A step with finite gradients can have spoilt them already.
        if last_good > 0 and are_finite(self._average.mean):
            path = self._folder / "checkpoints" / "last.safetensors"
            if self._team.is_first:
                save_checkpoint(path, self._average.mean, last_good)
            kept = f" The weights after step {last_good}, the last good ones, are kept in {path}."
        if self._best_state is not None:
            best = self._folder / "checkpoints" / "best.safetensors"
            kept += f" Those that did best so far are in {best}."
        raise SegDeskError(
            f"{what} at step {step}, so the run was ended and the model it started from is "
            f"untouched; try a lower learning rate.{kept}"
        )

    def _accumulate(
        self, wrapped: nn.Module, optimizer: torch.optim.Optimizer, batch: Any, turn: int
    ) -> tuple[float, float]:
        """Sum the gradients; returns the loss of the main output and of all others."""
        optimizer.zero_grad(set_to_none=True)
        size = -(-len(batch) // self._parts)
        main, others = 0.0, 0.0
        for start in range(0, len(batch), size):
            part = batch.part(start, start + size)
            with self._half():
                losses = self._feed.loss(wrapped, part, self._loss, turn)
            losses = losses * (len(part) / len(batch))
            self._team.backward(losses.sum())
            first, *rest = losses.tolist()
            main, others = main + first, others + sum(rest)
        return main, others

    def _half(self) -> AbstractContextManager[Any]:
        # A loss of the network's own may sum over whole images, which half precision cannot hold.
        return self._team.half() if self._model.spec.needs_labels else nullcontext()

    def _take_smaller_parts(self, crops: int) -> None:
        if self._parts >= crops:
            raise SegDeskError(
                "There is not enough memory for a single crop of "
                f"{self._config.crop_size} pixels; choose smaller crops, or close other programs."
            )
        self._optimizer.zero_grad(set_to_none=True)
        free_spare(self._team.device)
        self._parts = min(crops, 2 * self._parts)
        self._say(
            f"Memory was short, so each batch of {crops} is now computed in {self._parts} parts; "
            "what is learnt is the same but for what is taken over a part (Dice, and normalisation "
            "where it follows the images), and a step takes a little longer."
        )

    def _report(self, step: int, loss: float, auxiliary: float, began: float, first: int) -> None:
        total = self._config.total_steps
        group = self._optimizer.param_groups[0]
        passed = time.monotonic() - began
        self._tell(
            Stepped(
                job=self._manifest.run,
                step=step,
                total=total,
                loss=loss,
                auxiliary_loss=auxiliary,
                learning_rate=group["lr"] / group["rate"],
                seconds_left=passed / (step - first + 1) * (total - step),
            )
        )

    # What comes out ------------------------------------------------------------

    def _judge(
        self, data: RunData, seen: Callable[[Item, Labels], None] = lambda item, labels: None
    ) -> dict[str, Any]:
        card = self._model.card
        self._network.eval()
        scores = []
        for items in (data.validation, data.remembered):
            judge = Judge(tuple(items), card.classes, card.normalization)
            config = InferenceConfig()
            scores.append(judge.score(self._predictor, config, self._control, seen=seen))
        return {**scores[0], "remembered": scores[1]}

    def _judge_and_keep(self, step: int) -> None:
        """Judge after ``step`` and keep the best weights."""
        if not are_finite(self._average.mean):
            self._leave_diverged("The weights became infinite or no numbers", step)
        try:
            with self._average.lent(self._network):
                if not self._model.spec.needs_labels:
                    self._name_maps()
                scores = self._judge_and_draw(step)
                weights = snapshot(self._network)
        except CanceledError:
            self._leave_if_canceled(step, is_judged=False)
            raise
        known = [s for s in (scores["dice"], scores["remembered"]["dice"]) if s is not None]
        # Without validation images of the user's, "best" could only mean "least changed".
        value = sum(known) / len(known) if scores["dice"] is not None else float(step)
        is_best = value > self._best
        self._worse = 0 if is_best else self._worse + 1
        self._tell(Evaluated(job=self._manifest.run, step=step, scores=scores, is_best=is_best))
        if is_best:
            self._best, self._best_state, self._after = value, weights, scores
            if self._team.is_first:
                path = self._folder / "checkpoints" / "best.safetensors"
                save_checkpoint(path, weights, step)

    def _judge_and_draw(self, step: int) -> dict[str, Any]:
        """Judge, and draw what the model makes of the first image, those held back first."""
        drawn = [*self._data.validation, *self._data.train][0]
        found: list[Labels] = []

        def seen(item: Item, labels: Labels) -> None:
            if item is drawn:
                found.append(labels)

        scores = self._judge(self._data, seen)
        labels = found[0] if found else self._predict(drawn)
        path = self._folder / "preview" / f"{step:06d}.png"
        if self._team.is_first:
            write_preview(path, drawn.image, labels, self._model.card.colors)
        self._tell(Previewed(job=self._manifest.run, step=step, sample=drawn.name, picture=path))
        return scores

    def _is_patience_out(self) -> bool:
        patience = self._config.patience
        return 0 < patience <= self._worse and self._data.validation != []

    def _predict(self, item: Item) -> Labels:
        how = self._model.card.normalization
        return predict_item(item, self._predictor, how, InferenceConfig(), self._control)

    def _name_maps(self) -> None:
        """Give the maps of a network that learnt without labels the names people use.

        Which map stands for which class is arbitrary to it: the pairing that agrees best
        with what is labelled is taken. Without labels they stay in their order.
        """
        classes = len(self._model.card.classes)
        together = np.zeros((classes, classes), np.int64)
        self._network.eval()
        for item in [*self._data.train, *self._data.validation]:
            found = self._predict(item)
            together += confusion(item.labels, found, classes, item.weights > 0)
        if together.any():
            _, order = linear_sum_assignment(-together)
            model: Any = self._network
            model.assign(torch.from_numpy(order))

    def _save(self) -> ModelCard:
        manifest, old = self._manifest, self._model.card
        learnt = [s for s in manifest.samples if s.split is Split.TRAIN]
        dice = self._after["dice"]
        data = TrainingData(name="your corrected images", license="yours", images=len(learnt))
        ids = dict.fromkeys((*old.trained_ids, *(s.sha256 for s in learnt)))
        card = old.model_copy(
            update={
                "training_data": (*old.training_data, data),
                "trained_ids": tuple(ids),
                "score": {"validation_dice": dice} if dice is not None else {},
                "run": manifest.run,
                "created": datetime.now(UTC).isoformat(timespec="seconds"),
                "code_version": __version__,
            }
        )
        if not self._team.is_first:
            return card
        target = self._folder / "model"
        card = save_model(target, self._network, card)
        known = manifest.base_folder / REHEARSAL if manifest.base_folder is not None else None
        if known is not None and known.is_dir() and self._start.base is not None:
            shutil.copytree(known, target / REHEARSAL, dirs_exist_ok=True)
        (self._folder / CHECKPOINT).unlink(missing_ok=True)  # it has come to its end
        return card

    # What is told --------------------------------------------------------------

    def _tell(self, event: AnyEvent) -> None:
        if self._team.is_first:
            self._send(event)

    def _say(self, text: str) -> None:
        self._tell(Said(job=self._manifest.run, text=text))

    def _tell_pause(self, is_paused: bool) -> None:
        if is_paused:
            give_back_freed_memory()
        self._tell(Paused(job=self._manifest.run, is_paused=is_paused))

    def _progress(self, done: int, total: int, text: str) -> None:
        """Report what is read, fetched or computed before the first step."""
        self._control.check()
        self._tell(Progressed(job=self._manifest.run, done=done, total=total, text=text))
