"""The real pipeline at small size in a copy of the project: what `dvc repro` runs, and what it does not."""

import contextlib
import json
import re
import shutil
import sys

import nbformat
import pandas as pd
import pytest

from conftest import ROOT, SMALL, copy_project, edit_params, run, run_notebooks
from multishield import Budget
from multishield.files import save_tensors
from multishield.portfolio import Attacker
from paper.stages.adaptive import Stage


def run_stages(project, *targets: str) -> list[str]:
    """Run `dvc repro`; returns the stages that ran."""
    done = run(project, "dvc", "repro", *targets)
    assert done.returncode == 0, done.stderr
    return re.findall(r"Running stage '([\w@-]+)'", done.stdout)


def status(project, reason: str) -> set[str]:
    """The stages that `dvc status` names for a change of a file with that text in its name."""
    named = json.loads(run(project, "dvc", "status", "--json").stdout)
    return {stage for stage, changes in named.items() if reason in str(changes)} - {"check", "publish"}


@pytest.mark.timeout(1200)
class TestTheWholePipeline:
    """In order: each test goes on with what those before it have made."""

    def test_runs(self, project):
        run_stages(project)
        records = pd.read_csv(project / "reports" / "records.csv")
        assert len(records) == 6 * 20
        metrics = json.loads((project / "reports" / "metrics.json").read_text())
        assert (project / "reports" / "figures" / "score.png").is_file()
        for scenarios in metrics.values():
            robust = {scenario: metrics["robust_accuracy"] for scenario, metrics in scenarios.items()}
            assert robust["worst_case"] <= min(robust["joint"], robust["paper"])
        assert (records.distance <= 8 / 255 + 1e-6).all()
        assert run_stages(project) == ["check"], "nothing has changed"

    def test_reports_are_quiet_and_self_contained(self, project):
        notebooks = sorted((project / "reports").glob("*.ipynb"))
        assert len(notebooks) == 3 + 5 + 4
        for path in notebooks:
            outputs = [o for c in nbformat.read(path, as_version=4).cells for o in c.get("outputs", [])]
            assert not [o for o in outputs if o.output_type == "error" or o.get("name") == "stderr"], path.name
            assert str(project) not in path.read_text(), "no paths of this machine"
            assert not re.search(r" at 0x[0-9a-f]+>", path.read_text()), "no addresses in memory: other bytes each run"
        for path in (project / "reports").glob("*.html"):
            text = path.read_text()
            assert not re.search(r'<script|(src|href)="(https?:)?//', text), path.name
            for link in re.findall(r'href="([^"#]+)"', text):
                home = ROOT if link.startswith("../") else project  # the repository has results/
                assert (home / "reports" / link).exists(), f"{path.name} links to {link}"

    def test_what_is_committed_of_a_run(self, project):
        listed = run(project, "git", "status", "--short", "--untracked-files=all")
        ours = {line[3:] for line in listed.stdout.splitlines() if "artifacts" in line or ".gitignore" in line}
        assert ours == {".dvc/.gitignore", ".gitignore"}, "one line of it for all artifacts"

    def test_looking_at_notebooks_and_other_words_run_no_stage(self, project):
        seen, reworded = (project / "notebooks" / name for name in ("04_baseline.ipynb", "06_adaptive.ipynb"))
        sources = seen.read_text(), reworded.read_text()
        notebook = nbformat.reads(sources[0], as_version=4)
        notebook.cells[2].outputs = [nbformat.v4.new_output("stream", text="seen")]
        seen.write_text(nbformat.writes(notebook))
        assert run_stages(project) == ["check"], "a notebook that was run by hand"
        assert "The attacks aim at the shield itself" in sources[1]
        reworded.write_text(sources[1].replace("The attacks aim at the shield itself", "Other words."))
        assert run_stages(project) == ["check", "publish"]
        assert "Other words." in (project / "reports" / "06_adaptive_robust.html").read_text()
        seen.write_text(sources[0])
        reworded.write_text(sources[1])

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
        named = status(project, "params.yaml")
        (project / "params.yaml").write_text(good)
        assert {s if s in expected else s.split("@")[0] for s in named} == expected
        assert change.keys() != {"multishield.tolerance"} or "studies@tolerance" not in named

    @pytest.mark.parametrize(
        ("old", "new", "stale"),
        [
            ("    images: Tensor\n    broken_by", "    images: torch.HalfTensor\n    broken_by", True),
            ('    """Several chunks, one after the other."""', '    """Words."""  # more words', False),
        ],
    )
    def test_dvc_sees_changed_code_and_no_other_words(self, project, old, new, stale):
        file = project / "src" / "multishield" / "images.py"
        good = file.read_text()
        assert old in good
        file.write_text(good.replace(old, new))
        run_stages(project, "check")
        named = {stage.split("@")[0] for stage in status(project, "artifacts/check")}
        file.write_text(good)
        assert run_stages(project, "check") == ["check"]
        assert ({"baseline", "adaptive", "comparison", "studies"} <= named) == stale
        assert bool(named) == stale

    def test_only_stale_stages_run_and_going_back_runs_none(self, project):
        good = (project / "params.yaml").read_text()
        run_stages(project)
        before = (project / "dvc.lock").read_text()
        edit_params(project, {"report.examples": 2})
        assert run_stages(project) == ["check", "report", "publish"]
        (project / "params.yaml").write_text(good)
        assert set(run_stages(project)) <= {"check", "publish"}, "the others come from the run cache"
        assert (project / "dvc.lock").read_text() == before

    def test_metrics_and_plots(self, project):
        shown = run(project, "dvc", "metrics", "show", "--json")
        headlines = json.loads(shown.stdout)[""]["data"]["reports/headline.json"]["data"].values()
        assert [len(of_classifier) for of_classifier in headlines] == [9], "six of the scenarios, a range per study"
        done = run(project, "dvc", "plots", "show", "--out", "plots")
        assert done.returncode == 0, done.stderr
        page = (project / "plots" / "index.html").read_text()
        assert page.count("vegaEmbed('#") == 3, "curves that can be pointed at"
        assert "window.vegaEmbed=" in (project / ".multishield" / "vega.js").read_text(), "and no network is needed"
        shutil.rmtree(project / "plots")

    def test_attacked_images_from_elsewhere_lower_the_reports_number(self, project, tmp_path):
        with contextlib.chdir(project):
            s = Stage("adaptive", "robust")
            strong = Attacker("strong", Budget(), s.ball, 1, verbose=False)
            attacked = strong.joint(s.shield, s.data, list(strong.components(s.shield, s.data).values())).images
        for images, code in ((attacked + 1, 1), (attacked, 0)):
            metrics = json.loads((project / "reports" / "metrics.json").read_text())["robust"]
            save_tensors(tmp_path / "robust" / "them.safetensors", {"images": images})
            assert not (project / "candidates").exists(), "nothing is kept of images that are refused"
            assert run(project, sys.executable, "-m", "paper", "verify", str(tmp_path)).returncode == code
        lowered = json.loads((project / "reports" / "metrics.json").read_text())["robust"]
        count = round(20 * (metrics["worst_case"]["robust_accuracy"] - lowered["worst_case"]["robust_accuracy"]))
        assert count > 0
        assert f"Images from them break {count} that our attacks left." in (project / "reports/index.html").read_text()


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_another_folder_gives_the_same_bytes(project, tmp_path, rendered):
    run_stages(project)
    again = copy_project(tmp_path / "again")
    shutil.copytree(rendered, again / "data" / "shapes")
    edit_params(again, SMALL)
    run_notebooks(again)
    for folder in ("dataset", "training", "alignment", "baseline", "multishield", "adaptive", "comparison", "studies"):
        files = [p.relative_to(project) for p in (project / "artifacts" / folder).rglob("*") if p.is_file()]
        assert files, folder
        for file in files:
            assert (again / file).read_bytes() == (project / file).read_bytes(), file
    assert (again / "artifacts/report/records.csv").read_bytes() == (project / "reports/records.csv").read_bytes()


