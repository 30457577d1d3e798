"""`params.yaml`, read once, typed and checked: one clear sentence for each mistake."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError, model_validator
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from multishield.budget import Budget
from multishield.errors import UserError
from paper import paths
from paper.params import sections
from paper.params.messages import sentences

# Every key with its comment: the demo, and the base of every profile.
DEFAULTS = Path(__file__).with_name("defaults.yaml")


class Params(sections.Section, strict=False):  # a dictionary is accepted for the dataclass `Budget`
    """Everything that an experiment depends on: one attribute per section of params.yaml."""

    seed: Annotated[int, Field(ge=0, lt=2**31, strict=True)]
    arithmetic: Literal["portable", "native"]
    classifiers: Annotated[list[sections.Name], Field(min_length=1)]
    threat_model: sections.ThreatModel
    dataset: sections.Dataset
    training: dict[sections.Name, Annotated[sections.Classifiers, Field(discriminator="source")]]
    alignment: Annotated[sections.Clips, Field(discriminator="source")]
    baseline: sections.Baseline
    multishield: sections.Shield
    adaptive: Budget
    comparison: sections.Comparison
    studies: sections.Studies
    report: sections.Report

    @model_validator(mode="after")
    def _sections_agree(self):
        names, known, size, resize = self.classifiers, self.training, self.dataset.image_size, self.dataset.resize
        if unknown := [name for name in names if name not in known]:
            raise ValueError(f"classifiers: {unknown[0]!r} is not described under training; known: {', '.join(known)}")
        if len(set(names)) != len(names):
            raise ValueError(f"classifiers: {names} names one twice; name each once")
        if resize is not None and resize < size:
            given = f"dataset.resize is {resize}, but the centre crop of dataset.image_size = {size} must fit into it"
            raise ValueError(f"{given}; use {size} or more, such as 256 for a crop of 224")
        return self

    @classmethod
    def load(cls, path: Path | None = None) -> "Params":
        """Read and check the project's `params.yaml`, or the file at `path`. Raises UserError, a line per mistake."""
        path = path or paths.root() / "params.yaml"
        return cls.parse(read_yaml(path), path.name)

    @classmethod
    def parse(cls, values, source: str = "params.yaml") -> "Params":
        """Check values that were read from a file called `source`; raises as `load` does."""
        if not isinstance(values, dict):
            raise UserError(f"{source} must hold the sections {', '.join(cls.model_fields)}, as {DEFAULTS} does")
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise UserError("\n".join(f"{source}: {s}" for s in sentences(error.errors()))) from None


def read_yaml(path: Path, reader: YAML | None = None):
    """The values of a YAML 1.2 file, in which 1e-3 is a number; `reader` may keep its comments; else a UserError."""
    try:
        values = (reader or YAML(typ="safe", pure=True)).load(paths.text_of(path, "save it as UTF-8"))
        repr(values)  # Python shows no number of more than 4,300 digits
        return values
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; copy {DEFAULTS} there") from None
    except (YAMLError, ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise UserError(f"{path.name} is not valid YAML: {' '.join(str(error).split())}") from None
