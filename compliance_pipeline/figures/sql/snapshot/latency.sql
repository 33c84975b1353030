-- $interactions: how long each stage took in each hour, as counts by logarithmic bucket, over all and by one dimension.
-- Bucket b holds seconds in (g^(b-1), g^b] with g = 1.0206, told as 2 g^b / (1 + g): at most 1.02% off (DDSketch).
WITH stages AS (
    UNPIVOT (FROM read_parquet($interactions))
    ON platform_s, delivery_s, queue_s, start_s, batch_s, fetch_s, analysis_s, first_finding_s, remediation_s, judged_s, flagged_s
    INTO NAME stage VALUE seconds
)
SELECT
    CASE WHEN grouping(queue) = 0 THEN 'queue' WHEN grouping(channel) = 0 THEN 'channel'
         WHEN grouping(direction) = 0 THEN 'direction' ELSE 'all' END AS dimension,
    coalesce(queue, channel, direction, '') AS value,
    stage[:-3] AS stage,
    partition_hour,
    greatest(ceil(ln(greatest(seconds, 0.001)) / ln(1.0206)), -340)::SMALLINT AS bucket,
    count(*) AS recordings
FROM stages
GROUP BY GROUPING SETS (
    (partition_hour, stage, bucket), (partition_hour, stage, bucket, queue),
    (partition_hour, stage, bucket, channel), (partition_hour, stage, bucket, direction)
)
