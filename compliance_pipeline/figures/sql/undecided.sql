-- By rule: judged recordings of which it could not be decided.
SELECT rule_id, sum(recordings)::BIGINT AS recordings FROM {{undetermined}} GROUP BY rule_id
