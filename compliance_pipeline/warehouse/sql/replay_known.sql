-- Leave out of `judged` what $policy has judged meanwhile on a screening by $engine.
DELETE FROM judged WHERE recording_id IN (
    SELECT recording_id FROM verdicts
    WHERE partition_hour = $hour AND engine_version = $engine AND policy_version = $policy
)
