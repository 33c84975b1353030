-- The window's histogram by hour, of the chosen facts: for what no rollup has.
(
    SELECT partition_hour, stage[:-3] AS stage, greatest(ceil(ln(greatest(seconds, 0.001)) / ln(1.0206)), -340)::SMALLINT AS bucket, count(*) AS recordings
    FROM (
        UNPIVOT (FROM {{interactions}})
        ON platform_s, delivery_s, queue_s, start_s, batch_s, fetch_s, analysis_s, first_finding_s, remediation_s, judged_s, flagged_s
        INTO NAME stage VALUE seconds
    )
    GROUP BY ALL
)
