"""The real pipeline at small size in a copy of the project: what `dvc repro` runs, and what it does not."""

import json
import re
import shutil
from pathlib import Path

import nbformat
import pandas as pd
import pytest

from conftest import edit_params, run

BAD_COMMANDS = [
    ({"nonsense": 1}, "nonsense is not a known key"),
    ({"threat_model.eps": 8}, "strictly between 0 and 1"),
    ({"dataset.root": "nowhere"}, "run `multishield data`"),
    ({"dataset.root": "~/images"}, "write the whole path"),
    ({"alignment.tower": "resnet_50"}, "alignment.tower is 'resnet_50', which timm does not know; did you mean"),
]


@pytest.mark.parametrize(("changes", "words"), BAD_COMMANDS)
def test_dvc_repro_with_bad_params_says_one_sentence(project, changes, words):
    good = (project / "params.yaml").read_text()
    edit_params(project, changes)
    done = run(project, "dvc", "repro")
    (project / "params.yaml").write_text(good)
    assert done.returncode != 0
    assert words in done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    assert not list((project / "artifacts").rglob("*.safetensors"))


def test_the_command_line_on_bad_input(project, tmp_path):
    for arguments, words in (
        (("profile", "nothing"), "the profile is 'nothing'; accepted are caltech101, cifar10, cifar10-cpu"),
        (("results",), "run `make reproduce`"),
    ):
        done = run(project, "multishield", *arguments)
        assert done.returncode == 1
        assert words in done.stderr
        assert "Traceback" not in done.stderr
    done = run(tmp_path, "multishield", "check")
    assert done.returncode == 1
    assert "not inside a Multi-Shield project" in done.stderr


def test_a_project_without_git_is_told_what_to_do(project):
    (project / ".git").rename(project / "elsewhere")
    done = run(project, "multishield", "check")
    (project / "elsewhere").rename(project / ".git")
    assert done.returncode == 1
    assert "is in no git repository, and DVC needs one; run `git init` there" in done.stderr


def test_a_profile_needs_its_variables_and_keeps_edits(project):
    before = (project / "params.yaml").read_text()
    done = run(project, "multishield", "profile", "cifar10-cpu", MULTISHIELD_CIFAR10="", MULTISHIELD_WEIGHTS="")
    assert done.returncode == 1
    assert "MULTISHIELD_CIFAR10 is not set" in done.stderr
    assert (project / "params.yaml").read_text() == before
    done = run(
        project, "multishield", "profile", "cifar10-cpu", MULTISHIELD_CIFAR10="/some where", MULTISHIELD_WEIGHTS="/w"
    )
    assert done.returncode == 0, done.stderr
    assert "root: /some where" in (project / "params.yaml").read_text()
    assert (project / "params.backup.yaml").read_text() == before
    for name in ("pets", "food101"):  # made by profiles, with paths filled in: nothing of the user's
        assert run(project, "multishield", "profile", name).returncode == 0
    (project / "params.yaml").write_text("# of my own\n" + before)
    assert "kept as params.backup.2.yaml" in run(project, "multishield", "profile", "pets").stdout
    assert (project / "params.backup.yaml").read_text() == before
    assert (project / "params.backup.2.yaml").read_text() == "# of my own\n" + before
    assert not (project / "params.backup.3.yaml").exists()
    (project / "params.yaml").write_text(before)


def test_rendered_data_are_the_pinned_bytes(project):
    pinned = (project / "data.dvc").read_text()
    done = run(project, "dvc", "commit", "data.dvc")
    assert done.returncode == 0, done.stderr
    assert (project / "data.dvc").read_text() == pinned
    done = run(project, "dvc", "status", "data.dvc", "--json")
    assert json.loads(done.stdout) == {}


