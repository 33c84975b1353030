-- $dimension: by its values, recordings that broke a chosen rule; each once.
SELECT
    CASE $dimension WHEN 'queue' THEN queue WHEN 'channel' THEN channel WHEN 'direction' THEN direction
        WHEN 'policy_version' THEN policy_version WHEN 'agent' THEN agent END AS value,
    count(DISTINCT recording_id) AS violating
FROM {{violations}}
WHERE {{of_violations}}
GROUP BY value
