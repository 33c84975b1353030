-- $data_to: open violations by severity and days since the hour in which they became available.
SELECT severity, floor(epoch($data_to - partition_hour) / 86400)::INTEGER AS days, sum(open)::BIGINT AS open
FROM {{broken}}
WHERE is_chosen
GROUP BY severity, days
