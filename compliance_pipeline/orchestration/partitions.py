"""How history is cut: hours (UTC) in which recordings became available."""

import dagster as dg

# end_offset=1: without it the current hour is not a partition yet, and live recordings belong to it.
# First hour and key format are those of the inbox, which is too slow to import for two constants.
# One partition an hour reaches Dagster's limit of 100,000 an asset after eleven years.
hourly = dg.HourlyPartitionsDefinition(start_date="2026-01-01-00:00", end_offset=1)
