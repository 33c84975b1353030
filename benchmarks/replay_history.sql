-- An hour of screenings, made up in the mix of the capacity model: 70% voice, one recording of twenty with a violation.
-- Most calls have a notice and 3 to 6 phrases in all, collectors say what they must besides, and calls are made by day.
CREATE OR REPLACE TEMP TABLE made AS
SELECT
    *,
    ['billing', 'collections', 'retention', 'support', 'sales', 'complaints', 'claims', 'vip'][1 + (8 * a ** 1.6)::INT % 8] AS queue
FROM (
    SELECT
        printf('rec-%s-%07d', strftime($hour::TIMESTAMPTZ, '%Y%m%d%H'), i) AS recording_id,
        CASE WHEN random() < 0.7 THEN 'voice' WHEN random() < 0.75 THEN 'chat' ELSE 'email' END AS channel,
        random() < 0.32 AS outbound,
        random() AS a,
        random() AS b
    FROM range($recordings) t(i)
);
INSERT INTO screenings BY NAME
SELECT
    recording_id,
    $engine AS engine_version,
    $hour::TIMESTAMPTZ AS partition_hour,
    channel,
    CASE WHEN outbound THEN 'outbound' ELSE 'inbound' END AS direction,
    queue,
    $hour::TIMESTAMPTZ - to_microseconds((b * 3600e6)::BIGINT) AS started_at,
    CASE WHEN outbound AND channel = 'voice' THEN zones[1 + (len(zones) * (b * 31 % 1))::INT % len(zones)] END AS called_time_zone,
    'msg-' || recording_id AS correlation_id,
    channel <> 'voice' OR a < 0.95 AS words_known,
    true AS words_timed,
    CASE WHEN channel = 'email' THEN ['customer'] ELSE ['agent', 'customer'] END AS speakers,
    CASE WHEN channel = 'voice' AND b * 701 % 1 < 0.98 THEN ['secure_pause'] ELSE [] END AS annotations,
    CASE WHEN channel = 'voice' THEN 20000 + (b * 600000)::BIGINT ELSE 1000 * (b * 300)::BIGINT END AS duration_ms,
    CASE WHEN b > 0.998 THEN 'truncated' END AS unscreenable_reason,
    $hour::TIMESTAMPTZ AS screened_at
FROM (
    SELECT *, [z FOR z IN [
        'America/New_York', 'America/Los_Angeles', 'Pacific/Honolulu', 'Australia/Sydney', 'Asia/Tokyo', 'Asia/Kolkata',
        'Europe/Athens', 'Europe/London'
    ] IF date_part('hour', $hour::TIMESTAMPTZ AT TIME ZONE z) BETWEEN 9 AND 20 OR b * 1013 % 1 < 0.01] AS zones
    FROM made
);
INSERT INTO findings BY NAME
WITH phrased AS (
    SELECT m.*, k, random() AS c, random() AS d, random() AS e
    FROM made m, range(6) t(k)
    WHERE k < CASE channel WHEN 'voice' THEN 3 + (a * 4)::INT ELSE 1 + (a * 2)::INT END
), numbered AS (
    SELECT *, NULL::VARCHAR AS number FROM phrased
    UNION ALL
    SELECT m.*, k, random() AS c, random() AS d, random() AS e, NULL
    FROM made m, range(10, 13) t(k)
    WHERE queue = 'collections' AND a * 977 % 1 < 0.97
    UNION ALL
    SELECT
        *, 9 AS k, random() AS c, random() AS d, random() AS e,
        ['card_number', 'card_number', 'card_verification_code', 'government_id', 'phone_number'][1 + (5 * b)::INT % 5]
    FROM made WHERE a * 1009 % 1 < 0.05
)
SELECT
    recording_id,
    $engine AS engine_version,
    row_number() OVER (PARTITION BY recording_id ORDER BY d) - 1 AS finding_no,
    $hour::TIMESTAMPTZ AS partition_hour,
    coalesce(number, 'phrase') AS kind,
    CASE WHEN number IS NULL THEN 'phrases' WHEN channel = 'voice' AND number = 'card_number' THEN 'digits' ELSE 'text' END AS detector,
    CASE WHEN k IN (0, 10, 11, 12) OR e < 0.6 THEN 'agent' ELSE 'customer' END AS speaker,
    CASE WHEN number IS NULL AND k = 0 THEN (d * 25000)::BIGINT ELSE (d * 300000)::BIGINT END AS start_ms,
    start_ms + 900 AS end_ms,
    CASE WHEN number IS NULL THEN 0.9 ELSE round(0.6 + 0.39 * c, 4) END AS confidence,
    CASE WHEN number IS NULL THEN '[words]' ELSE '4000 00** **** 0002' END AS masked,
    CASE
        WHEN number IS NOT NULL THEN NULL
        WHEN k = 0 AND channel = 'voice' AND b < 0.98 THEN 'recording_notice'
        WHEN k >= 10 THEN ['mm_debt_collector', 'mm_attempt', 'mm_use'][k - 9]
        WHEN a * 2003 % 1 < 0.02 THEN $telling[1 + (len($telling) * e)::INT % len($telling)]
        ELSE $usual[1 + (len($usual) * c ** 2)::INT % len($usual)]
    END AS phrase,
    true AS located,
    []::BIGINT[][] AS spans
FROM numbered;
INSERT INTO recordings BY NAME
SELECT
    recording_id, $hour::TIMESTAMPTZ AS partition_hour, 'genesys' AS source, channel,
    []::VARCHAR[] AS participants, 'msg-' || recording_id AS correlation_id, $hour::TIMESTAMPTZ AS available_at,
    $hour::TIMESTAMPTZ AS received_at, $hour::TIMESTAMPTZ AS recorded_at
FROM made
