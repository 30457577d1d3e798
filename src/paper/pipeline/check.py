"""The check before the first stage: params.yaml is valid, and the files that it names exist. It loads no model."""

from importlib import import_module
from pathlib import Path

from multishield.errors import UserError
from multishield.files import write_json
from paper import paths, workers
from paper.data import shapes
from paper.data.class_names import OF_FOLDERS, in_words
from paper.data.datasets import check_root, class_folders
from paper.models import model_zoo, pretrained
from paper.naming import runs
from paper.params import Params
from paper.params.values import AA_STANDARD, check_attacks
from paper.pipeline.notebooks import cleared, read_notebook, source_path
from paper.pipeline.stale import fingerprint_of


def make_data() -> None:
    """Render the demo's images into data/, which data.dvc pins, and download the images that params.yaml names."""
    params, root = Params.load(), _place()
    shapes.materialise(root / "data" / "shapes")
    if params.dataset.name != "shapes":
        import_module("paper.data.downloads").materialise(params.dataset)  # torchvision is slow to import


def _place() -> Path:
    """The project's root. Raises UserError where DVC cannot work: in no git repository, or below braces."""
    root = paths.root()
    if not any((folder / ".git").exists() for folder in (root, *root.parents)):
        raise UserError(f"{root} is in no git repository, and DVC needs one; run `git init` there")
    if {"{", "}"} & set(str(root)):
        raise UserError(f"{root} has braces in its name, below which DVC fails; move the project to another folder")
    return root


def check() -> None:
    """Refuse before the first stage what would fail after hours, by a UserError, and write artifacts/check/."""
    params = Params.load()
    _place()
    workers.setting()
    check_root(params.dataset)
    model_zoo.check(params)
    if params.dataset.name == "folder":
        attacks = AA_STANDARD if params.baseline.attacks == "standard" else params.baseline.attacks
        names = class_folders(paths.resolve(params.dataset.root) / "test")
        check_attacks(attacks, len(names))
        if params.alignment.source == "train":
            import_module("paper.stages.studies").check_prompts(params, in_words(names, OF_FOLDERS))
    if params.alignment.source != "train":
        import_module("paper.models.clip").check(params.alignment)  # open_clip is slow to import
    for name in params.classifiers:
        pretrained.check(params.training[name], f"training.{name}")
    for stage, item in runs(params.classifiers):
        name = f"{stage}_{item}" if item else stage
        fingerprint = fingerprint_of(stage, item, read_notebook(source_path(stage)), params)
        write_json(paths.artifacts("check", f"{name}.json"), fingerprint)
    texts = {f.name: cleared(f.read_text("utf-8")) for f in sorted(source_path("report").parent.glob("*.ipynb"))}
    write_json(paths.artifacts("check", "publish.json"), texts)  # the pages have these texts
