"""Stage 9: tables, figures and metrics from the records."""

from paper.stages.base import Base


class Stage(Base):
    """See `Base`."""
