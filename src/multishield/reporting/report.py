"""The report stage: from records to tables, figures, metrics and the index page."""

import base64
import html

import nbformat
import pandas as pd
import torch

from multishield.data.splits import Split, load_classes, load_split
from multishield.evaluation import records, sanity
from multishield.evaluation.scenarios import load_shield
from multishield.evaluation.verdicts import Attacked, decide
from multishield.params import Params
from multishield.reporting import figures, pages, tables
from multishield.shield import MultiShield
from multishield.storage import paths
from multishield.storage.files import load_tensors, write_json, write_text

_DEMONSTRATION = (
    '<p class="note">This run uses rendered shapes. It demonstrates the method; it is not evidence about real '
    "images.</p>"
)


def gather(params: Params) -> pd.DataFrame:
    """The records of all scenarios of all classifiers."""
    stages = ("baseline", "multishield", "adaptive")
    return records.load(*(paths.artifacts(s, name, "records.csv") for name in params.classifiers for s in stages))


def histories(params: Params) -> dict[str, pd.DataFrame]:
    """Training histories: the classifiers', and CLIP's under the name "CLIP". Loaded models have no curve."""
    found = {name: paths.artifacts("training", name, "history.csv") for name in params.classifiers}
    found["CLIP"] = paths.artifacts("alignment", "history.csv")
    frames = {name: pd.read_csv(path) for name, path in found.items()}
    return {name: frame for name, frame in frames.items() if frame.epoch.min() > 0}


def write_results(all_records: pd.DataFrame, classes: int) -> pd.DataFrame:
    """Write records, metrics and the tables to reports/; returns the metrics."""
    metrics = records.metrics(all_records, classes)
    records.save(all_records, paths.reports("records.csv"))
    write_json(paths.reports("metrics.json"), tables.nested(metrics))
    write_text(paths.reports("tables", "metrics.csv"), metrics.to_csv(index=False, float_format="%.6f"))
    table = tables.results(metrics)
    write_text(paths.reports("tables", "results.md"), tables.to_markdown(table))
    write_text(paths.reports("tables", "results.tex"), tables.to_latex(table))
    return metrics


def write_findings(params: Params, all_records: pd.DataFrame, classes: int) -> pd.DataFrame:
    """Evaluate the sanity rules and write them, with the records they rest on, to reports/."""
    runs = records.load(*(paths.artifacts("adaptive", name, "sanity.csv") for name in params.classifiers))
    records.save(runs, paths.reports("sanity.csv"))
    findings = sanity.check(all_records, runs, classes)
    write_text(paths.reports("tables", "sanity.md"), tables.to_markdown(findings))
    return findings


def probabilities(shield: MultiShield, pixels: torch.Tensor, scale: float) -> pd.DataFrame:
    """Both models' class probabilities for one image (3,H,W): softmax of z, and of s c with CLIP's own scale s."""
    with torch.no_grad():
        z, c = shield.scores(pixels[None].to(next(shield.parameters()).device))
    columns = {"classifier": z, "CLIP": scale * c}
    return pd.DataFrame({name: t[0].softmax(0).cpu().numpy() for name, t in columns.items()})


def pick_examples(rows: pd.DataFrame, count: int, classes: int) -> list[int]:
    """Positions of images that tell the story: accepted when clean, rejected when attacked unaware, broken when the
    attacker knows. Where there are fewer, others follow in order. One per class first, so that they differ."""
    of = {s: rows[rows.scenario == s].reset_index(drop=True) for s in ("multishield", "adaptive")}
    unaware, adaptive = of["multishield"], of["adaptive"]
    story = (unaware.clean_decision == unaware.label).astype(int) + (unaware.attacked_decision == classes)
    story += (adaptive.attacked_decision != adaptive.label) & (adaptive.attacked_decision != classes)
    repeat = unaware.assign(story=story).groupby(["label", "story"]).cumcount()
    ranked = pd.DataFrame({"story": -story, "repeat": repeat}).sort_values(["story", "repeat"], kind="stable")
    return ranked.index[:count].tolist()


def example_figures(params: Params, name: str, all_records: pd.DataFrame) -> list:
    """Per example a figure: clean, attacked unaware, attacked adaptively, with decisions and both models' scores."""
    classes, data, shield = load_classes(), load_split("evaluation"), load_shield(name, params.multishield.tolerance)
    scale = float(load_tensors(paths.artifacts("alignment", "text.safetensors"))["scale"])
    attacked = {
        "AutoAttack": Attacked.load(paths.artifacts("baseline", name, "attacked.safetensors")).images,
        "adaptive": Attacked.load(paths.artifacts("adaptive", name, "adaptive.safetensors")).images,
    }
    picked = pick_examples(all_records[all_records.classifier == name], params.report.examples, len(classes))
    return [_example(shield, data, attacked, classes, scale, i) for i in picked]


