"""Running a network over a plane, tile by tile."""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from segdesk.config.inference import InferenceConfig
from segdesk.core.card import Normalization
from segdesk.core.errors import InputError
from segdesk.inference.normalize import fit_channels, scale, standardize
from segdesk.inference.tiling import Blender, Box, Sides, Tile, TilePlan, mirrored, plan
from segdesk.jobs.cancel import CancelToken
from segdesk.nn.device import (
    Precision,
    device_words,
    free_spare,
    is_out_of_memory,
    measured,
    pick_precision,
    place,
    tiles_at_once,
)
from segdesk.nn.spec import ModelSpec
from segdesk.nn.weights import LoadedModel

if TYPE_CHECKING:
    import numpy.typing as npt

    Floats = npt.NDArray[np.float32]

Progress = Callable[[int, int], None]

#: From a batch of tiles (N, C, h, w) to maps of theirs (N, M, h, w), float32.
Forward = Callable[[Tensor], Tensor]

#: Half precision is tried out only where so many tiles wait: the try takes a second.
TILES_WORTH_A_TRY = 32


Item = TypeVar("Item")


def _ignore(done: int, total: int) -> None:
    del done, total


def _nothing() -> None:
    pass


def _silent(sentence: str) -> None:
    del sentence


@dataclass(frozen=True)
class Plane:
    """A plane of an image, as the network takes it.

    Attributes
    ----------
    shape
        Height and width.
    read
        Returns float32 (h, w, C) of rows and columns within the plane. Called from
        another thread, one call at a time.
    """

    shape: tuple[int, int]
    read: Callable[[slice, slice], Floats]

    @classmethod
    def of(cls, plane: Floats) -> Plane:
        """Wrap an array (Y, X, C)."""
        return cls(plane.shape[:2], lambda rows, columns: plane[rows, columns])


