-- As counts.sql: exact percentiles of each stage.
WITH chosen AS (
    FROM read_parquet($interactions)
    WHERE available_at >= $start AND available_at < $end
      AND (len($queue) = 0 OR list_contains($queue, queue))
      AND (len($channel) = 0 OR list_contains($channel, channel))
      AND (len($direction) = 0 OR list_contains($direction, direction))
      AND (len($agent) = 0 OR list_contains($agent, agent))
), stages AS (
    UNPIVOT (FROM chosen)
    ON platform_s, delivery_s, queue_s, start_s, batch_s, fetch_s, analysis_s, first_finding_s, remediation_s, judged_s, flagged_s
    INTO NAME stage VALUE seconds
)
SELECT
    stage[:-3] AS stage, count(*) AS recordings,
    quantile_cont(seconds, 0.50) AS p50_s, quantile_cont(seconds, 0.95) AS p95_s, quantile_cont(seconds, 0.99) AS p99_s
FROM stages GROUP BY ALL
