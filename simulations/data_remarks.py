"""What a configuration says of the data that the data itself doesn't bear out."""

from __future__ import annotations

from collections.abc import Iterator

from ..common.config import DataConfig
from ..common.formatting import printable
from .cleaning import own_weights
from .dataset import QualityReport


def data_remarks(config: DataConfig, report: QualityReport) -> Iterator[str]:
    """One line each. They are no errors: a part of a log may lack what the whole of it has."""
    missing = [name for name in own_weights(config) if name not in report.named_types]
    if missing:
        yield (
            f"data.event_weights: no row of {report.source} is of type {', '.join(map(repr, missing))}; "
            f"event types there: {printable(', '.join(report.named_types))}"
        )