def test_a_flipped_byte_in_the_raw_data_is_an_error(project):
    file, pinned = project / "data" / "shapes" / "test_images.npy", (project / "data.dvc").read_text()
    good = file.read_bytes()
    file.write_bytes(good[:5000] + bytes([good[5000] ^ 1]) + good[5001:])
    before_dvc = run(project, "multishield", "data")  # as `make reproduce` does
    after_it = (project / "data.dvc").read_text()
    done = run(project, "dvc", "repro", "dataset")
    file.write_bytes(good)
    (project / "data.dvc").write_text(pinned)  # a plain `dvc repro` pins what lies there before any stage of ours runs
    assert before_dvc.returncode == 1
    assert after_it == pinned
    assert done.returncode != 0
    for said in (before_dvc.stderr, done.stderr):
        assert "other bytes than those that are rendered; remove that folder and run `multishield data`" in said


def stale(project) -> set[str]:
    """Stages that `dvc repro` would run, as DVC sees it, with all that follows from them."""
    done = run(project, "dvc", "repro", "--dry")
    assert done.returncode == 0, done.stderr
    return set(re.findall(r"Running stage '([\w@-]+)'", done.stdout)) - {"check", "publish"}


@pytest.mark.timeout(1200)
class TestTheWholePipeline:
    """In order: each test goes on with what those before it have made."""

    def test_runs(self, project):
        done = run(project, "dvc", "repro")
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr
        records = pd.read_csv(project / "reports" / "records.csv")
        assert len(records) == 6 * 20
        metrics = json.loads((project / "reports" / "metrics.json").read_text())
        assert (project / "reports" / "figures" / "gaps.png").is_file()
        for scenarios in metrics.values():
            assert scenarios["adaptive"]["robust_accuracy"] <= scenarios["joint"]["robust_accuracy"]
            assert scenarios["adaptive"]["robust_accuracy"] <= scenarios["paper"]["robust_accuracy"]
        assert (records.distance <= 8 / 255 + 1e-6).all()

    def test_reports_are_quiet_and_self_contained(self, project):
        notebooks = sorted((project / "reports").glob("*.ipynb"))
        assert len(notebooks) == 3 + 5 + 3
        for path in notebooks:
            outputs = [o for c in nbformat.read(path, as_version=4).cells for o in c.get("outputs", [])]
            assert not [o for o in outputs if o.output_type == "error" or o.get("name") == "stderr"], path.name
            assert str(project) not in path.read_text(), "no paths of this machine"
            assert not re.search(r" at 0x[0-9a-f]+>", path.read_text()), "no addresses in memory: other bytes each run"
        for path in (project / "reports").glob("*.html"):
            text = path.read_text()
            assert "<script" not in text
            assert not re.search(r'(src|href)="(https?:)?//', text), path.name
            for link in re.findall(r'href="([^"#]+)"', text):
                assert (project / "reports" / link).exists(), f"{path.name} links to {link}"

    def test_what_is_committed_of_a_run(self, project):
        listed = run(project, "git", "status", "--short", "--untracked-files=all")
        ours = {line[3:] for line in listed.stdout.splitlines() if "artifacts" in line or ".gitignore" in line}
        assert ours == {".dvc/.gitignore", ".gitignore"}, "one line of it for all artifacts"

    def test_nothing_changed_runs_nothing(self, project):
        assert stale(project) == set()
        done = run(project, "dvc", "repro")
        assert "Running stage" not in done.stdout

    def test_looking_at_a_notebook_runs_no_stage(self, project):
        path = project / "notebooks" / "04_baseline.ipynb"
        source = path.read_text()
        seen = nbformat.reads(source, as_version=4)
        seen.cells[2].outputs = [nbformat.v4.new_output("stream", text="seen")]
        path.write_text(nbformat.writes(seen))
        done = run(project, "dvc", "repro")
        path.write_text(source)
        assert re.findall(r"Running stage '([\w@-]+)'", done.stdout) == ["check", "publish"]
        run(project, "dvc", "repro")

    def test_changed_words_of_a_notebook_reach_its_page_without_a_run(self, project):
        path = project / "notebooks" / "06_adaptive.ipynb"
        source = path.read_text()
        assert "The attacks aim at the shield itself" in source
        path.write_text(source.replace("The attacks aim at the shield itself", "Other words."))
        done = run(project, "dvc", "repro")
        assert re.findall(r"Running stage '([\w@-]+)'", done.stdout) == ["check", "publish"]
        assert "Other words." in (project / "reports" / "06_adaptive_robust.html").read_text()
        path.write_text(source)
        run(project, "dvc", "repro")

    def test_going_back_to_a_value_computes_nothing_again(self, project):
        good, before = (project / "params.yaml").read_text(), (project / "dvc.lock").read_text()
        edit_params(project, {"multishield.tolerance": 0.01})
        ran = re.findall(r"Running stage '([\w-]+)", run(project, "dvc", "repro").stdout)
        assert {"multishield", "adaptive", "comparison", "studies", "report"} <= set(ran)
        assert (project / "dvc.lock").read_text() != before
        (project / "params.yaml").write_text(good)
        done = run(project, "dvc", "repro")
        assert set(re.findall(r"Running stage '([\w-]+)", done.stdout)) <= {"publish"}, "all others from the run cache"
        assert (project / "dvc.lock").read_text() == before

    @pytest.mark.parametrize(
        ("change", "expected"),
        [
            ({"report.examples": 2}, {"report"}),
            ({"multishield.tolerance": 0.01}, {"multishield", "adaptive", "comparison", "studies", "report"}),
            ({"adaptive.joint.steps": 6}, {"adaptive", "comparison", "studies"}),
            ({"comparison.attack.steps": 7}, {"comparison"}),
            ({"studies.tolerance": [0.02]}, {"studies@tolerance"}),
            ({"baseline.attacks": ["square"]}, {"baseline", "report"}),
            ({"training.robust.epochs": 2}, {"training@robust"}),
            ({"alignment.prompts": ["a {}"]}, {"alignment"}),
            ({"threat_model.eps": "4/255"}, {"baseline", "multishield", "adaptive", "comparison", "studies", "report"}),
        ],
    )
    def test_a_change_makes_stale_exactly_what_depends_on_it(self, project, change, expected):
        good = (project / "params.yaml").read_text()
        edit_params(project, change)
        done = run(project, "dvc", "status", "--json")
        (project / "params.yaml").write_text(good)
        status = json.loads(done.stdout)
        by_params = {s for s, reasons in status.items() if any("params.yaml" in str(r) for r in reasons)} - {
            "check",
            "publish",
        }
        assert {s if s in expected else s.split("@")[0] for s in by_params} == expected

    def test_only_stale_stages_run(self, project):
        good = (project / "params.yaml").read_text()
        edit_params(project, {"report.examples": 2})
        done = run(project, "dvc", "repro")
        assert done.returncode == 0, done.stderr
        assert re.findall(r"Running stage '([\w@-]+)'", done.stdout) == ["check", "report", "publish"]
        (project / "params.yaml").write_text(good)
        assert run(project, "dvc", "repro").returncode == 0

    def test_metrics_and_plots(self, project):
        shown = run(project, "dvc", "metrics", "show", "--json")
        found = json.loads(shown.stdout)[""]["data"]["reports/headline.json"]["data"].values()
        assert [len(of) for of in found] == [6], "few enough to be read"
        done = run(project, "dvc", "plots", "show", "--out", "plots")
        assert done.returncode == 0, done.stderr
        shutil.rmtree(project / "plots")

    def test_a_notebook_that_fails_is_named(self, project):
        path = project / "notebooks" / "09_report.ipynb"
        source = path.read_text()
        broken = nbformat.reads(source, as_version=4)
        broken.cells[3].source = "1 / 0"
        path.write_text(nbformat.writes(broken))
        report = (project / "reports" / "index.html").read_text()
        done = run(project, "dvc", "repro")
        path.write_text(source)
        assert done.returncode != 0
        assert re.search(r"error: 09_report\.ipynb, cell \[2\]: ZeroDivisionError: division by zero", done.stderr)
        copy = re.search(r"The executed copy is (\S+)", done.stderr)[1]
        assert Path(project / copy).exists()
        assert "Traceback" not in done.stderr
        assert report  # it was there before; the next run makes it anew
        assert run(project, "dvc", "repro").returncode == 0


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_same_bytes_twice(project):
    assert run(project, "dvc", "repro").returncode == 0
    before = (project / "dvc.lock").read_text()
    done = run(project, "dvc", "repro", "--force")
    assert done.returncode == 0, done.stderr
    assert (project / "dvc.lock").read_text() == before
