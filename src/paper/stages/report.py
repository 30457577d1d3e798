"""Stage 9: tables, figures and metrics from the records."""

from paper.stages.attacking import Attacking

Stage = Attacking
