"""`params.yaml` as a whole, read once, typed and checked."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError, model_validator
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from multishield.errors import UserError
from paper import paths
from paper.params.messages import sentences
from paper.params.sections import (
    SOURCES,
    Adaptive,
    Baseline,
    Classifiers,
    Clips,
    Comparison,
    Dataset,
    Report,
    Section,
    Shield,
    Studies,
    ThreatModel,
)
from paper.params.values import Name


class Params(Section):
    """Everything that an experiment depends on: one attribute per section of params.yaml."""

    seed: Annotated[int, Field(ge=0, lt=2**31)]
    arithmetic: Literal["portable", "native"]
    classifiers: Annotated[list[Name], Field(min_length=1)]
    threat_model: ThreatModel
    dataset: Dataset
    training: dict[Name, Annotated[Classifiers, Field(discriminator="source")]]
    alignment: Annotated[Clips, Field(discriminator="source")]
    baseline: Baseline
    multishield: Shield
    adaptive: Adaptive
    comparison: Comparison
    studies: Studies
    report: Report

    @model_validator(mode="after")
    def _classifiers_are_described(self):
        unknown = [name for name in self.classifiers if name not in self.training]
        if unknown:
            raise ValueError(
                f"classifiers: {unknown[0]!r} is not described under training; known: {', '.join(self.training)}"
            )
        if len(set(self.classifiers)) != len(self.classifiers):
            raise ValueError(f"classifiers: {self.classifiers} names one twice")
        if self.alignment.source == "train" and self.dataset.name != "shapes":
            raise ValueError(
                "alignment.source: 'train' needs captions, which only the shapes data set has; "
                "use 'open_clip' or 'file'"
            )
        return self

    @model_validator(mode="after")
    def _the_crop_fits_into_the_image(self):
        size, resize = self.dataset.image_size, self.dataset.resize
        if resize is not None and resize < size:
            raise ValueError(
                f"dataset.resize is {resize}, but the centre crop of dataset.image_size = {size} must fit into it; "
                f"use {size} or more, such as 256 for a crop of 224"
            )
        return self

    @classmethod
    def load(cls, path: Path | None = None) -> "Params":
        """Read and check `params.yaml` (of the project that the working directory is in, unless `path` is given).

        Raises:
            UserError: a sentence per mistake, each naming the key, the value and what is accepted.
        """
        path = path or paths.root() / "params.yaml"
        return cls.parse(read_yaml(path), path.name)

    @classmethod
    def parse(cls, values, source: str = "params.yaml") -> "Params":
        """Check values that were read from a file called `source`."""
        if not isinstance(values, dict):
            raise UserError(f"{source} must hold the sections {', '.join(cls.model_fields)}; see profiles/demo.yaml")
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise UserError("\n".join(f"{source}: {s}" for s in sentences(error.errors(), SOURCES))) from None


def read_yaml(path: Path):
    """Read a YAML 1.2 file (where 1e-3 is a number).

    Raises:
        UserError: the file is missing or is not YAML.
    """
    try:
        return parse_yaml(path.read_text(encoding="utf-8"), path.name)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; copy a preset there, for example profiles/demo.yaml") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path.name} is not UTF-8 text ({error}); save it as UTF-8") from None


def parse_yaml(text: str, name: str):
    """The values of a YAML 1.2 text that was read from a file of that name.

    Raises:
        UserError: it is not YAML.
    """
    try:
        return YAML(typ="safe", pure=True).load(text)
    except YAMLError as error:
        raise UserError(f"{name} is not valid YAML: {' '.join(str(error).split())}") from None
