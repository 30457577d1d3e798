"""params.yaml: values, sections, the experiment, and one clear sentence for each mistake."""

from paper.params.experiment import DEFAULTS, Params, parse_yaml, read_yaml

__all__ = ["DEFAULTS", "Params", "parse_yaml", "read_yaml"]
