"""Is there a pair that wins? A classifier and an image tower, trained together against the attack on both.

Run it in a project whose pipeline has run up to the alignment, with nothing else on the machine:

    python benchmarks/pairs.py train CLASSIFIER FOLDER [--method METHOD] [--epochs N] [--steps N] [--weight W]
        [--rate R]
    python benchmarks/pairs.py compare CLASSIFIER FOLDER... [--images N] [--as-one]

The first trains both models on, from the project's classifier and CLIP (with `alignment.robust`: a tower that follows
any attack has far to go). A batch of images x becomes x' in the ball, by a step or more from a random point:

    both     x' raises log p_t(classifier) + log p_t(CLIP) of the wrong class t that both together find likeliest, the
             joint attack's aim; both models learn the right class of x'.
    reject   x' raises the smaller of both log-probabilities (a smooth minimum) of the wrong class where it is largest.
             Both models learn the right class of x, and not to agree on what is wrong in x': the loss has
             - W log(1 - sum over t != y of p_t p'_t): the sum is the chance that votes drawn from the two agree on
             a wrong class.
    sum      x' raises the cross-entropy of the sum of both log-probabilities, which learns the right class of x': one
             larger network, trained adversarially.
    diverse  each model learns from its own attack, and W times the squared cosine between the gradients of both losses
             is added: what misleads one shall not mislead the other.

FOLDER gets classifier.safetensors, clip.safetensors and history.csv. The second prints the comparison at equal clean
rejection on the first N evaluation images, each defence under attacks of its own: the project's (its comparison stage
has run), and that of every FOLDER's pair; with --as-one the classifier of these is the sum of both log-probabilities.
Records are kept in FOLDER, and all that are there are in the table. "gained", "lost" and p are against the threshold on
one model's confidence (the logit margin, the softmax, CLIP's margin; of models trained together or apart) that leaves
most images robust at that rejection.

In params.yaml a pair is training.NAME: {source: checkpoint, path: FOLDER/classifier.safetensors, ...} and alignment:
{source: file, weights: FOLDER/clip.safetensors, ...}: the whole pipeline can look at it.
"""

import argparse
from pathlib import Path

from paper.params import Params
from paper.pipeline import arithmetic

arithmetic.choose(Params.load().arithmetic)

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from multishield.attacks.pgd import pgd
from multishield.attacks.threat_model import Ball
from multishield.forward import accuracy, freeze
from multishield.portfolio import Attacker, worst_case
from multishield.resume import kept_in
from multishield.shield import MultiShield
from multishield.tensors import load_tensors, save_tensors
from paper import paths
from paper.data.splits import load_split
from paper.models.cifar_resnet import load_exactly
from paper.models.classifier import load_classifier
from paper.models.zero_shot import align, kept_clip
from paper.params import RobustTower
from paper.report import tables
from paper.stages import comparison
from paper.training.attacked import perturb
from paper.training.epochs import run_epochs, train_epoch
from paper.training.robust_tower import Logits

AS_TWO, AS_ONE, SUM = "as-two.csv", "as-one.csv", ", their sum"
KEPT = {"": AS_TWO, SUM: AS_ONE}  # what a table calls the records of a pair
THRESHOLDS = ("logit margin", "softmax", "CLIP's margin")  # on one model's confidence


