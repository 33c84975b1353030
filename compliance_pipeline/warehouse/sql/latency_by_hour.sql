-- $hour, $objective_s, $objectives: replaces one hour of the mart. Canaries do not count.
INSERT INTO latency_by_hour BY NAME
SELECT
    partition_hour,
    coalesce(channel, 'all') AS channel,
    stage,
    count(*) AS recordings,
    quantile_cont(seconds, 0.50) AS p50_s,
    quantile_cont(seconds, 0.95) AS p95_s,
    quantile_cont(seconds, 0.99) AS p99_s,
    max(seconds) AS max_s,
    count(*) FILTER (seconds <= coalesce(o.objective, $objective_s)) AS within_objective
FROM stage_times
LEFT JOIN (SELECT unnest($objectives, recursive := true)) AS o(channel, objective) USING (channel)
WHERE partition_hour = $hour
  AND recording_id NOT IN (SELECT recording_id FROM recordings WHERE partition_hour = $hour AND source = 'canary')
GROUP BY GROUPING SETS ((partition_hour, stage), (partition_hour, channel, stage));
