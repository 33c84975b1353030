-- Facts are append-only: a repeat of the same key changes nothing, a newer revision is a new row.
-- The large tables have no index: each open reads its list of blocks, which grows with history, and a random id touches
-- blocks all over it. Their keys are in `warehouse.KEYS`, held by the one writer, who looks only into the rows' hours.
-- Where there is a key, it begins with what many rows share: an hour's part of the index lies together, and is small.
-- All times are UTC; partition_hour is the hour in which the recording became available.

CREATE TABLE IF NOT EXISTS recordings (
    recording_id    VARCHAR NOT NULL,
    partition_hour  TIMESTAMPTZ NOT NULL,
    source          VARCHAR NOT NULL,
    channel         VARCHAR NOT NULL,
    direction       VARCHAR,
    queue           VARCHAR,
    participants    VARCHAR[] NOT NULL,
    correlation_id  VARCHAR NOT NULL,
    started_at      TIMESTAMPTZ,
    ended_at        TIMESTAMPTZ,
    available_at    TIMESTAMPTZ NOT NULL,
    received_at     TIMESTAMPTZ NOT NULL,
    recorded_at     TIMESTAMPTZ NOT NULL,
    conversation_id VARCHAR,
    found_by_sweep  BOOLEAN DEFAULT FALSE,
    agent           VARCHAR
);
COMMENT ON TABLE recordings IS 'One row a recording that the platform announced.';
COMMENT ON COLUMN recordings.recording_id IS 'The platform''s id of the recording.';
COMMENT ON COLUMN recordings.partition_hour IS 'UTC hour in which the recording became available; the Dagster partition.';
COMMENT ON COLUMN recordings.source IS 'Platform adapter that announced it.';
COMMENT ON COLUMN recordings.channel IS 'voice, chat or email.';
COMMENT ON COLUMN recordings.direction IS 'inbound or outbound.';
COMMENT ON COLUMN recordings.queue IS 'Queue that served the interaction.';
COMMENT ON COLUMN recordings.participants IS 'Participant identifiers as keyed tokens (tok_...); never the raw values.';
COMMENT ON COLUMN recordings.correlation_id IS 'Id of the event delivery (webhook-id) that announced it.';
COMMENT ON COLUMN recordings.started_at IS 'Start of the interaction.';
COMMENT ON COLUMN recordings.ended_at IS 'End of the interaction.';
COMMENT ON COLUMN recordings.available_at IS 'When the platform said that the media became available.';
COMMENT ON COLUMN recordings.received_at IS 'When the receiver stored the event.';
COMMENT ON COLUMN recordings.recorded_at IS 'When this row was written.';
COMMENT ON COLUMN recordings.conversation_id IS 'The platform''s id of the conversation, where it announces those.';
COMMENT ON COLUMN recordings.agent IS 'The first participant who is an agent, as a keyed token (tok_...).';
COMMENT ON COLUMN recordings.found_by_sweep IS 'True where no event announced it: the reconcile sweep found it.';

CREATE TABLE IF NOT EXISTS media (
    recording_id    VARCHAR NOT NULL,
    engine_version  VARCHAR NOT NULL,
    partition_hour  TIMESTAMPTZ NOT NULL,
    size_bytes      BIGINT NOT NULL,
    sha256          VARCHAR NOT NULL,
    container       VARCHAR NOT NULL,
    codec           VARCHAR NOT NULL,
    audio_channels  INTEGER NOT NULL,
    duration_ms     BIGINT NOT NULL,
    complete        BOOLEAN NOT NULL,
    fetched_at      TIMESTAMPTZ NOT NULL
);
COMMENT ON TABLE media IS 'What was fetched and decoded of a recording. The media itself is not kept.';
COMMENT ON COLUMN media.recording_id IS 'The platform''s id of the recording.';
COMMENT ON COLUMN media.engine_version IS 'Engine that screened: code version, models and lexicon; or another engine''s address.';
COMMENT ON COLUMN media.partition_hour IS 'UTC hour in which the recording became available; the Dagster partition.';
COMMENT ON COLUMN media.size_bytes IS 'Bytes that arrived.';
COMMENT ON COLUMN media.sha256 IS 'Digest of the bytes that arrived.';
COMMENT ON COLUMN media.container IS 'Container that was recognised in the bytes.';
COMMENT ON COLUMN media.codec IS 'Codec of the audio.';
COMMENT ON COLUMN media.audio_channels IS 'Channels screened apart; 0 for text.';
COMMENT ON COLUMN media.duration_ms IS 'Decoded milliseconds, not what a header claims.';
COMMENT ON COLUMN media.complete IS 'False where the transfer or the container says that the end is missing.';
COMMENT ON COLUMN media.fetched_at IS 'When the last byte was screened.';

