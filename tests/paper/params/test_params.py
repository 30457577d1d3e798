"""params.yaml: one clear sentence for every kind of mistake."""

import pytest

from multishield.errors import UserError
from paper.params import DEFAULTS, Params, read_yaml
from paper.params.values import check_attacks, parse_eps


@pytest.mark.parametrize(("given", "value"), [("8/255", 8 / 255), ("8 / 255", 8 / 255), (0.5, 0.5), ("0.03", 0.03)])
def test_eps(given, value):
    assert parse_eps(given) == pytest.approx(value)


def changed(key: str, value) -> dict:
    """The defaults with one dotted key set."""
    values = read_yaml(DEFAULTS)
    *parents, last = key.split(".")
    section = values
    for parent in parents:
        section = section[parent]
    section[last] = value
    return values


MISTAKES = [
    ("threat_model.eps", "8", "strictly between 0 and 1"),
    ("threat_model.eps", "8/0", "fraction"),
    ("threat_model.eps", True, "fraction"),
    ("threat_model.eps", "1e-99999999", "strictly between 0 and 1"),
    ("nonsense", 1, "not a known key"),
    ("multishield.tolerance", "much", "a valid number"),
    ("multishield.tolerance", float("nan"), "finite"),
    ("dataset.name", "cifar11", "it should be shapes, folder, cifar10"),
    ("dataset.name", "mine:", "module:function"),
    ("dataset.resize", 12, "dataset.image_size = 16 must fit into it; use 16 or more"),
    ("dataset.interpolation", "nearest", "it should be 'bilinear' or 'bicubic'"),
    ("dataset.evaluate", 0, "greater than or equal to 1"),
    ("dataset.evaluate", 2.5, "whole number"),
    ("classifiers", ["resnet"], "not described under training"),
    ("classifiers", [], "at least 1 item"),
    ("classifiers", ["standard", "standard"], "twice"),
    ("classifiers", "standard", "a list, such as [a, b]"),
    ("training.standard.method", "magic", "'standard', 'fgsm', 'pgd', 'trades' or 'noise'"),
    ("studies.sigma", [2], "strictly between 0 and 1"),
    ("training.standard.epohcs", 3, "not a known key"),
    ("training.standard.augment", "yes", "a valid boolean"),
    ("training.standard.std", [0.2, 0.0, 0.2], "greater than 0"),
    ("training.standard.std", [0.2], "at least 3"),
    ("training.standard.mean", [125, 0.5, 0.5], "less than or equal to 1"),
    ("training.standard.learning_rate", 1e30, "less than or equal to 1000"),
    ("training.standard.source", "internet", "source is 'internet'; accepted are 'train', 'checkpoint'"),
    ("training.robust", None, "a section of keys"),
    ("training.robust", {"epochs": 1}, "training.robust.source is missing; add it"),
    ("training.a b", {"source": "factory", "factory": "mine:net"}, "must be made of letters, digits, _ and -"),
    ("alignment.source", None, "accepted are 'train', 'open_clip'"),
    ("alignment.prompts", ["a {label}"], "must hold {} exactly once"),
    ("alignment.prompts", ["{} and {}"], "must hold {} exactly once"),
    ("alignment.prompts", [5], "in quotes"),
    ("baseline.attacks", ["apgd-ce", "foo"], "params.yaml: baseline.attacks.1 is 'foo', but it should be 'apgd-ce'"),
    ("baseline.attacks", "strongest", "it should be 'standard' or a list"),
    ("adaptive.joint.targets", 0, "greater than or equal to 1"),
    ("adaptive.joint.targets", True, "whole number"),
    ("adaptive.joint.tagrets", 3, "not a known key"),
    ("adaptive.components", 3, "a section of keys"),
    ("comparison.attack.steps", 0, "greater than or equal to 1"),
    ("seed", "zero", "whole number"),
]


@pytest.mark.parametrize(("key", "value", "words"), MISTAKES)
def test_a_mistake_is_one_sentence_with_what_is_accepted(key, value, words):
    with pytest.raises(UserError) as caught:
        Params.parse(changed(key, value))
    message = str(caught.value)
    assert message.startswith("params.yaml: ")
    assert key.split(".")[-1] in message
    assert words in message
    assert len(message.splitlines()) == 1
    assert "pydantic" not in message


def test_a_missing_key_and_a_missing_section():
    values = read_yaml(DEFAULTS)
    del values["threat_model"]["norm"], values["dataset"]
    with pytest.raises(UserError, match=r"(?s)threat_model\.norm is missing; add it.*: dataset is missing; add it"):
        Params.parse(values)


FORMS = [b"", b"null\n", b"- a\n", b"just words", b"a: [1\n", b"seed: caf\xe9\n", b"<<<<<<< HEAD\nseed: 1\n"]
FORMS += [b"seed: " + 5000 * b"9", b"seed: 0x" + 5000 * b"f", 3000 * b"[", 3000 * b"{a: ", b"seed: 2026-13-45"]


@pytest.mark.parametrize("content", FORMS)
def test_a_file_of_another_form_is_one_sentence(tmp_path, content):
    (tmp_path / "params.yaml").write_bytes(content)
    with pytest.raises(UserError, match=r"^params.yaml (must hold|is not|holds the marks)[^\n]*$"):
        Params.load(tmp_path / "params.yaml")


@pytest.mark.parametrize(("classes", "attack"), [(2, "apgd-dlr"), (2, "apgd-t"), (3, "apgd-t")])
def test_attacks_that_need_more_classes_are_refused(classes, attack):
    with pytest.raises(UserError, match=f"holds {attack}, whose loss needs"):
        check_attacks((attack,), classes)
    check_attacks(("apgd-ce", "fab", "square"), classes)
    check_attacks((attack,), 4)
