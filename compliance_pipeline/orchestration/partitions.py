"""How history is cut: hours (UTC) in which recordings became available."""

import dagster as dg

from compliance_pipeline.intake.hours import FIRST_HOUR, PARTITION_FORMAT

# end_offset=1: without it the current hour is not a partition yet, and live recordings belong to it.
# One partition an hour reaches Dagster's limit of 100,000 an asset after eleven years.
hourly = dg.HourlyPartitionsDefinition(start_date=FIRST_HOUR, end_offset=1, fmt=PARTITION_FORMAT)
