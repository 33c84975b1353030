-- How many of `judged` differ from the newest verdict before, in value or in the rule that decided.
SELECT count(*)
FROM judged j
JOIN (
    SELECT recording_id, arg_max(struct_pack(verdict, rule_id), judged_at) AS newest
    FROM verdicts
    WHERE partition_hour = $hour AND recording_id IN (SELECT recording_id FROM judged)
    GROUP BY recording_id
) v USING (recording_id)
WHERE j.verdict <> v.newest.verdict OR j.rule_id IS DISTINCT FROM v.newest.rule_id