CREATE TABLE IF NOT EXISTS findings (
    recording_id    VARCHAR NOT NULL,
    engine_version  VARCHAR NOT NULL,
    finding_no      INTEGER NOT NULL,
    partition_hour  TIMESTAMPTZ NOT NULL,
    kind            VARCHAR NOT NULL,
    detector        VARCHAR NOT NULL,
    speaker         VARCHAR NOT NULL,
    start_ms        BIGINT NOT NULL,
    end_ms          BIGINT NOT NULL,
    confidence      DOUBLE NOT NULL,
    masked          VARCHAR NOT NULL,
    fingerprint     VARCHAR,
    phrase          VARCHAR,
    located         BOOLEAN NOT NULL,
    spans           BIGINT[][] NOT NULL
);
COMMENT ON TABLE findings IS 'What the detectors found, before any policy; a new policy is evaluated from these.';
COMMENT ON COLUMN findings.recording_id IS 'The platform''s id of the recording.';
COMMENT ON COLUMN findings.engine_version IS 'Engine that screened: code version, models and lexicon; or another engine''s address.';
COMMENT ON COLUMN findings.finding_no IS 'Number of the finding in its recording.';
COMMENT ON COLUMN findings.partition_hour IS 'UTC hour in which the recording became available; the Dagster partition.';
COMMENT ON COLUMN findings.kind IS 'card_number, card_length_number, card_verification_code, card_pin, government_id, health_id, bank_account, phone_number, email_address or phrase.';
COMMENT ON COLUMN findings.detector IS 'What found it: tones, digits, text or phrases.';
COMMENT ON COLUMN findings.speaker IS 'agent, customer, or the audio channel''s index.';
COMMENT ON COLUMN findings.start_ms IS 'Milliseconds from the start of the recording.';
COMMENT ON COLUMN findings.end_ms IS 'Milliseconds from the start of the recording.';
COMMENT ON COLUMN findings.confidence IS '0 to 1: how often such a finding is right, as measured in docs/benchmarks.md.';
COMMENT ON COLUMN findings.masked IS 'Card numbers at most BIN and last four (PCI DSS 4.0.1, 3.4.1), all else masked whole.';
COMMENT ON COLUMN findings.fingerprint IS 'Keyed digest of the number (PCI DSS 4.0.1, 3.5.1.1): the same wherever it is said again.';
COMMENT ON COLUMN findings.phrase IS 'Entry of the policy pack''s lexicon, for kind phrase.';
COMMENT ON COLUMN findings.located IS 'False where start and end are not those of what was found, only of where it must lie behind.';
COMMENT ON COLUMN findings.spans IS 'All places where its digits were said, [start, end] in milliseconds: what evidence must mask.';

