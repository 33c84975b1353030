-- $day, $number, $recordings: a day's recordings, made up: most by day, some channels faster, a bad forenoon every ninth day.
CREATE OR REPLACE TEMP TABLE day AS
WITH base AS (
    SELECT
        i, random() AS a, random() AS b, random() AS c, random() AS d, random() AS e, random() AS f, random() AS g,
        random() AS h
    FROM range($recordings) t(i)
), placed AS (
    SELECT
        *,
        $day::TIMESTAMPTZ + to_microseconds((86400e6 * least(0.99999, 0.28 + 0.56 * (a + b + c) / 3
            + CASE WHEN d < 0.04 THEN d * 15 - 0.3 ELSE 0 END))::BIGINT) AS available_at,
        ['billing', 'collections', 'retention', 'support', 'sales', 'complaints', 'claims', 'vip'][1 + (8 * e ** 1.6)::INT % 8] AS queue,
        CASE WHEN f < 0.7 THEN 'voice' WHEN f < 0.92 THEN 'chat' ELSE 'email' END AS channel,
        CASE WHEN g < 0.68 THEN 'inbound' ELSE 'outbound' END AS direction,
        printf('tok_agent%04d', (400 * h ** 1.2)::INT) AS agent,
        sqrt(-2 * ln(1 - 0.99999 * a)) * cos(2 * pi() * b) AS z1,
        sqrt(-2 * ln(1 - 0.99999 * c)) * cos(2 * pi() * d) AS z2,
        sqrt(-2 * ln(1 - 0.99999 * e)) * cos(2 * pi() * f) AS z3,
        sqrt(-2 * ln(1 - 0.99999 * g)) * cos(2 * pi() * h) AS z4
    FROM base
), timed AS (
    SELECT
        *,
        CASE WHEN $number % 9 = 4 AND extract(hour FROM available_at) IN (10, 11) THEN 5 ELSE 1 END AS busy,
        CASE WHEN f * 997 % 1 < 0.0012 THEN 'unscreenable' WHEN f * 991 % 1 < 0.0008 THEN 'waiting'
             WHEN f * 983 % 1 < 0.0006 THEN 'deferred' WHEN f * 977 % 1 < 0.0003 THEN 'dead_letter' ELSE 'judged' END AS status
    FROM placed
), staged AS (
    SELECT
        *,
        status = 'judged' AND g * 8191 % 1 <
            (CASE queue WHEN 'collections' THEN 0.13 WHEN 'sales' THEN 0.10 ELSE 0.05 END)
            * (CASE direction WHEN 'outbound' THEN 1.4 ELSE 1 END) AS broke,
        12 * exp(0.75 * z1) AS platform_s,
        0.4 * exp(0.5 * z2) AS delivery_s,
        0.9 * exp(0.7 * z3) * busy AS queue_s,
        0.8 * exp(0.3 * z4) AS start_s,
        0.3 * exp(0.8 * z1) AS batch_s,
        0.7 * exp(0.6 * z2) * busy AS fetch_s,
        (CASE channel WHEN 'voice' THEN 3.1 ELSE 0.2 END) * exp(0.6 * z4) AS analysis_s,
        0.5 * exp(0.8 * z3) AS remediation_s
    FROM timed
)
SELECT
    printf('rec-%s-%07d', strftime($day::TIMESTAMPTZ, '%Y%m%d'), i) AS recording_id,
    date_trunc('hour', available_at) AS partition_hour,
    available_at,
    available_at + to_microseconds((delivery_s * 1e6)::BIGINT) AS received_at,
    available_at - to_microseconds((platform_s * 1e6)::BIGINT) AS ended_at,
    CASE WHEN status IN ('judged', 'unscreenable') THEN available_at
        + to_microseconds((1e6 * (delivery_s + queue_s + start_s + batch_s + fetch_s + analysis_s))::BIGINT) END AS judged_at,
    CASE WHEN broke THEN available_at
        + to_microseconds((1e6 * (delivery_s + queue_s + start_s + batch_s + fetch_s + analysis_s + remediation_s))::BIGINT) END AS tagged_at,
    CASE WHEN broke THEN tagged_at + INTERVAL 400 MILLISECOND END AS work_item_at,
    CASE WHEN broke AND a * 4093 % 1 < 0.6 THEN tagged_at + INTERVAL 20 HOUR END AS reviewed_at,
    'genesys' AS source, channel, direction, queue, agent,
    c * 8111 % 1 < 0.002 AS found_by_sweep,
    status,
    CASE status WHEN 'unscreenable' THEN 'NO_AUDIO' WHEN 'deferred' THEN 'media not ready'
        WHEN 'dead_letter' THEN 'media host answered 500' END AS reason,
    CASE WHEN broke THEN 'VIOLATION_DETECTED' WHEN status = 'judged' THEN 'NO_VIOLATION'
        WHEN status = 'unscreenable' THEN 'UNSCREENABLE' END AS verdict,
    CASE WHEN broke THEN ['PCI-PAN-01', 'PCI-SAD-01', 'PCI-DTMF-01', 'PII-GOV-01', 'REC-CONSENT-01', 'FDCPA-THREAT-01', 'HIPAA-PHI-01'][1 + (7 * (b * 6007 % 1) ** 1.5)::INT % 7] END AS rule_id,
    CASE WHEN rule_id IN ('PCI-SAD-01', 'FDCPA-THREAT-01') THEN 'critical' WHEN rule_id IS NOT NULL THEN 'high' END AS severity,
    CASE WHEN status IN ('judged', 'unscreenable') THEN
        CASE WHEN $number < 20 THEN 'default 1 0a1b2c3d' ELSE 'default 2 4e5f6071' END END AS policy_version,
    CASE WHEN status IN ('judged', 'unscreenable') THEN 'builtin 1' END AS engine_version,
    CASE WHEN channel = 'voice' AND e * 7001 % 1 < 0.05 THEN ['FDCPA-MM-01'] ELSE []::VARCHAR[] END AS undetermined_rules,
    (d * 5003 % 1 < 0.015)::INT AS duplicates,
    1 AS attempts,
    platform_s,
    CASE WHEN status <> 'waiting' THEN delivery_s END AS delivery_s,
    CASE WHEN status = 'judged' THEN queue_s END AS queue_s,
    CASE WHEN status = 'judged' THEN start_s END AS start_s,
    CASE WHEN status = 'judged' THEN batch_s END AS batch_s,
    CASE WHEN status = 'judged' THEN fetch_s END AS fetch_s,
    CASE WHEN status = 'judged' THEN analysis_s END AS analysis_s,
    CASE WHEN broke THEN analysis_s * 0.6 END AS first_finding_s,
    CASE WHEN broke THEN remediation_s END AS remediation_s,
    CASE WHEN status = 'judged' THEN delivery_s + queue_s + start_s + batch_s + fetch_s + analysis_s END AS judged_s,
    CASE WHEN broke THEN delivery_s + queue_s + start_s + batch_s + fetch_s + analysis_s + remediation_s END AS flagged_s
FROM staged ORDER BY available_at
