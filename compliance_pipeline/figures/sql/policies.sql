-- Policy packs by the hours of what they judged.
SELECT
    policy_version,
    date_trunc('hour', min(partition_hour)) AS first_seen, date_trunc('hour', max(partition_hour)) AS last_seen,
    sum(judged)::BIGINT AS judged, sum(violating)::BIGINT AS violating
FROM {{coverage}}
WHERE policy_version <> ''
GROUP BY policy_version
ORDER BY last_seen DESC, first_seen DESC, policy_version