@pytest.mark.long
@pytest.mark.timeout(600)
def test_a_queued_experiment_runs_the_code_of_its_commit(tmp_path, rendered):
    """It was queued before the workspace was edited. In a folder of its own it needs the whole path of the images."""
    project = copy_project(tmp_path)
    edit_params(project, SMALL | {"dataset.root": str(rendered)})
    code = (file := project / "src" / "paper" / "stages" / "dataset.py").read_text()
    file.write_text(f"{code}\nprint('as committed')\n")
    commit = "git -c user.name=a -c user.email=a@b commit --quiet -m all"
    queue = "dvc exp run --queue -n queued -S dataset.evaluate=10 dataset"
    for command in ("git add --all", commit, queue, "dvc exp run --run-all"):
        if "--run-all" in command:
            file.write_text(f"{code}\nprint('as edited')\n")
        done = run(project, *command.split())
        assert done.returncode == 0, done.stderr
    refs = run(project, "git", "for-each-ref", "--format=%(refname)", "refs/exps").stdout.split()
    lock = run(project, "git", "show", f"{next(ref for ref in refs if ref.endswith('/queued'))}:dvc.lock").stdout
    (hash,) = re.findall(r"01_dataset.ipynb\n\s+hash: md5\n\s+md5: (\w+)", lock)
    ran = (project / ".dvc" / "cache" / "files" / "md5" / hash[:2] / hash[2:]).read_text()
    assert ("as committed" in ran, "as edited" in ran) == (True, False)
