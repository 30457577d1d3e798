"""The one check: params.yaml is valid, what it names exists; and what each stage depends on is written down.

Nothing is built, loaded or downloaded.
"""

from multishield.errors import UserError
from multishield.files import write_json
from paper import paths
from paper.data.datasets import check_root
from paper.data.folders import class_folders
from paper.models import model_zoo, pretrained
from paper.naming import runs
from paper.params import Params
from paper.params.values import AA_STANDARD, check_attacks
from paper.pipeline.notebooks import read_source
from paper.pipeline.stale import fingerprint_of


def check() -> Params:
    """Refuse before the first stage what would fail after hours, and write artifacts/check/.

    Raises:
        UserError: a sentence per mistake.
    """
    params, root = Params.load(), paths.root()
    if not any((folder / ".git").exists() for folder in (root, *root.parents)):
        raise UserError(f"{root} is in no git repository, and DVC needs one; run `git init` there")
    check_root(params.dataset)
    model_zoo.check(params)
    if params.dataset.name == "folder":
        attacks = AA_STANDARD if params.baseline.attacks == "standard" else params.baseline.attacks
        check_attacks(attacks, len(class_folders(paths.resolve(params.dataset.root), "test")))
    if params.alignment.source == "train":
        pretrained.check_timm(params.alignment.tower, "alignment.tower")
    else:
        from paper.models import clip  # open_clip is slow to import

        clip.check(params.alignment)
    for name in params.classifiers:
        pretrained.check(params.training[name], f"training.{name}")
    for stage, item in runs(params.classifiers):
        name = f"{stage}_{item}" if item else stage
        write_json(paths.artifacts("check", f"{name}.json"), fingerprint_of(stage, item, read_source(stage), params))
    return params
