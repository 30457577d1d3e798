"""The naming law: stage = notebook = module in `paper.stages` = section of params.yaml = folder under artifacts/."""

from paper.params.sections import Studies

STAGES = ("dataset", "training", "alignment", "baseline", "multishield", "adaptive", "comparison", "studies", "report")
PER_CLASSIFIER = ("training", "baseline", "multishield", "adaptive", "comparison")
STUDIES = tuple(name for name in Studies.model_fields if name != "images")


def runs(classifiers: list[str]) -> list[tuple[str, str | None]]:
    """Every run of a notebook, in the order of the pipeline: the stage, and its classifier or its study."""
    training = [("training", name) for name in classifiers]
    attacks = [(stage, name) for name in classifiers for stage in PER_CLASSIFIER[1:]]
    studies = [("studies", study) for study in STUDIES]
    return [("dataset", None), *training, ("alignment", None), *attacks, *studies, ("report", None)]


def run_name(stage: str, item: str | None = None) -> str:
    """The name of a run, such as `04_baseline_standard`: that of its executed notebook and of its page."""
    return f"{STAGES.index(stage) + 1:02d}_{stage}" + (f"_{item}" if item else "")
