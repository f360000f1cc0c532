"""Several evaluated models side by side: what they differ in, which differences are real, and tables for people."""

from clapkit.steps.comparison.per_query import detectable as detectable
from clapkit.steps.comparison.per_query import write_per_query as write_per_query
from clapkit.steps.comparison.protocol import find_baseline as find_baseline
from clapkit.steps.comparison.protocol import protocol_differences as protocol_differences
from clapkit.steps.comparison.protocol import protocol_marks as protocol_marks
from clapkit.steps.comparison.side_by_side import compare as compare
from clapkit.steps.comparison.tables import write_tables as write_tables
