"""The stage of the alignment: the captions that a small CLIP is trained on."""

from types import SimpleNamespace

import torch

from multishield import Images
from multishield.files import write_json
from paper import paths
from paper.stages import alignment


def test_without_captions_the_prompts_take_turns(project_root, monkeypatch):
    images = Images(torch.rand(3, 3, 4, 4), torch.tensor([0, 1, 1]), torch.arange(3))
    section = SimpleNamespace(prompts=["a {}", "the {}"])
    stage = object.__new__(alignment.Stage)
    vars(stage).update(params=SimpleNamespace(alignment=section, seed=0), train=images, validation=None, resume=None)
    vars(stage).update(classes=["dog", "cat"])
    monkeypatch.setattr(alignment, "train_or_load", lambda params, data, captions, *rest: captions)
    for given, used in ((None, ["a dog", "the cat", "a cat"]), (["x", "y", "z"], ["x", "y", "z"])):
        write_json(paths.artifacts("dataset", "captions.json"), given)
        assert stage.train_or_load() == used
