"""Draw what was measured: `report.html` and `results.json`."""

from dina_lrm.report.calibration import write_reliability
from dina_lrm.report.page import write_report
from dina_lrm.report.results import (
    BestOf,
    DemoResults,
    EncodingFacts,
    RankedPicture,
    RankedPrompt,
    SamplePicture,
    SplitFacts,
    StepTime,
    TableRow,
    TrainingFacts,
    ValidationPoint,
    WorldFacts,
)

__all__ = [
    "BestOf",
    "DemoResults",
    "EncodingFacts",
    "RankedPicture",
    "RankedPrompt",
    "SamplePicture",
    "SplitFacts",
    "StepTime",
    "TableRow",
    "TrainingFacts",
    "ValidationPoint",
    "WorldFacts",
    "write_reliability",
    "write_report",
]