CREATE TABLE IF NOT EXISTS screenings (
    recording_id        VARCHAR NOT NULL,
    engine_version      VARCHAR NOT NULL,
    partition_hour      TIMESTAMPTZ NOT NULL,
    channel             VARCHAR NOT NULL,
    direction           VARCHAR,
    queue               VARCHAR,
    started_at          TIMESTAMPTZ,
    called_time_zone    VARCHAR,
    correlation_id      VARCHAR NOT NULL,
    words_known         BOOLEAN NOT NULL,
    words_timed         BOOLEAN NOT NULL,
    speakers            VARCHAR[] NOT NULL,
    annotations         VARCHAR[],
    duration_ms         BIGINT,
    unscreenable_reason VARCHAR,
    screened_at         TIMESTAMPTZ NOT NULL
);
COMMENT ON TABLE screenings IS 'What a policy may know of a recording besides its findings: another policy is evaluated from both, without media.';
COMMENT ON COLUMN screenings.recording_id IS 'The platform''s id of the recording.';
COMMENT ON COLUMN screenings.engine_version IS 'Engine that screened: code version, models and lexicon.';
COMMENT ON COLUMN screenings.partition_hour IS 'UTC hour in which the recording became available; the Dagster partition.';
COMMENT ON COLUMN screenings.channel IS 'voice, chat or email.';
COMMENT ON COLUMN screenings.direction IS 'inbound, outbound or internal, where the platform says.';
COMMENT ON COLUMN screenings.queue IS 'Queue by which rules choose.';
COMMENT ON COLUMN screenings.started_at IS 'When the interaction began.';
COMMENT ON COLUMN screenings.called_time_zone IS 'IANA name of the called party''s time zone.';
COMMENT ON COLUMN screenings.correlation_id IS 'Id of the event delivery that led here.';
COMMENT ON COLUMN screenings.words_known IS 'Whether what was said or written was read.';
COMMENT ON COLUMN screenings.words_timed IS 'Whether those words have times.';
COMMENT ON COLUMN screenings.speakers IS 'Who has a turn in them.';
COMMENT ON COLUMN screenings.annotations IS 'What the platform noted about the recording; NULL where it notes nothing.';
COMMENT ON COLUMN screenings.duration_ms IS 'Decoded milliseconds; NULL where nothing was decoded.';
COMMENT ON COLUMN screenings.unscreenable_reason IS 'Why the media could not be screened, in one word.';
COMMENT ON COLUMN screenings.screened_at IS 'When the pass ended.';

CREATE TABLE IF NOT EXISTS verdicts (
    recording_id        VARCHAR NOT NULL,
    policy_version      VARCHAR NOT NULL,
    engine_version      VARCHAR NOT NULL,
    partition_hour      TIMESTAMPTZ NOT NULL,
    channel             VARCHAR NOT NULL,
    verdict             VARCHAR NOT NULL,
    violation_type      VARCHAR,
    rule_id             VARCHAR,
    severity            VARCHAR,
    confidence_score    DOUBLE,
    timestamp_offset_ms BIGINT,
    evidence_snippet    VARCHAR,
    recommended_action  VARCHAR NOT NULL,
    correlation_id      VARCHAR NOT NULL,
    unscreenable_reason VARCHAR,
    undetermined_rules  VARCHAR[] NOT NULL,
    judged_at           TIMESTAMPTZ NOT NULL,
    run_id              VARCHAR NOT NULL
);
COMMENT ON TABLE verdicts IS 'One verdict a recording, policy and engine, in the guide''s terms; the newest is served.';
COMMENT ON COLUMN verdicts.recording_id IS 'The platform''s id of the recording.';
COMMENT ON COLUMN verdicts.policy_version IS 'Policy pack, version and digest of its content.';
COMMENT ON COLUMN verdicts.engine_version IS 'Engine that screened: code version, models and lexicon; or another engine''s address.';
COMMENT ON COLUMN verdicts.partition_hour IS 'UTC hour in which the recording became available; the Dagster partition.';
COMMENT ON COLUMN verdicts.channel IS 'voice, chat or email.';
COMMENT ON COLUMN verdicts.verdict IS 'VIOLATION_DETECTED, REVIEW_REQUIRED, NO_VIOLATION, UNDETERMINED or UNSCREENABLE.';
COMMENT ON COLUMN verdicts.violation_type IS 'Type of violation, in the guide''s terms (PCI_MID_CAPTURE, ...).';
COMMENT ON COLUMN verdicts.rule_id IS 'Rule that decided the verdict.';
COMMENT ON COLUMN verdicts.severity IS 'Severity of the rule: low, medium, high or critical.';
COMMENT ON COLUMN verdicts.confidence_score IS 'Confidence of the finding that decided.';
COMMENT ON COLUMN verdicts.timestamp_offset_ms IS 'From the start of the recording to the finding.';
COMMENT ON COLUMN verdicts.evidence_snippet IS 'Evidence that another engine named, without its query; ours is in latest_verdicts once the masked clip is verified.';
COMMENT ON COLUMN verdicts.recommended_action IS 'ROUTE_TO_COMPLIANCE_QUEUE, CHECK_MEDIA, SUPPLY_MISSING_INPUT or NONE.';
COMMENT ON COLUMN verdicts.correlation_id IS 'Id of the event delivery that led here.';
COMMENT ON COLUMN verdicts.unscreenable_reason IS 'Why the media could not be screened, in one word.';
COMMENT ON COLUMN verdicts.undetermined_rules IS 'Rules that apply and could not be decided; most need a transcript.';
COMMENT ON COLUMN verdicts.judged_at IS 'When the recording was screened.';
COMMENT ON COLUMN verdicts.run_id IS 'Dagster run that judged.';

