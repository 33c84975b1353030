-- Judged and violating recordings by agent.
SELECT agent, sum(judged)::BIGINT AS judged, sum(violating)::BIGINT AS violating FROM {{agents}} GROUP BY agent
