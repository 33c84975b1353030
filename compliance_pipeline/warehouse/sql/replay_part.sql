-- $hour, $engine, $part of $parts: what to judge again.
CREATE OR REPLACE TEMP TABLE chosen AS
FROM screenings WHERE partition_hour = $hour AND engine_version = $engine AND hash(recording_id) % $parts = $part
