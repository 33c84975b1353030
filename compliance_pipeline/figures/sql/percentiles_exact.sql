-- Exact percentiles of each stage: by bucket of $coarse, and (time NULL) of the whole window.
WITH stages AS (
    UNPIVOT (FROM {{interactions}} JOIN {{grid}} g ON g.fine = epoch_ms(partition_hour) // 1000)
    ON platform_s, delivery_s, queue_s, start_s, batch_s, fetch_s, analysis_s, first_finding_s, remediation_s, judged_s, flagged_s
    INTO NAME stage VALUE seconds
)
SELECT
    stage[:-3] AS stage, coarse AS time, count(*) AS recordings, quantile_cont(seconds, [0.50, 0.95, 0.99]) AS seconds
FROM stages
GROUP BY GROUPING SETS ((stage), (stage, time))
