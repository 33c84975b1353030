-- $objective_s, $objectives: recordings flagged late, by the stage that took longest.
SELECT stage, sum(recordings)::BIGINT AS recordings FROM {{breaches}} GROUP BY stage ORDER BY recordings DESC, stage
