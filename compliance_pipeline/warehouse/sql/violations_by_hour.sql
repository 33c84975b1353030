-- $hour: replaces one hour of the mart. Only what the newest verdict of a recording says counts, and no canary.
INSERT INTO violations_by_hour BY NAME
WITH newest AS (
    SELECT * FROM latest_verdicts WHERE partition_hour = $hour
      AND recording_id NOT IN (SELECT recording_id FROM recordings WHERE partition_hour = $hour AND source = 'canary')
), broken AS (
    SELECT DISTINCT channel, rule_id FROM violations WHERE partition_hour = $hour
), screened AS (
    -- Where a rule could not be decided, it was not screened for.
    SELECT b.channel, b.rule_id, count(*) AS screened
    FROM newest n JOIN broken b ON b.channel = n.channel
    WHERE n.verdict <> 'UNSCREENABLE' AND NOT list_contains(coalesce(n.undetermined_rules, []), b.rule_id)
    GROUP BY b.channel, b.rule_id
)
SELECT
    v.partition_hour,
    v.channel,
    v.rule_id,
    any_value(v.violation_type) AS violation_type,
    any_value(v.severity) AS severity,
    any_value(v.verdict) AS verdict,
    count(*) AS recordings,
    coalesce(any_value(s.screened), 0) AS screened
FROM violations v
JOIN newest n USING (recording_id, policy_version, engine_version)
LEFT JOIN screened s ON s.channel = v.channel AND s.rule_id = v.rule_id
WHERE v.partition_hour = $hour
GROUP BY v.partition_hour, v.channel, v.rule_id;
