"""Knobs of fine-tuning."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum

from pydantic import Field, field_validator

from segdesk.config.inference import Device
from segdesk.config.knobs import Knobs


class Recipe(StrEnum):
    """Which weights learn, from the fastest to the slowest."""

    QUICK = "quick"
    STANDARD = "standard"
    FULL = "full"
    SCRATCH = "scratch"
    DECODER = "decoder"
    HEAD = "head"

    @classmethod
    def _missing_(cls, value: object) -> Recipe | None:
        """Read the older name of ``full``, which runs and scripts still hold."""
        return cls.FULL if value == "all" else None


#: What each recipe does, one line each.
RECIPE_HELP: dict[Recipe, str] = {
    Recipe.QUICK: "A new head on features that are computed once; seconds, for a first look.",
    Recipe.STANDARD: "Decoder and head, and the encoder at a tenth of the rate; minutes.",
    Recipe.FULL: "Every layer at the full rate, for images of a new kind; minutes.",
    Recipe.SCRATCH: "Every layer, from random weights; for many labels and much time.",
    Recipe.DECODER: "All but the encoder, which stays as it is.",
    Recipe.HEAD: "The last layers only, with augmentation.",
}

#: How much slower the encoder learns than the rest in the standard recipe, and how much
#: faster a quick head, which is new and small.
STANDARD_ENCODER_RATE = 0.1
QUICK_RATE = 7.0


class Optimizer(StrEnum):
    """How weights follow their gradients."""

    ADAMW = "adamw"
    SGD = "sgd"


class Schedule(StrEnum):
    """How the learning rate falls after the warm-up."""

    COSINE = "cosine"
    POLY = "poly"
    CONSTANT = "constant"


class Mixed(StrEnum):
    """What the network computes with while it learns."""

    AUTO = "auto"
    SINGLE = "single"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"


class Augmentation(StrEnum):
    """How crops are varied; *auto* is settled when the images are known."""

    AUTO = "auto"
    NONE = "none"
    UPRIGHT = "upright"
    FLIPS = "flips"
    FULL = "full"


class LossKind(StrEnum):
    """What the model is told to make small (see :mod:`segdesk.nn.losses`)."""

    CROSS_ENTROPY = "cross_entropy"
    WEIGHTED_CROSS_ENTROPY = "weighted_cross_entropy"
    BALANCED_CROSS_ENTROPY = "balanced_cross_entropy"
    FOCAL = "focal"
    DICE = "dice"
    DICE_CROSS_ENTROPY = "dice_cross_entropy"
    TVERSKY = "tversky"
    BORDER_CROSS_ENTROPY = "border_cross_entropy"


#: When to use which loss, one line each.
LOSS_HELP: dict[LossKind, str] = {
    LossKind.CROSS_ENTROPY: "Every pixel alike, for classes of about the same size.",
    LossKind.WEIGHTED_CROSS_ENTROPY: "Pixels that are not background count more, when the model "
    "misses too much.",
    LossKind.BALANCED_CROSS_ENTROPY: "Background and the rest share what counts, when one of "
    "them covers nearly all of the image.",
    LossKind.FOCAL: "Pixels that are right already hardly count, for few hard pixels among many "
    "easy ones.",
    LossKind.DICE: "Overlap alone, for small objects; learns less evenly at first.",
    LossKind.DICE_CROSS_ENTROPY: "Overlap and pixels together, good for most images.",
    LossKind.TVERSKY: "Overlap in which misses and false alarms have different prices.",
    LossKind.BORDER_CROSS_ENTROPY: "Narrow gaps between objects count more, for cells that grow "
    "together.",
}


class ClassWeights(StrEnum):
    """How much the pixels of a class count."""

    NONE = "none"
    MEDIAN_FREQUENCY = "median_frequency"


class TrainingConfig(Knobs):
    """How a model is fine-tuned on the corrected images."""

    recipe: Recipe = Field(
        Recipe.FULL,
        title="What learns",
        description=" ".join(f"{kind}: {text}" for kind, text in RECIPE_HELP.items()),
        json_schema_extra={
            "basic": True,
            "choices": {str(kind): text for kind, text in RECIPE_HELP.items()},
        },
    )
    steps: int = Field(
        200,
        ge=1,
        le=100_000,
        title="Steps",
        description="How many batches the model learns from. More takes longer in proportion.",
        json_schema_extra={"basic": True},
    )
    quick_steps: int = Field(
        80,
        ge=1,
        le=100_000,
        title="Quick steps",
        description="Steps of the recipe quick, which are many times faster; it is judged once, "
        "at the end.",
    )
    learning_rate: float = Field(
        3e-3,
        gt=0,
        le=1,
        title="Learning rate",
        description="How far one step moves the weights. Too high and old knowledge is lost; with "
        "a pre-trained transformer as encoder, take a tenth, or an encoder rate of 0.1.",
        json_schema_extra={"basic": True, "log": True},
    )
    encoder_rate: float = Field(
        1.0,
        gt=0,
        le=1,
        title="Encoder rate",
        description="Times the learning rate: how fast the encoder learns. Below 1, a pre-trained "
        "encoder keeps more of what it knows.",
        json_schema_extra={"log": True},
    )
    head_rate: float = Field(
        1.0,
        gt=0,
        le=100,
        title="Head rate",
        description="Times the learning rate: how fast the last layers learn. Often 10 where the "
        "rest is pre-trained and they are new.",
        json_schema_extra={"log": True},
    )
    optimizer: Optimizer = Field(
        Optimizer.ADAMW,
        title="Optimizer",
        description="adamw: good without tuning; sgd: with momentum, as most papers train.",
    )
    momentum: float = Field(
        0.9, ge=0, lt=1, title="Momentum", description="Of sgd: how much of its pace it keeps."
    )
    schedule: Schedule = Field(
        Schedule.COSINE,
        title="Schedule",
        description="How the learning rate falls to 0: cosine; poly, with power 0.9, as DeepLab; "
        "or constant, not at all.",
    )
    warm_up: float = Field(
        0.05,
        ge=0,
        le=0.5,
        title="Warm-up",
        description="Share of the steps in which the learning rate rises to its full value.",
    )
    clip: float = Field(
        5.0,
        gt=0,
        le=1e6,
        title="Gradient limit",
        description="Longer gradients are shortened to this, so that one odd crop does no harm.",
        json_schema_extra={"log": True},
    )
    patience: int = Field(
        0,
        ge=0,
        le=1000,
        title="Patience",
        description="End early after so many checks without a better score; 0: never.",
        json_schema_extra={"unit": "checks"},
    )
    replay: float = Field(
        0.5,
        ge=0,
        le=0.9,
        title="Replay",
        description="Share of each batch that comes from images the model already knew, so that "
        "it does not forget them.",
    )
    batch_size: int = Field(
        4,
        ge=1,
        le=256,
        title="Batch size",
        description="Crops per step.",
        json_schema_extra={"unit": "crops"},
    )
    crop_size: int = Field(
        224,
        ge=32,
        le=2048,
        multiple_of=16,
        title="Crop size",
        description="Side of the squares cut from the images for learning.",
        json_schema_extra={"unit": "px"},
    )
    loss: LossKind = Field(
        LossKind.DICE_CROSS_ENTROPY,
        title="Loss",
        description="What the model is told to make small. "
        + " ".join(f"{kind}: {text}" for kind, text in LOSS_HELP.items()),
        json_schema_extra={"choices": {str(kind): text for kind, text in LOSS_HELP.items()}},
    )
    class_weights: ClassWeights = Field(
        ClassWeights.NONE,
        title="Class weights",
        description="median_frequency: in cross entropy and focal loss, pixels of rare classes "
        "count more, by the median of the frequencies over their own.",
    )
    foreground_weight: float = Field(
        2.0,
        ge=0.1,
        le=100,
        title="Foreground weight",
        description="For weighted_cross_entropy: how many times a pixel counts that is not "
        "background. Above 1, less is missed; below 1, fewer false alarms.",
    )
    foreground_share: float = Field(
        0.7,
        ge=0.01,
        le=0.99,
        title="Foreground share",
        description="For balanced_cross_entropy: how much a pixel counts that is not background; "
        "one of the background counts 1 less this. 0.5 treats them alike.",
    )
    focal_gamma: float = Field(
        2.0,
        ge=0,
        le=10,
        title="Focal gamma",
        description="For focal: how much less a pixel counts that is right already. 0: all alike.",
    )
    focal_alpha: float = Field(
        0.5,
        ge=0.01,
        le=0.99,
        title="Focal alpha",
        description="For focal: how much a pixel counts that is not background; one of the "
        "background counts 1 less this. 0.5 treats them alike.",
    )
    dice_squared: bool = Field(
        False,
        title="Squared Dice",
        description="For dice and dice_cross_entropy: divide by sums of squares (V-Net's form), "
        "which is milder where the model is unsure.",
    )
    tversky_beta: float = Field(
        0.5,
        ge=0.01,
        le=0.99,
        title="Tversky beta",
        description="For tversky: price of a false alarm; a miss costs 1 less this. Below 0.5, "
        "less is missed; 0.5 is dice.",
    )
    border_weight: float = Field(
        10.0,
        ge=0,
        le=1000,
        title="Border weight",
        description="For border_cross_entropy: how much more a pixel counts where two objects "
        "touch.",
    )
    border_sigma: float = Field(
        5.0,
        ge=0.5,
        le=100,
        title="Border width",
        description="For border_cross_entropy: how wide a gap between two objects still counts "
        "more.",
        json_schema_extra={"unit": "px"},
    )
    freeze_norm: bool = Field(
        False,
        title="Keep normalisation",
        description="Keep the normalisation statistics of the model it starts from, for a few "
        "images of the kind it knows. Of another kind little or nothing is learnt then. quick "
        "always keeps them.",
    )
    augment: Augmentation = Field(
        Augmentation.AUTO,
        title="Augment",
        description="flips: mirror and turn the crops by 90 degrees; full: also turn and scale "
        "them freely, and vary contrast and colour; upright: the same for images with an up and "
        "a down, never upside down; auto: upright where one class lies above another in all of "
        "many images, else full. none can be better in short runs with many classes.",
    )
    elastic: float = Field(
        0.0,
        ge=0,
        le=1,
        title="Elastic deformation",
        description="Share of the crops that are bent like rubber, for soft tissue and cells.",
    )
    blur: float = Field(
        0.0,
        ge=0,
        le=1,
        title="Blur",
        description="Share of the crops that are blurred, for images that differ in focus.",
    )
    noise: float = Field(
        0.0,
        ge=0,
        le=1,
        title="Noise",
        description="Share of the crops that get noise, for images that differ in exposure.",
    )
    corrected_weight: float = Field(
        1.0,
        ge=1,
        le=100,
        title="Weight of corrected pixels",
        description="How much more a pixel counts that you painted than one that you accepted.",
    )
    evaluate_every: int = Field(
        50,
        ge=1,
        le=100_000,
        title="Check every",
        description="Steps between two looks at the validation images; the best is kept.",
        json_schema_extra={"unit": "steps"},
    )
    same_classes: str = Field(
        "",
        title="Same classes",
        description="Where the model calls a class of the project otherwise: the project's name, "
        "=, the model's name; commas between. Its weights for that class are then taken over.",
        json_schema_extra={"empty": "such as polyp=lesion, wall=edge"},
    )
    weight_decay: float = Field(
        1e-4,
        ge=0,
        le=1,
        title="Weight decay",
        description="Pull of the weights towards zero.",
        json_schema_extra={"log": True},
    )
    averaging: float = Field(
        0.98,
        ge=0,
        lt=1,
        title="Averaging",
        description="How much of the running mean of the weights each step keeps; the mean is "
        "what is judged and saved. 0 takes the last weights as they are.",
    )
    seed: int = Field(
        0, ge=0, le=2**31 - 1, title="Seed", description="Same seed, same data: same result."
    )
    device: Device = Field(
        "auto",
        title="Device",
        description="What computes: auto takes the graphics card when there is one.",
    )
    devices: int = Field(
        1,
        ge=1,
        le=64,
        title="Devices",
        description="Graphics cards (or processes, on a processor) of this machine that share "
        "each batch.",
    )
    nodes: int = Field(
        1,
        ge=1,
        le=1024,
        title="Machines",
        description="Machines that share each batch; the run's folder must be on a disk they "
        "share (see the guide).",
    )
    precision: Mixed = Field(
        Mixed.AUTO,
        title="Precision",
        description="auto: half precision on graphics cards, single on processors, which take "
        "many times as long in float16.",
    )

    @field_validator("freeze_norm", mode="before")
    @classmethod
    def _read_auto(cls, value: object) -> object:
        """Read what runs hold that were made while there was a third choice."""
        return False if value == "auto" else value

    @field_validator("same_classes")
    @classmethod
    def _check_pairs(cls, text: str) -> str:
        for pair in filter(None, (part.strip() for part in text.split(","))):
            ours, sign, theirs = (part.strip() for part in pair.partition("="))
            if not (ours and sign and theirs):
                raise ValueError(f"{pair!r} is not a pair; write project's name = model's name")
        return text

    def named(self, classes: Sequence[str]) -> tuple[str, ...]:
        """Return a model's class names as the project calls them (``same_classes``)."""
        ours = {theirs: name for name, theirs in self.same_pairs.items()}
        return tuple(ours.get(name, name) for name in classes)

    @property
    def same_pairs(self) -> dict[str, str]:
        """The model's name of a class by the project's, as ``same_classes`` has them."""
        pairs = (part.partition("=") for part in self.same_classes.split(",") if part.strip())
        return {name.strip(): theirs.strip() for name, _, theirs in pairs}

    @property
    def total_steps(self) -> int:
        """Steps of a run with this recipe."""
        return self.quick_steps if self.recipe is Recipe.QUICK else self.steps

    def is_check_due(self, step: int) -> bool:
        """Whether the validation images are looked at after ``step``."""
        is_last = step == self.total_steps
        return is_last or (self.recipe is not Recipe.QUICK and step % self.evaluate_every == 0)