class _Valid(nn.Module):
    """The network without its own mirroring: maps of the middle of each tile."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        maps: Tensor = self.network.valid(x)  # type: ignore[operator]
        return maps


class Predictor:
    """A loaded model on a device.

    Computes several tiles at once, as many as memory allows: in one batch on a graphics
    card, beside each other on a processor. Runs short of memory without failing: it
    computes fewer tiles at once, then smaller ones, then on the processor, and says so.

    Parameters
    ----------
    model
        The network; it is moved to ``device``.
    device
        Where it computes.
    say
        Called with a sentence when something changes that a user may want to know.
    """

    def __init__(
        self,
        model: LoadedModel,
        device: torch.device,
        say: Callable[[str], None] = _silent,
    ) -> None:
        self._model = model
        self._device = device
        self._say = say
        self._network = place(model.network, device)
        self._sides = _sides_of([model.spec])
        #: Tiles at once, and the size of the tile that this was found with.
        self._at_once = 1
        self._found_with: tuple[int, int] | None = None
        self._most = 1 << 30
        self._precision = Precision.SINGLE
        #: What trials found, by what was asked for.
        self._tried: dict[str, Precision] = {}
        self._fixed: Precision | None = None

    def fit(self, others: Sequence[ModelSpec]) -> None:
        """Choose tiles that fit the architectures of further models, too."""
        self._sides = _sides_of([self._model.spec, *others])

    @property
    def device(self) -> torch.device:
        """Where it computes now."""
        return self._device

    @property
    def network(self) -> nn.Module:
        """What is run on tiles: images (N, C, h, w) in, class maps out."""
        return _Valid(self._network) if self._sides.context else self._network

    @property
    def precision(self) -> Precision:
        """What it computes with."""
        return self._precision

    def settle_precision(self, plane: Plane, config: InferenceConfig) -> Precision:
        """Find out what a whole plane is best computed with, before parts of it are."""
        tiling = self.plan(plane.shape, config)
        return self._settle(plane, tiling, len(tiling.tiles), config)

    @contextmanager
    def fixed(self, precision: Precision) -> Iterator[None]:
        """Compute with what was settled on elsewhere, while the block lasts."""
        self._fixed = precision
        try:
            yield
        finally:
            self._fixed = None

    def prepare(self, data: npt.NDArray[Any]) -> Floats:
        """Fit channels and standardise an image, (Z,) Y, X, C in any dtype."""
        card = self._model.card
        fitted = fit_channels(data, card.channels, card.name)
        how: Normalization = card.normalization
        return standardize(scale(fitted, how), how)

    def plan(self, shape: tuple[int, int], config: InferenceConfig) -> TilePlan:
        """Plan the tiles of a plane.

        Raises
        ------
        InputError
            The tile size does not fit the model.
        """
        if config.tile_size <= self._most:
            return plan(shape, config.tile_size, config.overlap, self._sides)
        most = self._sides.down(self._most)
        return plan(shape, most, min(config.overlap, most // 2), self._sides)

    def predict_plane(
        self,
        plane: Floats,
        config: InferenceConfig,
        token: CancelToken | None = None,
        progress: Progress = _ignore,
    ) -> Floats:
        """Return class probabilities, float32 (K, Y, X), of a prepared plane.

        Parameters
        ----------
        plane
            float32 (Y, X, C), from :meth:`prepare`.
        progress
            Called with tiles done and tiles in all.

        Raises
        ------
        CanceledError
            ``token`` was set; looked at before every batch of tiles.
        InputError
            The tile size does not fit the model, or memory ran out.
        """
        result = np.empty((len(self._model.card.classes), *plane.shape[:2]), np.float32)

        def keep(box: Box, maps: Floats) -> None:
            result[:, *box.slices] = maps

        check = token.check if token is not None else _nothing
        self.run(Plane.of(plane), config, keep, check=check, progress=progress)
        return result

    def run(
        self,
        plane: Plane,
        config: InferenceConfig,
        emit: Callable[[Box, Floats], None],
        *,
        forward: Forward | None = None,
        view: Callable[[], Box | None] = lambda: None,
        is_done: Callable[[Box], bool] = lambda box: False,
        check: Callable[[], None] = _nothing,
        progress: Progress = _ignore,
    ) -> None:
        """Run the network over a plane, and hand on each part when it is finished.

        Tiles are read, computed, and blended at the same time, each on a thread.

        Parameters
        ----------
        emit
            Called on another thread with a part of the plane and its maps, float32
            (M, h, w); every pixel comes once.
        forward
            What is done with a batch of tiles; class probabilities if not given.
        view
            Returns the part of the plane whose tiles come first; asked before every
            batch, so that it may move.
        is_done
            Says of a tile's part of the plane that it is not needed (any more).
        check
            Called before every batch; what it raises ends the run.

        Raises
        ------
        InputError
            The tile size does not fit the model, or memory ran out on the processor.
        """
        run = forward or self.probabilities
        # Their threads are there from the beginning: short of memory, none could be started.
        with _thread("read") as reader, _thread("write") as writer:
            while True:
                tiling = self.plan(plane.shape, config)
                todo = [tile for tile in tiling.tiles if not is_done(tiling.box(tile))]
                self._precision = self._settle(plane, tiling, len(todo), config)
                work = _Work(self._model.card.name, plane, tiling, todo, emit)
                try:
                    self._work_off(work, run, view, check, progress, reader, writer)
                    return
                except _SmallerTiles:
                    continue

    def probabilities(self, batch: Tensor) -> Tensor:
        """Return class probabilities, float32 (N, K, h, w), of tiles (N, C, h, w)."""
        return torch.softmax(self.network(batch).float(), 1)

    # How ---------------------------------------------------------------------

    def _work_off(
        self,
        work: _Work,
        forward: Forward,
        view: Callable[[], Box | None],
        check: Callable[[], None],
        progress: Progress,
        reader: ThreadPoolExecutor,
        writer: ThreadPoolExecutor,
    ) -> None:
        total = len(work.tiling.tiles)
        done = total - len(work.tiles)
        if work.tiling.input_size != self._found_with:
            self._at_once, self._found_with = 1, None
        batches = (self._load(work, tiles) for tiles in self._batches(work, view))
        with _one_ahead(batches, reader, writer) as (ahead, later):
            progress(done, total)
            with closing(self._computed(ahead, forward, work, check)) as computed:
                for tiles, maps in computed:
                    later(work.take, tiles, maps)
                    done += len(tiles)
                    progress(done, total)
        progress(total, total)

    def _batches(self, work: _Work, view: Callable[[], Box | None]) -> Iterator[Sequence[Tile]]:
        waiting, last = work.tiles, None
        while waiting:
            if (box := view()) not in (None, last):
                waiting, last = work.tiling.nearest_first(waiting, box), box
            size = self._at_once if self._device.type == "cuda" else 1
            yield waiting[:size]
            waiting = waiting[size:]

    def _load(self, work: _Work, tiles: Sequence[Tile]) -> tuple[Sequence[Tile], Tensor]:
        # Channels last in memory already, as the network is given it.
        return tiles, torch.from_numpy(np.stack([work.read(t) for t in tiles])).permute(0, 3, 1, 2)

    def _computed(
        self,
        batches: Iterator[tuple[Sequence[Tile], Tensor]],
        forward: Forward,
        work: _Work,
        check: Callable[[], None],
    ) -> Generator[tuple[Sequence[Tile], Tensor]]:
        """Return batches with their maps, in order, so that sums come out the same each time.

        The first is computed alone, on all threads: it is on screen soonest so, and it
        tells how much memory a tile takes.
        """
        for tiles, batch in batches:
            check()
            yield tiles, self._compute(batch, forward, work)
            if self._device.type == "cpu" and self._at_once > 1:
                yield from self._beside(batches, forward, work, check)

    def _beside(
        self,
        batches: Iterator[tuple[Sequence[Tile], Tensor]],
        forward: Forward,
        work: _Work,
        check: Callable[[], None],
    ) -> Iterator[tuple[Sequence[Tile], Tensor]]:
        """Compute batches beside each other, each on a share of the processor's threads.

        Ends before the last where memory runs out.
        """
        running: deque[tuple[Sequence[Tile], Tensor, Future[Tensor]]] = deque()

        def oldest() -> tuple[Sequence[Tile], Tensor]:
            tiles, batch, coming = running.popleft()
            check()
            try:
                return tiles, coming.result()
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
            self._one_at_a_time()
            wait([future for _, _, future in running])  # what they hold is free then
            return tiles, self._compute(batch, forward, work)

        with ExitStack() as stack:
            try:
                pool = stack.enter_context(_threads(self._at_once))
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                self._one_at_a_time()
                return
            stack.callback(lambda: [future.cancel() for _, _, future in running])
            for tiles, batch in batches:
                while len(running) > self._at_once:  # one waits, so that no thread does
                    yield oldest()
                check()
                try:
                    running.append((tiles, batch, pool.submit(self._forward, batch, forward)))
                except RuntimeError as error:  # a thread needs memory, too
                    if not is_out_of_memory(error):
                        raise
                    self._one_at_a_time()
                    while running:
                        yield oldest()
                    yield tiles, self._compute(batch, forward, work)
                if self._at_once == 1:
                    break
            while running:
                yield oldest()

    def _one_at_a_time(self) -> None:
        free_spare(self._device)
        if self._at_once > 1:
            self._at_once = 1
            self._say("Memory ran out on the processor: one tile at a time from here on.")

    def _compute(self, batch: Tensor, forward: Forward, work: _Work) -> Tensor:
        """Run a batch; short of memory, go down the ladder until it fits."""
        while True:
            try:
                with self._measured(work):
                    rest = torch.split(batch, self._at_once)
                    parts = [self._forward(part, forward) for part in rest]
                return torch.cat(parts) if len(parts) > 1 else parts[0]
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
            self._climb_down(len(batch), work)

    @contextmanager
    def _measured(self, work: _Work) -> Iterator[None]:
        """Find out how many tiles fit at once, the first time that one of this size is computed."""
        if self._found_with is not None:
            yield
            return
        with measured(self._device) as used:
            yield
        self._at_once = tiles_at_once(self._device, used.bytes)
        self._found_with = work.tiling.input_size

    def _forward(self, batch: Tensor, forward: Forward) -> Tensor:
        placed = batch.to(self._device, memory_format=torch.channels_last, non_blocking=True)
        with torch.inference_mode(), self.precision.autocast(self._device):
            return forward(placed)

    def _climb_down(self, size: int, work: _Work) -> None:
        """Ask for less memory from here on, one step down the ladder."""
        free_spare(self._device)
        where = device_words(self._device)
        self._found_with = work.tiling.input_size  # found by failing
        now = min(size, self._at_once)
        if now > 1:
            self._at_once = now // 2
            self._say(f"Memory ran out on {where}: {self._at_once} tiles at once from here on.")
            return
        side = max(work.tiling.size)
        smaller = self._sides.down(side // 2)
        if smaller < side and work.give_up():
            self._most = smaller
            self._say(f"Memory ran out on {where}: tiles of {smaller} pixels from here on.")
            raise _SmallerTiles
        if self._device.type != "cpu":
            self._device, self._at_once = torch.device("cpu"), 1
            self._precision = Precision.SINGLE
            self._tried.clear()
            self._network = place(self._network, self._device)
            self._say(f"Memory ran out on {where}: the processor goes on, which is slower.")
            return
        if smaller < side:
            raise InputError(
                f"Memory ran out with tiles of {side} pixels, on the way through the image; choose "
                "smaller tiles, or close other programs."
            )
        raise InputError(
            f"Memory ran out with tiles of {side} pixels, the smallest of use; close other "
            "programs, or choose a smaller model."
        )

    def _settle(
        self, plane: Plane, tiling: TilePlan, waiting: int, config: InferenceConfig
    ) -> Precision:
        """Return what to compute with, after a trial where that may pay."""
        if self._fixed is not None:
            return self._fixed
        asked = config.precision
        if asked in self._tried:
            return self._tried[asked]
        if asked == "single" or (asked == "auto" and waiting < TILES_WORTH_A_TRY):
            return Precision.SINGLE
        work = _Work(self._model.card.name, plane, tiling, [], lambda box, maps: None)
        _, batch = self._load(work, [tiling.tiles[len(tiling.tiles) // 2]])
        choice = pick_precision(
            self.network,
            batch.to(self._device, memory_format=torch.channels_last),
            is_wanted=asked == "half",
        )
        self._tried[asked] = choice.precision
        self._say(choice.reason)
        return choice.precision


def _sides_of(specs: Sequence[ModelSpec]) -> Sides:
    """Return what sides tiles may have that all these architectures take."""
    first = specs[0]
    if first.context and len(specs) == 1:
        return Sides(first.stride, first.smallest_valid, first.context)
    stride = math.lcm(*(spec.stride for spec in specs))
    return Sides(stride, max(spec.min_size for spec in specs))


class _SmallerTiles(Exception):
    """Nothing was handed on yet, and smaller tiles are to be tried."""


class _Work:
    """A plane on its way through the network."""

    def __init__(
        self,
        model: str,
        plane: Plane,
        tiling: TilePlan,
        tiles: Sequence[Tile],
        emit: Callable[[Box, Floats], None],
    ) -> None:
        self._model = model
        self.tiling = tiling
        self.tiles = tiles
        self._plane = plane
        self._blender = Blender(tiling, self._hand_on)
        self._emit = emit
        self._lock = threading.Lock()
        self._has_emitted = self._is_given_up = False

    def give_up(self) -> bool:
        """Hand nothing on from here, if nothing was: then it can begin anew with other tiles."""
        with self._lock:
            self._is_given_up = not self._has_emitted
            return self._is_given_up

    def _hand_on(self, box: Box, maps: Floats) -> None:
        with self._lock:
            if not self._is_given_up:
                self._has_emitted = True
                self._emit(box, maps)

    def read(self, tile: Tile) -> Floats:
        """Return what the network is given for a tile, (h, w, C)."""
        return mirrored(self._plane.read, self._plane.shape, self.tiling.input_box(tile))

    def take(self, tiles: Sequence[Tile], maps: Tensor) -> None:
        """Blend the maps of some tiles."""
        arrays = maps.cpu().numpy()
        if not np.isfinite(arrays).all():
            raise InputError(
                f"The model {self._model!r} gives no numbers (NaN or infinity) for a part of the "
                "image. Its weights are damaged, or too large for half precision: set "
                "precision=single, or use another model."
            )
        for tile, array in zip(tiles, arrays, strict=True):
            self._blender.add(tile, array)


@contextmanager
def _threads(count: int) -> Iterator[ThreadPoolExecutor]:
    """Make threads that share the processor, each with its part of OpenMP's threads."""
    all_of_them = torch.get_num_threads()
    share = max(1, all_of_them // count)

    def begin() -> None:
        torch.get_num_threads()  # else the thread's first tile sets what all begin with
        torch.set_num_threads(share)

    with ThreadPoolExecutor(count, "segdesk-compute", initializer=begin) as pool:
        all_there = threading.Barrier(count)
        try:
            wait([pool.submit(all_there.wait) for _ in range(count)])
        except BaseException:  # there was no room for another thread
            all_there.abort()
            raise
        finally:
            # torch keeps a number for each thread, and one that threads to come begin with.
            torch.set_num_threads(all_of_them)
        yield pool


@contextmanager
def _thread(purpose: str) -> Iterator[ThreadPoolExecutor]:
    """Start a thread that works off orders."""
    with ThreadPoolExecutor(1, thread_name_prefix=f"segdesk-{purpose}") as thread:
        thread.submit(_nothing).result()
        yield thread


@contextmanager
def _one_ahead(
    items: Iterator[Item], reader: ThreadPoolExecutor, writer: ThreadPoolExecutor
) -> Iterator[tuple[Iterator[Item], Callable[..., None]]]:
    """Make items one ahead on a thread, and do later work on another.

    Yields the items, and a function that orders work: it waits while two orders are
    open, and raises what an earlier one raised. All work is done when the block ends.
    """
    orders: deque[Future[None]] = deque()
    coming: list[Future[Item | None]] = []

    def later(function: Callable[..., None], *arguments: Any) -> None:
        while len(orders) > 1:
            orders.popleft().result()
        orders.append(writer.submit(function, *arguments))

    def ahead() -> Iterator[Item]:
        coming.append(reader.submit(next, items, None))
        while (item := coming.pop().result()) is not None:
            coming.append(reader.submit(next, items, None))
            yield item

    try:
        yield ahead(), later
        while orders:
            orders.popleft().result()
    except BaseException:
        for order in orders:
            order.cancel()
        # What they hold is free then.
        wait(orders)
        wait(coming)
        raise


def planes_of(data: npt.NDArray[Any]) -> list[npt.NDArray[Any]]:
    """Return the planes of an image, (Y, X, C) or (Z, Y, X, C), as views."""
    return list(data) if data.ndim == 4 else [data]