def _example(
    shield: MultiShield, data: Split, attacked: dict[str, torch.Tensor], classes: list[str], scale: float, i: int
):
    decisions = [*classes, "rejected"]
    images, scores = {}, {}
    for title, pixels in {"clean": data.pixels[i], **{t: images_[i] for t, images_ in attacked.items()}}.items():
        verdict = decisions[int(decide(shield, pixels[None])["decision"])]
        full = f"{title}\n{verdict if verdict == 'rejected' else f'accepted: {verdict}'}"
        images[full] = figures.channels_last(pixels[None])[0]
        scores[full] = probabilities(shield, pixels, scale)
    return figures.examples(images, scores, classes, int(data.labels[i]))


def _published_section(comparison: pd.DataFrame) -> str:
    """Published figures beside measured ones, as HTML; nothing where there are none."""
    if comparison.empty:
        return ""
    return f"""<h2>Published beside measured</h2>
<p>Figures of the catalogue in per cent; measured ones with 95 % Wilson intervals. A published value outside the
interval differs; where the setting is another one, the notes say so and nothing is compared
(<a href="tables/published.csv">published.csv</a>).</p>
{tables.to_html(comparison, words=True)}"""


def _sanity_section(findings: pd.DataFrame) -> str:
    """The sanity rules' findings and what the rules mean, as HTML."""
    violated = int((~findings.holds).sum())
    verdict = (
        f"{violated} of {len(findings)} rules are violated: do not trust the robust accuracies of that classifier."
        if violated
        else f"All {len(findings)} rules hold."
    )
    meaning = "".join(f"<li><b>{html.escape(r)}</b>: {html.escape(text)}</li>" for r, text in sanity.RULES.items())
    shown = findings.assign(holds=findings.holds.map({True: "holds", False: "VIOLATED"}))
    return f"""<h2>Sanity rules</h2>
<p>What must hold if the attacks are as strong as they claim to be. <b>{verdict}</b></p>
{tables.to_html(shown, words=True)}
<ul>{meaning}</ul>"""


def _pictures(captions: dict[str, str]) -> str:
    """The figures, inside the page, each with its caption."""
    pictures = []
    for file, caption in captions.items():
        data = base64.b64encode(paths.reports("figures", file).read_bytes()).decode()
        pictures.append(
            f'<figure><img alt="{html.escape(caption)}" src="data:image/png;base64,{data}">'
            f"<figcaption>{html.escape(caption)}</figcaption></figure>"
        )
    return "".join(pictures)


def _links(classifiers: list[str]) -> str:
    """List items that lead to the executed notebooks, in the order of the pipeline."""
    notebooks = [("01_dataset", None), *[("02_training", n) for n in classifiers], ("03_alignment", None)]
    notebooks += [(s, n) for n in classifiers for s in ("04_baseline", "05_multishield", "06_adaptive")]
    links = []
    for stage, name in [*notebooks, ("07_report", None)]:
        file = f"{stage}_{name}" if name else stage
        source = nbformat.read(paths.artifacts("check", f"{stage}.ipynb"), as_version=4)
        title = html.escape(pages.title_of(source) + (f": {name}" if name else ""))
        links.append(f'<li><a href="{file}.html">{title}</a> (<a href="{file}.ipynb">notebook</a>)</li>')
    return "".join(links)


def write_index(
    params: Params,
    metrics: pd.DataFrame,
    findings: pd.DataFrame,
    comparison: pd.DataFrame,
    captions: dict[str, str],
) -> None:
    """Write reports/index.html: the result table, the figures (inside the page), links to the executed notebooks.

    Args:
        comparison: published beside measured figures, as `published.compare` returns them.
        captions: figure file name in reports/figures to its caption.
    """
    legend = "".join(f"<li><b>{name}</b>: {html.escape(text)}</li>" for name, text in records.SCENARIOS.items())
    demonstration = _DEMONSTRATION if params.dataset.name == "shapes" else ""
    body = f"""<h1>{html.escape(params.report.title)}</h1>
<p>A classifier is paired with CLIP; where the two disagree by more than the tolerance
{params.multishield.tolerance:g}, the shield rejects the image. Threat model: L-infinity, radius
{params.threat_model.eps * 255:g}/255. Ratios are per cent of all N images, with 95 % Wilson intervals.</p>
{demonstration}
<h2>Results</h2>
{tables.to_html(tables.results(metrics))}
<ul>{legend}</ul>
<p>Robust accuracy counts rejected images as robust, as the paper does; a shield that rejects everything would score
100 %. Read it beside clean rejection and correct under attack.</p>
{_sanity_section(findings)}
{_published_section(comparison)}
<h2>Figures</h2>
{_pictures(captions)}
<h2>Executed notebooks</h2>
<ul>{_links(params.classifiers)}</ul>
<h2>Data behind this page</h2>
<p><a href="records.csv">records.csv</a> has one row per classifier, scenario and image (<a
href="sanity.csv">sanity.csv</a> of the runs for the sanity rules);
<a href="metrics.json">metrics.json</a>, <a href="tables/metrics.csv">metrics.csv</a>,
<a href="tables/results.md">results.md</a> and <a href="tables/results.tex">results.tex</a> are computed from it.</p>"""
    write_text(paths.reports("index.html"), pages.page(params.report.title, body))
