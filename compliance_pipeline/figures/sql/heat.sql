-- Recordings by time and by third of a doubling of the seconds until they were flagged.
SELECT g.coarse AS time, {{third}} AS third, sum(recordings)::BIGINT AS recordings
FROM {{histogram}} JOIN {{grid}} g ON g.fine = epoch_ms(partition_hour) // 1000
WHERE stage = 'flagged'
GROUP BY ALL ORDER BY ALL