CREATE TABLE IF NOT EXISTS policies (
    policy_version VARCHAR PRIMARY KEY,
    content        VARCHAR NOT NULL,
    first_used_at  TIMESTAMPTZ NOT NULL
);
COMMENT ON TABLE policies IS 'Each policy pack that judged, whole: what a verdict rests on stays readable when the pack changes.';
COMMENT ON COLUMN policies.policy_version IS 'Policy pack, version and digest of its content.';
COMMENT ON COLUMN policies.content IS 'The pack as JSON; the start of its SHA-256 is the end of policy_version.';
COMMENT ON COLUMN policies.first_used_at IS 'When its first verdict was stored.';

CREATE TABLE IF NOT EXISTS violations (
    recording_id    VARCHAR NOT NULL,
    policy_version  VARCHAR NOT NULL,
    engine_version  VARCHAR NOT NULL,
    rule_id         VARCHAR NOT NULL,
    partition_hour  TIMESTAMPTZ NOT NULL,
    channel         VARCHAR NOT NULL,
    verdict         VARCHAR NOT NULL,
    violation_type  VARCHAR NOT NULL,
    severity        VARCHAR NOT NULL,
    detector        VARCHAR NOT NULL,
    speaker         VARCHAR NOT NULL,
    start_ms        BIGINT NOT NULL,
    confidence      DOUBLE NOT NULL,
    masked          VARCHAR NOT NULL,
    hits            INTEGER NOT NULL,
    finding_no      INTEGER,
    PRIMARY KEY (partition_hour, policy_version, engine_version, rule_id, recording_id)
);
COMMENT ON TABLE violations IS 'Every rule that a recording broke, with its best finding.';
COMMENT ON COLUMN violations.recording_id IS 'The platform''s id of the recording.';
COMMENT ON COLUMN violations.policy_version IS 'Policy pack, version and digest of its content.';
COMMENT ON COLUMN violations.engine_version IS 'Engine that screened: code version, models and lexicon; or another engine''s address.';
COMMENT ON COLUMN violations.rule_id IS 'Rule of the policy pack.';
COMMENT ON COLUMN violations.partition_hour IS 'UTC hour in which the recording became available; the Dagster partition.';
COMMENT ON COLUMN violations.channel IS 'voice, chat or email.';
COMMENT ON COLUMN violations.verdict IS 'VIOLATION_DETECTED or REVIEW_REQUIRED.';
COMMENT ON COLUMN violations.violation_type IS 'Type of violation, in the guide''s terms (PCI_MID_CAPTURE, ...).';
COMMENT ON COLUMN violations.severity IS 'Severity of the rule: low, medium, high or critical.';
COMMENT ON COLUMN violations.detector IS 'What found it: tones, digits, text, phrases, metadata (a fact about the recording) or external (another engine).';
COMMENT ON COLUMN violations.speaker IS 'agent, customer, or the audio channel''s index.';
COMMENT ON COLUMN violations.start_ms IS 'Milliseconds from the start of the recording.';
COMMENT ON COLUMN violations.confidence IS '0 to 1: how often such a finding is right, as measured in docs/benchmarks.md.';
COMMENT ON COLUMN violations.masked IS 'What was found, masked.';
COMMENT ON COLUMN violations.hits IS 'Findings that match the rule.';
COMMENT ON COLUMN violations.finding_no IS 'Number of the best finding in its recording; NULL where the rule fired on what was missing, or by another engine.';

