"""Which training rows repeat evaluation texts, exactly or nearly. Importing this loads no heavy library."""

from lbr_st.contamination.check import Evaluation, check_contamination
from lbr_st.contamination.origins import known_overlaps
from lbr_st.contamination.report import ContaminationReport, Count, Sample

__all__ = [
    "ContaminationReport",
    "Count",
    "Evaluation",
    "Sample",
    "check_contamination",
    "known_overlaps",
]
