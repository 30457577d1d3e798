"""params.yaml: valid presets, and a clear sentence for every kind of mistake."""

import subprocess

import pytest

from conftest import ROOT, edit_params
from multishield.errors import UserError
from paper.params import Params, parse_eps, read_yaml
from paper.params.values import check_attacks

DEMO = ROOT / "profiles" / "demo.yaml"


def test_the_committed_params_are_the_demo_profile():
    shown = subprocess.run(["git", "show", ":params.yaml"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert shown.stdout == DEMO.read_text()


@pytest.mark.parametrize("profile", sorted((ROOT / "profiles").glob("*.yaml")), ids=lambda p: p.stem)
def test_profiles_are_valid(profile):
    Params.parse(read_yaml(profile), profile.name)


@pytest.mark.parametrize(("given", "value"), [("8/255", 8 / 255), ("8 / 255", 8 / 255), (0.5, 0.5), ("0.03", 0.03)])
def test_eps(given, value):
    assert parse_eps(given) == pytest.approx(value)


MISTAKES = {
    "threat_model.eps": [
        ("8", "strictly between 0 and 1"),
        (0, "strictly between 0 and 1"),
        ("8/0", "fraction"),
        (True, "fraction"),
        ("1e-99999999", "strictly between 0 and 1"),
    ],
    "threat_model.nrom": [("Linf", "not a known key")],
    "nonsense": [(1, "not a known key")],
    "multishield.tolerance": [("much", "a number"), (-0.1, "greater than or equal to 0"), (float("nan"), "finite")],
    "dataset.name": [("cifar11", "shapes, folder, cifar10"), ("mine:", "module:function")],
    "dataset.resize": [
        (31, "dataset.image_size = 32 must fit into it; use 32 or more"),
        (4, "greater than or equal to 8"),
        ("x", "whole number"),
    ],
    "dataset.interpolation": [("nearest", "'bilinear' or 'bicubic'")],
    "dataset.evaluate": [(0, "greater than or equal to 1"), ("all", "whole number"), (2.5, "whole number")],
    "classifiers": [
        (["resnet"], "not described under training"),
        ([], "at least 1 entries"),
        (["standard", "standard"], "twice"),
        ("standard", "a list, such as [a, b]"),
        (None, "a list, such as [a, b]"),
    ],
    "training.standard.architecture": [("vgg", "'resnet8'")],
    "training.standard.method": [("magic", "'standard', 'fgsm', 'pgd' or 'trades'")],
    "training.standard.epohcs": [(3, "not a known key")],
    "training.standard.std": [
        ([0.2, 0.0, 0.2], "greater than 0"),
        ([0.2], "at least 3"),
        ([60.0, 60.0, 60.0], "less than or equal to 1"),
    ],
    "training.standard.mean": [([125, 125, 125], "less than or equal to 1"), ([float("nan"), 0.5, 0.5], "finite")],
    "training.standard.weight_decay": [(float("inf"), "finite")],
    "training.standard.learning_rate": [(1e30, "less than or equal to 1000"), (float("nan"), "finite")],
    "training.standard.source": [("internet", "source is 'internet'; accepted are 'train', 'checkpoint'")],
    "alignment.source": [(None, "accepted are 'train', 'open_clip'")],
    "training.robust": [(None, "a section of keys")],
    "arithmetic": [("fast", "'portable' or 'native'")],
    "alignment.prompts": [
        (["a photo"], "placeholder {}"),
        (["a {label}"], "placeholder {}"),
        (["{} and {}"], "placeholder {}"),
        ([], "at least 1"),
    ],
    "baseline.attacks": [(["pgd"], "'apgd-ce'"), ("strongest", "'standard' or a list")],
    "adaptive.joint.targets": [(0, "greater than or equal to 1")],
    "seed": [(-1, "greater than or equal to 0"), ("zero", "whole number")],
}
CASES = [(key, value, words) for key, cases in MISTAKES.items() for value, words in cases]


@pytest.mark.parametrize(("key", "value", "words"), CASES)
def test_a_mistake_is_named_with_what_is_accepted(tmp_path, key, value, words):
    (tmp_path / "params.yaml").write_text(DEMO.read_text())
    edit_params(tmp_path, {key: value})
    with pytest.raises(UserError) as caught:
        Params.load(tmp_path / "params.yaml")
    message = str(caught.value)
    assert message.startswith("params.yaml: ")
    assert key.split(".")[-1] in message
    assert words in message
    assert "Traceback" not in message
    assert "pydantic" not in message


def test_a_mistake_in_a_list_is_one_sentence_about_it():
    values = read_yaml(DEMO)
    values["baseline"]["attacks"] = ["apgd-ce", "foo"]
    with pytest.raises(UserError, match=r"^params.yaml: baseline.attacks.1 is 'foo', but it should be [^\n]*$"):
        Params.parse(values)


def test_a_missing_key_and_a_missing_section(tmp_path):
    path = tmp_path / "params.yaml"
    path.write_text(DEMO.read_text().replace("  norm: Linf", "  #"))
    with pytest.raises(UserError, match=r"threat_model\.norm is missing"):
        Params.load(path)
    path.write_text("seed: 1\n")
    with pytest.raises(UserError, match="dataset is missing"):
        Params.load(path)


@pytest.mark.parametrize("text", ["a: [1", "just words", "", "- 1\n- 2\n"])
def test_what_is_no_yaml_or_no_mapping(tmp_path, text):
    path = tmp_path / "params.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=r"YAML|must hold the sections"):
        Params.load(path)


def test_a_trained_alignment_needs_captions(tmp_path):
    (tmp_path / "params.yaml").write_text(DEMO.read_text())
    edit_params(tmp_path, {"dataset.name": "folder"})
    with pytest.raises(UserError, match="captions"):
        Params.load(tmp_path / "params.yaml")


def test_one_mistake_is_one_sentence(tmp_path):
    (tmp_path / "params.yaml").write_text(DEMO.read_text())
    edit_params(tmp_path, {"baseline.attacks": "strongest"})
    with pytest.raises(UserError) as caught:
        Params.load(tmp_path / "params.yaml")
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("content", [b"", b"null\n", b"- a\n", b"a: [1\n", b"seed: caf\xe9\n"])
def test_a_file_of_another_form_is_one_sentence(tmp_path, content):
    (tmp_path / "params.yaml").write_bytes(content)
    with pytest.raises(UserError, match=r"params.yaml (must hold the sections|is not)"):
        Params.load(tmp_path / "params.yaml")


@pytest.mark.parametrize(("classes", "attack"), [(2, "apgd-dlr"), (2, "apgd-t"), (3, "apgd-t")])
def test_attacks_that_need_more_classes_are_refused(classes, attack):
    with pytest.raises(UserError, match=f"holds {attack}, whose loss needs"):
        check_attacks((attack,), classes)
    check_attacks(("apgd-ce", "fab", "square"), classes)
    check_attacks((attack,), 4)