CREATE TABLE IF NOT EXISTS remediations (
    recording_id    VARCHAR NOT NULL,
    rule_id         VARCHAR NOT NULL,
    action          VARCHAR NOT NULL,
    revision        INTEGER NOT NULL,
    partition_hour  TIMESTAMPTZ NOT NULL,
    status          VARCHAR NOT NULL,
    external_id     VARCHAR,
    error           VARCHAR,
    revised_at      TIMESTAMPTZ NOT NULL,
    run_id          VARCHAR NOT NULL,
    attempts        INTEGER DEFAULT 0,
    due_at          TIMESTAMPTZ
);
COMMENT ON TABLE remediations IS 'Each action for a violation: planned before the call, done, failed or dead after it.';
COMMENT ON COLUMN remediations.recording_id IS 'The platform''s id of the recording.';
COMMENT ON COLUMN remediations.rule_id IS 'Rule of the policy pack.';
COMMENT ON COLUMN remediations.action IS 'tag_recording, quarantine, create_work_item, supervisor_callback, notify or purge_after_review.';
COMMENT ON COLUMN remediations.revision IS 'Counts up; the highest is what holds.';
COMMENT ON COLUMN remediations.partition_hour IS 'UTC hour in which the recording became available; the Dagster partition.';
COMMENT ON COLUMN remediations.status IS 'planned, done, failed (tried again when due), waiting (for a review, or for a legal hold to end), dead (given up on) or dropped (the policy asks for it no more).';
COMMENT ON COLUMN remediations.external_id IS 'The platform''s id of the work item or callback.';
COMMENT ON COLUMN remediations.error IS 'Why the last try failed; masked.';
COMMENT ON COLUMN remediations.revised_at IS 'When this state was reached.';
COMMENT ON COLUMN remediations.run_id IS 'Dagster run that wrote the row; by hand: a person asked for another try.';
COMMENT ON COLUMN remediations.attempts IS 'Tries of this action so far that were answered or failed.';
COMMENT ON COLUMN remediations.due_at IS 'Not to be tried again before.';

CREATE TABLE IF NOT EXISTS stage_times (
    recording_id    VARCHAR NOT NULL,
    stage           VARCHAR NOT NULL,
    partition_hour  TIMESTAMPTZ NOT NULL,
    channel         VARCHAR NOT NULL,
    started_at      TIMESTAMPTZ NOT NULL,
    ended_at        TIMESTAMPTZ NOT NULL,
    seconds         DOUBLE NOT NULL
);
COMMENT ON TABLE stage_times IS 'Where a recording''s time went; stages are defined in docs/metrics.md.';
COMMENT ON COLUMN stage_times.recording_id IS 'The platform''s id of the recording.';
COMMENT ON COLUMN stage_times.stage IS 'Stage of the way from call end to flag; docs/metrics.md defines each.';
COMMENT ON COLUMN stage_times.partition_hour IS 'UTC hour in which the recording became available; the Dagster partition.';
COMMENT ON COLUMN stage_times.channel IS 'voice, chat or email.';
COMMENT ON COLUMN stage_times.started_at IS 'When the stage began.';
COMMENT ON COLUMN stage_times.ended_at IS 'When the stage ended.';
COMMENT ON COLUMN stage_times.seconds IS 'How long it took.';

CREATE TABLE IF NOT EXISTS evidence (
    recording_id    VARCHAR NOT NULL,
    engine_version  VARCHAR NOT NULL,
    finding_no      INTEGER NOT NULL,
    partition_hour  TIMESTAMPTZ NOT NULL,
    status          VARCHAR NOT NULL,
    reason          VARCHAR,
    uri             VARCHAR,
    start_ms        BIGINT,
    end_ms          BIGINT,
    sha256          VARCHAR,
    made_at         TIMESTAMPTZ NOT NULL,
    run_id          VARCHAR NOT NULL,
    PRIMARY KEY (partition_hour, engine_version, recording_id, finding_no)
);
COMMENT ON TABLE evidence IS 'The masked clip of each finding behind a broken rule, or why there is none.';
COMMENT ON COLUMN evidence.recording_id IS 'The platform''s id of the recording.';
COMMENT ON COLUMN evidence.engine_version IS 'Engine that screened: code version, models and lexicon; or another engine''s address.';
COMMENT ON COLUMN evidence.finding_no IS 'Number of the finding in its recording.';
COMMENT ON COLUMN evidence.partition_hour IS 'UTC hour in which the recording became available; the Dagster partition.';
COMMENT ON COLUMN evidence.status IS 'verified: masked, screened again, kept; refused: unsafe to show; unavailable: not made.';
COMMENT ON COLUMN evidence.reason IS 'Why there is no clip; ''text'': the finding''s masked number is the evidence.';
COMMENT ON COLUMN evidence.uri IS 'Name of the clip in the vault, among those of its recording; masked audio only.';
COMMENT ON COLUMN evidence.start_ms IS 'Start of the clip, milliseconds from the start of the recording.';
COMMENT ON COLUMN evidence.end_ms IS 'End of the clip, milliseconds from the start of the recording.';
COMMENT ON COLUMN evidence.sha256 IS 'Digest of the clip''s file.';
COMMENT ON COLUMN evidence.made_at IS 'When the clip was made or refused, or last tried.';
COMMENT ON COLUMN evidence.run_id IS 'Dagster run that made this row.';

