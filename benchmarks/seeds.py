"""Measure how far the demo's figures move with the seed: run the committed pipeline once per seed, each in a clone.

    python benchmarks/seeds.py                # five seeds; that of params.yaml is taken from DVC's cache
    python benchmarks/seeds.py --seeds 3 4    # some of them; rows of the others stay in the table

The seed decides every random choice: the images for training and attack, initial weights, batches, and attacks. No
study and no report runs. The script writes reports/seeds.csv (a row per seed and figure) and reports/seeds.md (mean and
spread). The clones are in .multishield/seeds/, so a killed run continues there.
"""

import argparse
import contextlib
import shutil
import subprocess
from pathlib import Path

import pandas as pd
from ruamel.yaml import YAML

from multishield import records
from multishield.files import write_text
from multishield.records import METRICS, TITLES, to_markdown
from paper import paths
from paper.params import Params
from paper.pipeline.publish import code_of_stages
from paper.report import report
from paper.stages import comparison

# The figures of the table: scenario and metric, of the comparison defence and number.
HEADLINES = [
    ("no_shield", "clean_accuracy"),
    ("unaware", "clean_accuracy"),
    ("unaware", "clean_rejection"),
    *((scenario, "robust_accuracy") for scenario in ("no_shield", "unaware", "paper", "joint", "worst_case")),
    *(("comparison", figure) for figure in ("logit margin", "Multi-Shield", "Multi-Shield, margins")),
]


def clone(seed: int) -> Path:
    """Clone the committed project, with the raw images and that seed."""
    target = paths.state("seeds", str(seed))
    if not target.exists():
        subprocess.run(["git", "clone", "--quiet", str(paths.root()), str(target)], check=True)
        shutil.copytree(paths.root() / "data", target / "data")
        # The clone shares DVC's cache: it computes no stage that this project or another clone has computed.
        cache = ["dvc", "config", "--local", "cache.dir", str(paths.root() / ".dvc" / "cache")]
        subprocess.run(cache, cwd=target, check=True)
    yaml = YAML()
    values = yaml.load((target / "params.yaml").read_text(encoding="utf-8"))
    values["seed"] = seed
    with (target / "params.yaml").open("w", encoding="utf-8") as stream:
        yaml.dump(values, stream)
    return target


def measured(seed: int) -> pd.DataFrame:
    """The figures of one seed, and the fingerprint of the code; `dvc repro` skips the stages that have run."""
    folder = clone(seed)
    subprocess.run(["dvc", "repro", "comparison", "multishield"], cwd=folder, check=True)
    with contextlib.chdir(folder):
        params = Params.load()
        rows = records.load(*(paths.artifacts("comparison", name, "records.csv") for name in params.classifiers))
        compared = comparison.table(rows, params.comparison, params.multishield.tolerance)
        scenarios = report.load(params.classifiers, "baseline", "multishield", "adaptive")
        metrics, code = records.metrics(scenarios), code_of_stages()
    numbers = compared.rename(columns={"defence": "metric", "mean": "value"}).assign(scenario="comparison")
    return pd.concat([metrics, numbers], ignore_index=True).assign(seed=seed, code=code)


def spread(rows: pd.DataFrame) -> pd.DataFrame:
    """Mean, standard deviation and range of the figures over the seeds, in per cent."""
    table = []
    for classifier in rows.classifier.unique():
        for scenario, metric in HEADLINES:
            chosen = (rows.classifier == classifier) & (rows.scenario == scenario) & (rows.metric == metric)
            values = 100 * rows[chosen].value
            shown = {"mean": values.mean(), "sd": values.std(), "lowest": values.min(), "highest": values.max()}
            shown = {name: f"{value:.1f}" for name, value in shown.items()} | {"seeds": len(values)}
            names = TITLES.get(scenario, "mean robust accuracy"), METRICS.get(metric, (metric,))[0]
            table.append({"classifier": classifier, "scenario": names[0], "figure": names[1]} | shown)
    return pd.DataFrame(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    seeds, columns = parser.parse_args().seeds, ["seed", "code", "classifier", "scenario", "metric", "value", "n"]
    rows = pd.concat([measured(seed) for seed in seeds], ignore_index=True)
    if paths.reports("seeds.csv").exists():
        before = pd.read_csv(paths.reports("seeds.csv")).reindex(columns=columns)
        before = before[before.code == rows.code[0]]  # rows of other code cannot be compared
        rows = pd.concat([before[~before.seed.isin(seeds)], rows], ignore_index=True).sort_values("seed", kind="stable")
    text = rows[columns].to_csv(index=False, float_format="%.6f", lineterminator="\n")
    write_text(paths.reports("seeds.csv"), text)
    table = to_markdown(spread(rows))
    write_text(
        paths.reports("seeds.md"),
        "# The demo over several seeds\n\nPer cent; `python benchmarks/seeds.py`.\n\n" + table,
    )
    print(table)


if __name__ == "__main__":
    main()