class Pair(nn.Module):
    """The log-probabilities of a classifier and a CLIP, which learn together; their sum is the common answer."""

    def __init__(self, classifier: nn.Module, clip, text: Tensor):
        super().__init__()
        self.classifier = classifier
        self.clip = Logits(align(clip, text), float(clip.model.logit_scale.detach().exp()))

    def vote(self, x: Tensor) -> Tensor:
        return self.classifier(x).log_softmax(1)

    def clip_vote(self, x: Tensor) -> Tensor:
        return self.clip(x).log_softmax(1)

    def both(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.vote(x), self.clip_vote(x)

    def forward(self, x: Tensor) -> Tensor:
        return sum(self.both(x))


def load(name: str, folder: Path | None = None) -> tuple[nn.Module, object, Tensor]:
    """The classifier, the CLIP and the text embeddings of the project; with a folder, of the pair that it holds."""
    classifier, clip = load_classifier(name), kept_clip()
    if folder:
        load_exactly(classifier.network, load_tensors(folder / "classifier.safetensors"), str(folder))
        load_exactly(clip.model, load_tensors(folder / "clip.safetensors"), str(folder))
    return classifier, clip, load_tensors(paths.artifacts("alignment", "text.safetensors"))["text"]


def likeliest_wrong(pair: tuple[Tensor, Tensor], y: Tensor) -> Tensor:
    """What the attack raises: both log-probabilities of the wrong class that they find likeliest together."""
    return sum(pair).scatter(1, y[:, None], -torch.inf).amax(1).sum()


def agreed_wrong(pair: tuple[Tensor, Tensor], y: Tensor) -> Tensor:
    """The same of the smaller one: - log(1 / p_t + 1 / p'_t) of the wrong class where that is largest."""
    smaller = -torch.logaddexp(*(-scores for scores in pair))
    return smaller.scatter(1, y[:, None], -torch.inf).amax(1).sum()


def agreed(pair: tuple[Tensor, Tensor], y: Tensor) -> Tensor:
    """- log(1 - sum over t != y of p_t p'_t), the mean over the batch."""
    chance = sum(pair).exp().scatter(1, y[:, None], 0.0).sum(1)
    return -torch.log1p(-chance.clamp_max(1 - 1e-6)).mean()


def batch_loss(model: Pair, x: Tensor, y: Tensor, start: Tensor, params: RobustTower, method: str, weight: float):
    """The training loss of one batch; start: a random point of the ball around x."""
    if method == "diverse":
        return diverse_loss(model, x, y, start, params, weight)
    radius = (params.eps, params.step_size, params.steps)
    if method == "sum":
        return F.cross_entropy(model(perturb(model, x, lambda scores: F.cross_entropy(scores, y), start, *radius)), y)
    if method == "reject":
        moved = perturb(model.both, x, lambda scores: agreed_wrong(scores, y), start, *radius)
        return sum(F.nll_loss(scores, y) for scores in model.both(x)) + weight * agreed(model.both(moved), y)
    moved = perturb(model.both, x, lambda scores: likeliest_wrong(scores, y), start, *radius)
    return sum(F.nll_loss(scores, y) for scores in model.both(moved))


def diverse_loss(model: Pair, x: Tensor, y: Tensor, start: Tensor, params: RobustTower, weight: float) -> Tensor:
    """Each model's loss under its own attack, and the squared cosine between the gradients that these follow."""
    start.requires_grad_()
    with sdpa_kernel(SDPBackend.MATH):  # fused attention has no second derivative
        losses = [F.nll_loss(scores, y, reduction="sum") for scores in model.both(start)]
        gradients = [torch.autograd.grad(loss, start, create_graph=True)[0] for loss in losses]
    cosine = F.cosine_similarity(*(g.flatten(1) for g in gradients))
    steps = [start.detach() + params.step_size * g.detach().sign() for g in gradients]
    moved = [Ball(params.eps).project(step, x) for step in steps]
    own = F.nll_loss(model.vote(moved[0]), y) + F.nll_loss(model.clip_vote(moved[1]), y)
    return own + weight * cosine.square().mean()


def train(name: str, folder: Path, method: str, weight: float, params: RobustTower) -> None:
    """Train a pair and keep it; a run that was killed goes on after its last epoch."""
    settings, data, validation = Params.load(), load_split("train"), load_split("validation")
    torch.manual_seed(settings.seed)
    classifier, clip, text = load(name)
    model = Pair(classifier, clip, text)
    clip.model.visual.requires_grad_(True), classifier.requires_grad_(True)
    learned = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(learned, params.learning_rate, weight_decay=params.weight_decay)
    batches = sum(len(b) > 1 for b in torch.arange(len(data)).split(params.batch_size))
    total = params.epochs * batches + 1
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, params.learning_rate, total_steps=total, pct_start=0.1, cycle_momentum=False
    )

    def loss_of(x: Tensor, y: Tensor, epoch: float, generator: torch.Generator) -> Tensor:
        noise = 2 * torch.rand(x.shape, generator=generator) - 1
        start = Ball(params.eps).project(x + params.eps * noise, x)
        return batch_loss(model, x, y, start, params, method, weight)

    def one_epoch(epoch: int, tick) -> dict[str, float]:
        loss = train_epoch(model, data, params, epoch, loss_of, optimiser, schedule, settings.seed, tick)
        model.eval()
        x, y, steps = validation.pixels, validation.labels, {"eps": params.eps, "step_size": params.eps / 4}
        found = pgd(model, x, y, seed=settings.seed, ids=validation.ids, steps=params.validation_steps, **steps)
        scores = {"classifier": model.classifier, "CLIP": model.clip, "sum": model}
        clean = {of: accuracy(part, validation) for of, part in scores.items()}
        return {"loss": loss} | clean | {"sum, PGD": 1 - found.success.float().mean().item()}

    parts = {"model": model, "optimiser": optimiser, "schedule": schedule}
    with kept_in(folder / "unfinished"):
        inputs = (method, weight, params.model_dump(), model, text, data.images, data.labels, settings.seed)
        count = {"epochs": params.epochs, "batches": batches, "criterion": "sum, PGD", "keep": "last"}
        history = run_epochs("training the pair", parts, one_epoch, *inputs, **count)
        save_tensors(folder / "classifier.safetensors", classifier.network.state_dict())
        save_tensors(folder / "clip.safetensors", clip.model.state_dict())
        history.to_csv(folder / "history.csv", index=False)
    print(tables.to_markdown(history.round(3)))