CREATE TABLE IF NOT EXISTS sweeps (
    partition_hour  TIMESTAMPTZ NOT NULL,
    swept_at        TIMESTAMPTZ NOT NULL,
    at_source       INTEGER NOT NULL,
    judged          INTEGER NOT NULL,
    in_the_works    INTEGER NOT NULL,
    not_recorded    INTEGER NOT NULL,
    given_up        INTEGER NOT NULL,
    missing         INTEGER NOT NULL,
    found_by_sweep  INTEGER NOT NULL,
    run_id          VARCHAR NOT NULL,
    PRIMARY KEY (partition_hour, swept_at)
);
COMMENT ON TABLE sweeps IS 'What the platform said became available in an hour, beside what became of it here; one row a sweep.';
COMMENT ON COLUMN sweeps.partition_hour IS 'UTC hour in which it became available at the source.';
COMMENT ON COLUMN sweeps.swept_at IS 'When the platform was asked.';
COMMENT ON COLUMN sweeps.at_source IS 'Recordings (or conversations, where the platform lists those) at the source.';
COMMENT ON COLUMN sweeps.judged IS 'Of these: every recording has a verdict.';
COMMENT ON COLUMN sweeps.in_the_works IS 'Of these: waiting, or being worked on.';
COMMENT ON COLUMN sweeps.not_recorded IS 'Of these: conversations that the platform has no recording of.';
COMMENT ON COLUMN sweeps.given_up IS 'Of these: dead letters, each with its reason.';
COMMENT ON COLUMN sweeps.missing IS 'Of these: known here, and neither judged nor any of the above. Must be 0.';
COMMENT ON COLUMN sweeps.found_by_sweep IS 'Of these: no event announced them; this sweep or an earlier one did.';
COMMENT ON COLUMN sweeps.run_id IS 'Dagster run that asked.';

CREATE TABLE IF NOT EXISTS latency_by_hour (
    partition_hour   TIMESTAMPTZ NOT NULL,
    channel          VARCHAR NOT NULL,
    stage            VARCHAR NOT NULL,
    recordings       BIGINT NOT NULL,
    p50_s            DOUBLE NOT NULL,
    p95_s            DOUBLE NOT NULL,
    p99_s            DOUBLE NOT NULL,
    max_s            DOUBLE NOT NULL,
    within_objective BIGINT NOT NULL,
    PRIMARY KEY (partition_hour, channel, stage)
);
COMMENT ON TABLE latency_by_hour IS 'Exact percentiles of each stage by hour and channel (''all'': every channel). Never average these.';
COMMENT ON COLUMN latency_by_hour.partition_hour IS 'UTC hour in which the recording became available; the Dagster partition.';
COMMENT ON COLUMN latency_by_hour.channel IS 'voice, chat or email.';
COMMENT ON COLUMN latency_by_hour.stage IS 'Stage of the way from call end to flag; docs/metrics.md defines each.';
COMMENT ON COLUMN latency_by_hour.recordings IS 'Recordings that went through the stage.';
COMMENT ON COLUMN latency_by_hour.p50_s IS 'Median, seconds.';
COMMENT ON COLUMN latency_by_hour.p95_s IS '95th percentile, seconds.';
COMMENT ON COLUMN latency_by_hour.p99_s IS '99th percentile, seconds.';
COMMENT ON COLUMN latency_by_hour.max_s IS 'Longest, seconds.';
COMMENT ON COLUMN latency_by_hour.within_objective IS 'Recordings whose stage took no longer than the objective; meant for stage ''flagged''.';

