-- Judged and violating recordings by all dimensions that every recording has.
SELECT queue, channel, direction, policy_version, sum(judged)::BIGINT AS judged, sum(violating)::BIGINT AS violating
FROM {{coverage}}
GROUP BY ALL
