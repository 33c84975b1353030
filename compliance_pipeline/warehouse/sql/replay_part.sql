-- $hour, $engine, $part of $parts: what to judge again.
CREATE OR REPLACE TEMP TABLE chosen AS
SELECT *, row_number() OVER () AS n
FROM screenings WHERE partition_hour = $hour AND engine_version = $engine AND hash(recording_id) % $parts = $part