CREATE TABLE IF NOT EXISTS violations_by_hour (
    partition_hour  TIMESTAMPTZ NOT NULL,
    channel         VARCHAR NOT NULL,
    rule_id         VARCHAR NOT NULL,
    violation_type  VARCHAR NOT NULL,
    severity        VARCHAR NOT NULL,
    verdict         VARCHAR NOT NULL,
    recordings      BIGINT NOT NULL,
    screened        BIGINT NOT NULL,
    PRIMARY KEY (partition_hour, channel, rule_id)
);
COMMENT ON TABLE violations_by_hour IS 'Recordings that broke each rule, by hour and channel, beside those that were screened.';
COMMENT ON COLUMN violations_by_hour.partition_hour IS 'UTC hour in which the recording became available; the Dagster partition.';
COMMENT ON COLUMN violations_by_hour.channel IS 'voice, chat or email.';
COMMENT ON COLUMN violations_by_hour.rule_id IS 'Rule of the policy pack.';
COMMENT ON COLUMN violations_by_hour.violation_type IS 'Type of violation, in the guide''s terms (PCI_MID_CAPTURE, ...).';
COMMENT ON COLUMN violations_by_hour.severity IS 'Severity of the rule: low, medium, high or critical.';
COMMENT ON COLUMN violations_by_hour.verdict IS 'VIOLATION_DETECTED or REVIEW_REQUIRED.';
COMMENT ON COLUMN violations_by_hour.recordings IS 'Recordings that broke the rule.';
COMMENT ON COLUMN violations_by_hour.screened IS 'Recordings of the channel in the hour of which the rule could be decided: the denominator.';

CREATE TABLE IF NOT EXISTS changed_hours (
    partition_hour TIMESTAMPTZ PRIMARY KEY,
    change_no      BIGINT NOT NULL
);
COMMENT ON TABLE changed_hours IS 'When each hour changed last, so that a snapshot is made of these hours only.';
COMMENT ON COLUMN changed_hours.partition_hour IS 'UTC hour in which the recordings became available; the Dagster partition.';
COMMENT ON COLUMN changed_hours.change_no IS 'Counts up with each transaction that stored something.';

CREATE TABLE IF NOT EXISTS schema_digest (digest VARCHAR PRIMARY KEY);
COMMENT ON TABLE schema_digest IS 'SHA-256 of the schema that this file was brought up to.';
COMMENT ON COLUMN schema_digest.digest IS 'One row.';

-- The evidence is the masked clip, as soon as it is verified; never the recording itself.
CREATE OR REPLACE VIEW latest_verdicts AS
SELECT v.* REPLACE (coalesce(e.uri, v.evidence_snippet) AS evidence_snippet)
FROM (
    FROM verdicts
    QUALIFY row_number() OVER (PARTITION BY partition_hour, recording_id ORDER BY judged_at DESC) = 1
) v
LEFT JOIN violations x
    ON x.partition_hour = v.partition_hour AND x.recording_id = v.recording_id AND x.rule_id = v.rule_id
    AND x.policy_version = v.policy_version AND x.engine_version = v.engine_version
LEFT JOIN evidence e
    ON e.partition_hour = v.partition_hour AND e.recording_id = v.recording_id AND e.finding_no = x.finding_no
    AND e.engine_version = v.engine_version AND e.status = 'verified';

CREATE OR REPLACE VIEW latest_remediations AS
SELECT * FROM remediations
QUALIFY row_number() OVER (PARTITION BY partition_hour, recording_id, rule_id, action ORDER BY revision DESC) = 1;

-- The proof that nothing was missed: the newest look at each hour.
CREATE OR REPLACE VIEW completeness_by_hour AS
FROM sweeps QUALIFY row_number() OVER (PARTITION BY partition_hour ORDER BY swept_at DESC) = 1;
