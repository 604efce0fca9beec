"""What a person asks for, checked at the door.

In: command-line flags or form fields. Out: frozen, JSON-ready configurations that fully determine a run.
"""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from neurflow_engine.access import absolute
from neurflow_engine.errors import InputError

LOCAL = "local-dir:"  # timm's prefix of a model folder


class _Config(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ModelConfig(_Config):
    """Which classifier, and how its input is prepared; ``None`` means timm's own data config decides."""

    name: str = Field(min_length=1)  # a timm name, hf-hub:..., or local-dir:FOLDER
    checkpoint: Path | None = None
    model_kwargs: dict = Field(default_factory=dict)
    class_map: Path | None = None
    merge: Path | None = None  # which classes count as one, see ``class_names.read_merge``
    random_weights: bool = False  # untrained weights, seeded; only ever when asked for
    input_size: tuple[Annotated[int, Field(gt=0)], Annotated[int, Field(gt=0)]] | None = None  # (height, width)
    crop_pct: Annotated[float, Field(gt=0, le=1)] | None = None
    crop_mode: Literal["center", "squash", "border"] | None = None
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[Annotated[float, Field(gt=0)], ...] | None = None

    @field_validator("checkpoint", "class_map", "merge")
    @classmethod
    def _absolute(cls, path: Path | None):
        return path and absolute(path)

    @field_validator("name")
    @classmethod
    def _absolute_folder(cls, name: str):
        """A run is opened again from anywhere, so what it remembers must not depend on the folder it was started in."""
        folder = name.removeprefix(LOCAL)
        return name if folder == name else f"{LOCAL}{absolute(folder)}"


class AnalysisConfig(_Config):
    """One run: a model, a folder of images, a target class and the settings of the method (DESIGN.md)."""

    model: ModelConfig
    data: Path
    target: str  # class name, or class index in digits
    layers: tuple[str, ...] | None = None  # without the logits, deepest first; None: chosen by depth
    depth: int = Field(default=3, ge=1, le=12)  # how many layers below the logits when none are named
    tau: int = Field(default=16, ge=1)  # core neurons of a neuron, at most
    top_k: int = Field(default=50, ge=1)  # patches in the concept of a neuron
    max_images: int = Field(default=50, ge=1)  # probe images, at most
    granularities: tuple[Annotated[float, Field(gt=0, le=1)], ...] = (1.0, 0.5, 0.25)  # window side / image side
    min_groups: int = Field(default=4, ge=2)  # neuron groups of a layer, at least (fewer in a layer with few semantic groups)
    max_groups: int = Field(default=12, ge=2)  # neuron groups of a layer, at most
    completeness: float = Field(default=0.08, gt=0)  # gap of the attribution up to which no more nodes are spent
    seed: int = Field(default=0, ge=0)
    precision: Literal["mixed", "float32"] = "mixed"  # mixed: gradients in bfloat16 where the processor has it and float32 agrees
    memory_mb: int = Field(default=3000, ge=256)  # of RAM that an analysis may take, at most: how large its batches are, not what it finds
    disk_mb: int = Field(default=8000, ge=0)  # for outputs of layers kept between stages, at most; what is not kept is computed again
    device: str = "auto"  # auto, cpu, cuda, cuda:N, mps: where, not what
    workers: int | None = Field(default=None, ge=0)  # processes decoding images, None: as it pays; how fast, not what

    @field_validator("data")
    @classmethod
    def _absolute(cls, path: Path):
        return absolute(path)

    @model_validator(mode="after")
    def _range_of_groups(self):
        if self.min_groups > self.max_groups:
            raise ValueError(f"min_groups {self.min_groups} is larger than max_groups {self.max_groups}")
        return self

    @field_validator("granularities", "layers")
    @classmethod
    def _without_repeats(cls, values):
        if values is not None and (not values or len(set(values)) != len(values)):
            raise ValueError("needs at least one value, each once")
        return values


def checked(config_type: type[_Config], **fields):
    """Build a configuration; raises InputError with one line per wrong field instead of pydantic's report."""
    try:
        return config_type(**fields)
    except ValidationError as error:
        problems = (
            f"{'.'.join(map(str, item['loc']))}: {item['msg'].removeprefix('Value error, ')}, got {item['input']!r}"
            if item["loc"]
            else item["msg"].removeprefix("Value error, ")
            for item in error.errors()
        )
        raise InputError("; ".join(problems)) from None
