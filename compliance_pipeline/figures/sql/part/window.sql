-- In a long window whole hours, so that facts and rollups are of the same recordings.
CASE WHEN $by_hour THEN partition_hour ELSE available_at END >= $start
AND CASE WHEN $by_hour THEN partition_hour ELSE available_at END < $end
