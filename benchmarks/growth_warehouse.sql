-- $first, $last, $per_hour, $end: recordings first..last (0 is the newest), so many an hour, the last hour begins at $end.
CREATE OR REPLACE TEMP TABLE made AS
SELECT
    i, md5(i::VARCHAR) AS recording_id, hash(i) AS h,
    $end::TIMESTAMPTZ - to_hours(i // $per_hour) AS partition_hour,
    partition_hour + to_microseconds((3600e6 * (i % $per_hour) / $per_hour)::BIGINT) AS available_at,
    available_at + INTERVAL 4 SECOND AS judged_at,
    CASE WHEN h % 100 < 70 THEN 'voice' WHEN h % 100 < 92 THEN 'chat' ELSE 'email' END AS channel,
    (h // 100) % 100 < 5 AS broke,
    'default 1 0a1b2c3d' AS policy_version, 'builtin-1+digits-1+gate-1+lexicon-1' AS engine_version,
    md5((i // 50)::VARCHAR) AS run_id, 'msg_' || md5('c' || i) AS correlation_id,
    ['billing', 'collections', 'retention', 'support', 'sales', 'complaints', 'claims', 'vip'][1 + ((h // 10000) % 8)::INT] AS queue
FROM range($first, $last) t(i) ORDER BY i DESC;
INSERT INTO recordings BY NAME
SELECT recording_id, partition_hour, 'guide' AS source, channel, 'inbound' AS direction, queue, ['tok_' || left(md5('p' || i), 16)] AS participants,
    correlation_id, available_at - INTERVAL 5 MINUTE AS started_at, available_at - INTERVAL 12 SECOND AS ended_at, available_at,
    available_at AS received_at, judged_at AS recorded_at, printf('tok_agent%04d', (h % 400)::INT) AS agent FROM made;
INSERT INTO screenings BY NAME
SELECT recording_id, engine_version, partition_hour, channel, 'inbound' AS direction, queue, available_at - INTERVAL 5 MINUTE AS started_at,
    correlation_id, true AS words_known, channel = 'voice' AS words_timed, ['agent', 'customer'] AS speakers, []::VARCHAR[] AS annotations,
    300000 + (h % 100000)::BIGINT AS duration_ms, judged_at AS screened_at FROM made;
INSERT INTO media BY NAME
SELECT recording_id, engine_version, partition_hour, 4800000 + (h % 100000)::BIGINT AS size_bytes, md5('a' || i) || md5('b' || i) AS sha256,
    'wav' AS container, 'pcm_mulaw' AS codec, 2 AS audio_channels, 300000 + (h % 100000)::BIGINT AS duration_ms, true AS complete, judged_at AS fetched_at
FROM made;
INSERT INTO findings BY NAME
SELECT recording_id, engine_version, n AS finding_no, partition_hour, CASE WHEN n = 0 AND broke THEN 'card_number' ELSE 'phrase' END AS kind,
    'phrases' AS detector, 'agent' AS speaker, 1000 * n + (h % 200000)::BIGINT AS start_ms, start_ms + 2000 AS end_ms, 0.97 AS confidence,
    '4000 00** **** 0002' AS masked, CASE WHEN kind = 'card_number' THEN md5('f' || i) END AS fingerprint,
    CASE WHEN kind = 'phrase' THEN 'recording_notice' END AS phrase, true AS located, [[start_ms, end_ms]] AS spans
FROM made, range(4) t(n) WHERE channel = 'voice' OR (n = 0 AND broke);
INSERT INTO verdicts BY NAME
SELECT recording_id, policy_version, engine_version, partition_hour, channel,
    CASE WHEN broke THEN 'VIOLATION_DETECTED' ELSE 'NO_VIOLATION' END AS verdict, CASE WHEN broke THEN 'PCI_MID_CAPTURE' END AS violation_type,
    CASE WHEN broke THEN 'PCI-PAN-01' END AS rule_id, CASE WHEN broke THEN 'critical' END AS severity,
    CASE WHEN broke THEN 0.97 END AS confidence_score, CASE WHEN broke THEN h % 200000 END AS timestamp_offset_ms,
    CASE WHEN broke THEN 'ROUTE_TO_COMPLIANCE_QUEUE' ELSE 'NONE' END AS recommended_action, correlation_id, []::VARCHAR[] AS undetermined_rules,
    judged_at, run_id FROM made;
INSERT INTO violations BY NAME
SELECT recording_id, policy_version, engine_version, 'PCI-PAN-01' AS rule_id, partition_hour, channel, 'VIOLATION_DETECTED' AS verdict,
    'PCI_MID_CAPTURE' AS violation_type, 'critical' AS severity, 'digits' AS detector, 'customer' AS speaker, h % 200000 AS start_ms,
    0.97 AS confidence, '4000 00** **** 0002' AS masked, 1 AS hits, 0 AS finding_no FROM made WHERE broke;
INSERT INTO remediations BY NAME
SELECT recording_id, 'PCI-PAN-01' AS rule_id, "action", revision, partition_hour, CASE revision WHEN 1 THEN 'planned' ELSE 'done' END AS status,
    judged_at + to_seconds(revision) AS revised_at, run_id
FROM made, (VALUES ('tag_recording'), ('create_work_item')) a("action"), (VALUES (1), (2)) r(revision) WHERE broke;
INSERT INTO evidence BY NAME
SELECT recording_id, engine_version, 0 AS finding_no, partition_hour, 'verified' AS status, 'https://evidence.test/' || recording_id AS uri,
    h % 200000 AS start_ms, start_ms + 20000 AS end_ms, md5('s' || i) AS sha256, judged_at AS made_at, run_id
FROM made WHERE broke AND channel = 'voice';
INSERT INTO stage_times BY NAME
SELECT recording_id, stage, partition_hour, channel, 1.0 + (h % 1000)::DOUBLE / 500 AS seconds, available_at AS started_at,
    available_at + to_microseconds((1e6 * seconds)::BIGINT) AS ended_at
FROM made, (VALUES ('platform'), ('delivery'), ('queue'), ('start'), ('batch'), ('fetch'), ('analysis'), ('judged')) s(stage);
INSERT INTO stage_times BY NAME
SELECT recording_id, stage, partition_hour, channel, available_at AS started_at, judged_at AS ended_at, 4.0 AS seconds
FROM made, (VALUES ('first_finding'), ('remediation'), ('flagged')) s(stage) WHERE broke;
INSERT INTO latency_by_hour
SELECT partition_hour, channel, stage, count(*), 1.5, 2.5, 2.9, 3.0, count(*) FROM made, (VALUES ('delivery'), ('queue'), ('start'), ('batch'),
    ('fetch'), ('analysis'), ('judged'), ('flagged')) s(stage) GROUP BY ALL;
INSERT INTO changed_hours SELECT DISTINCT partition_hour, (epoch(partition_hour) // 3600)::BIGINT FROM made;
