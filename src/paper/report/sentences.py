"""What a notebook has found, in one sentence that its own records fill in, as Markdown."""

import pandas as pd


def _percent(metrics: pd.DataFrame, scenario: str, metric: str = "robust_accuracy") -> str:
    value = metrics.set_index(["scenario", "metric"]).value
    return f"{100 * value[scenario, metric]:.1f} %"


def baseline(name: str, metrics: pd.DataFrame) -> str:
    """Scenario 1."""
    clean, robust = _percent(metrics, "baseline", "clean_accuracy"), _percent(metrics, "baseline")
    return (
        f"Of {metrics.n.iloc[0]} images **{name}** classifies {clean} correctly, and {robust} still under AutoAttack."
    )


def unaware(name: str, metrics: pd.DataFrame) -> str:
    """Scenario 2."""
    robust, rejected = _percent(metrics, "multishield"), _percent(metrics, "multishield", "clean_rejection")
    return (
        f"Of {metrics.n.iloc[0]} images that AutoAttack has made against **{name}**, the shield lets no wrong class "
        f"through on {robust}; it rejects {rejected} of the clean ones."
    )


def adaptive(name: str, metrics: pd.DataFrame, passes: pd.DataFrame) -> str:
    """Scenario 3. passes: `Evaluation.passes`."""
    forwards = passes.set_index("attack").forwards
    passes_of = {scenario: f"{forwards[scenario]:.0f} forward passes per image" for scenario in ("paper", "joint")}
    return (
        f"Of {metrics.n.iloc[0]} images **{name}** with the shield holds {_percent(metrics, 'paper')} against the "
        f"paper's attack ({passes_of['paper']}), {_percent(metrics, 'joint')} against the joint attack "
        f"({passes_of['joint']}), and {_percent(metrics, 'adaptive')} against all together."
    )
