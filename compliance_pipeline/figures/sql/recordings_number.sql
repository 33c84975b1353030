-- How many recordings are in one of the states.
SELECT count(*) AS recordings FROM {{recordings_of}}
