-- How many recordings were flagged, and their 95th percentile.
SELECT count(flagged_s) AS recordings, quantile_cont(flagged_s, 0.95) AS p95_s FROM {{interactions}}