def together(name: str, folder: Path, data, params: Params, one: bool) -> pd.DataFrame:
    """The records of all defences that are made of a pair."""
    classifier, clip, text = load(name, folder)
    pair = Pair(classifier, clip, text)
    shield = freeze(MultiShield(pair if one else classifier, pair.clip.alignment, params.multishield.tolerance))
    attacker = Attacker(folder.name, params.adaptive, Ball(**params.threat_model.model_dump()), params.seed)
    pool = attacker.parts(shield, data)
    for part, found in pool.items():
        print(f"{folder.name}, {part}: {(~found.success).float().mean():.1%} robust", flush=True)
    pool["joint"] = attacker.joint(shield, data, list(pool.values()))
    pool |= {"baseline": pool["on the classifier"], "adaptive": worst_case(shield, data, pool)}
    return comparison.compare(attacker, shield, data, load_split("validation"), params.comparison, pool).rows


def against_the_best(rows: pd.DataFrame) -> pd.DataFrame:
    """The table, with the best threshold on one model's confidence in the place of the reference."""
    found = []
    for _, group in rows.groupby("wanted"):
        named = group.assign(defence=group.defence + ", " + group.of)
        simple = named[group.defence.isin(THRESHOLDS) & ~group.of.str.endswith(SUM)]
        best = (~comparison.broken(simple)).groupby(simple.defence).mean().idxmax()
        reference = named[named.defence == best].assign(defence=comparison.REFERENCE)
        table = comparison.table(pd.concat([reference, named], ignore_index=True))
        found.append(table[table.defence != comparison.REFERENCE].assign(best=lambda t, b=best: t.defence == b))
    return pd.concat(found, ignore_index=True)


def compare(name: str, folders: list[Path], images: int, one: bool) -> None:
    """Attack what is made of the pairs, and print the comparison with all that is kept in their folders."""
    params = Params.load()
    data = load_split("evaluation")[:images]
    found = {"apart": paths.artifacts("comparison", name, "records.csv")}
    for folder in folders:
        wanted = folder / (AS_ONE if one else AS_TWO)
        if not wanted.is_file():
            with kept_in(folder / "unfinished"):
                together(name, folder, data, params, one).to_csv(wanted, index=False)
        found |= {f"{folder.name}{of}": folder / file for of, file in KEPT.items() if (folder / file).is_file()}
    tried = [pd.read_csv(file, keep_default_na=False).assign(of=label) for label, file in found.items()]
    rows = pd.concat(tried, ignore_index=True).assign(classifier="all", own=False)
    table = against_the_best(rows[rows.image.isin(data.ids.tolist()) & rows.wanted.isin(params.comparison.rejection)])
    shown = tables.comparison(table).drop(columns="classifier")
    shown["defence"] += table.best.map({True: " (best threshold)", False: ""})
    print(tables.to_markdown(shown))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = parser.add_subparsers(dest="kind", required=True)
    trained, seen = kinds.add_parser("train"), kinds.add_parser("compare")
    for one in (trained, seen):
        one.add_argument("classifier")
    trained.add_argument("folder", type=Path)
    trained.add_argument("--method", choices=("both", "reject", "sum", "diverse"), default="both")
    trained.add_argument("--epochs", type=int, default=2)
    trained.add_argument("--steps", type=int, default=1, help="of the training attack")
    trained.add_argument("--weight", type=float, default=1.0)
    trained.add_argument("--rate", type=float, default=1e-3)
    seen.add_argument("folders", type=Path, nargs="*")
    seen.add_argument("--images", type=int, default=400)
    seen.add_argument("--as-one", action="store_true")
    given = parser.parse_args()
    if given.kind == "compare":
        compare(given.classifier, given.folders, given.images, given.as_one)
        return
    if given.method == "diverse" and given.steps > 1:
        parser.error(f"--steps is {given.steps}, but `diverse` takes one step: its gradients are trained; leave it out")
    eps = Params.load().threat_model.eps
    size = 1.25 * eps if given.steps == 1 else 1.5 * eps / given.steps
    fixed = {"method": "tecoa", "batch_size": 64, "augment": True, "validation_steps": 10}
    attack = {"eps": eps, "steps": given.steps, "step_size": size}
    params = RobustTower(epochs=given.epochs, learning_rate=given.rate, **attack, **fixed)
    given.folder.mkdir(parents=True, exist_ok=True)
    train(given.classifier, given.folder, given.method, given.weight, params)


if __name__ == "__main__":
    main()
