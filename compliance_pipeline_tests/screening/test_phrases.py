"""Phrases in transcripts: how patterns are read, what counts as said, and how well the packaged lexicon does."""

import random
from collections import Counter
from time import process_time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compliance_pipeline.contracts.event import Channel
from compliance_pipeline.contracts.policy import Annotation, Detector, FindingKind, Phrase
from compliance_pipeline.contracts.verdict import VerdictValue
from compliance_pipeline.sandbox import calls
from compliance_pipeline.screening.phrases import Lexicon, PatternError, compile_lexicon, find_phrases
from compliance_pipeline.screening.policy import Facts, RuleOutcome, evaluate, load_policy
from compliance_pipeline.screening.text import screen_text
from compliance_pipeline.screening.transcripts import Transcript, Turn
from compliance_pipeline_tests.screening.phrase_texts import ORDINARY, ORDINARY_UNSEEN, SAID, Labelled, labelled

POLICY = load_policy()
PACKAGED = compile_lexicon(POLICY.phrases)


def lexicon(*patterns: str, unless: tuple[str, ...] = (), negatable: bool = True, answered: bool = False) -> Lexicon:
    phrase = Phrase(description="it", patterns=patterns, unless=unless, negatable=negatable, answered=answered)
    return compile_lexicon({"it": phrase})


def turns(*said: tuple[str, str]) -> Transcript:
    return Transcript(tuple(Turn(who, at * 1000, words) for at, (who, words) in enumerate(said)))


def is_found(words: str, lexicon: Lexicon) -> bool:
    return bool(find_phrases(turns(("agent", words)), lexicon))


NOTICE = lexicon("(this|the) call (is|may be) [being] (recorded|taped)")


@pytest.mark.parametrize(
    "words",
    [
        "this call is recorded",
        "THIS CALL IS RECORDED",
        "Hello. This call, um, is being... recorded!",
        "this this call is is recorded",
        "this call’s recorded",
        "This call\nis recorded",
        "this\u00a0call is\u200b recorded",
        "the call may be taped",
        "um uh this er call may uh be uh taped",
    ],
)
def test_a_phrase_is_found_however_it_is_written(words: str) -> None:
    assert is_found(words, NOTICE)


@pytest.mark.parametrize(
    "words",
    [
        "",
        "...",
        "this call is not recorded",
        "thiscall is recorded",
        "this calls is recorded",
        "this call recorded",
        "💬",
    ],
)
def test_what_does_not_hold_the_phrase_is_not_found(words: str) -> None:
    assert not is_found(words, NOTICE)


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("we will sue you", True),
        ("we'll sue you", True),
        ("we’ll sue you", True),
        ("We're gonna sue you", True),
        ("no, we will sue you", True),
        ("we will not sue you", False),
        ("we won't sue you", False),
        ("we wont sue you", False),
        ("I'm not saying we'll sue you", False),
        ("I never said that we will sue you", False),
        ("that is not fair. we will sue you", True),
    ],
)
def test_negations_and_contractions_are_understood(words: str, found: bool) -> None:
    assert is_found(words, lexicon("we (will|are going to) sue you")) is found


def test_a_notice_is_not_taken_back_by_a_negation_before_it() -> None:
    assert is_found("please do not worry this call is recorded", lexicon("this call is recorded", negatable=False))


def test_up_to_four_words_may_stand_in_a_gap_but_no_negation() -> None:
    gap = lexicon("calls ... recorded")
    assert is_found("calls to and from us recorded", gap)
    assert not is_found("calls to and from all of us recorded", gap)
    assert not is_found("calls are never recorded", gap)
    assert not is_found("we take calls. They recorded an album", gap)


def test_a_phrase_is_taken_back_only_by_an_exception_that_overlaps_it() -> None:
    card = lexicon("card number", unless=("library card",))
    assert not is_found("my library card number", card)
    assert is_found("not the library card, the card number of the visa", card)


def test_single_letters_may_be_spelled_and_repeated() -> None:
    assert is_found("the C.V.V. please", lexicon("c v v"))
    assert is_found("c v v", lexicon("c v v"))


def test_a_finding_holds_the_description_and_the_turns_times_and_never_the_words() -> None:
    transcript = Transcript((Turn("agent", 4_000, "This call is taped, Dana Smith.", 6_500),))
    [finding] = find_phrases(transcript, NOTICE)
    assert (finding.kind, finding.detector, finding.phrase) == (FindingKind.PHRASE, Detector.PHRASES, "it")
    assert (finding.speaker, finding.start_ms, finding.end_ms) == ("agent", 4_000, 6_500)
    assert finding.masked == "[it]"
    assert finding.located
    assert "Dana" not in repr(finding)


@pytest.mark.parametrize(
    ("between", "found"),
    [([], True), ([("customer", "uh huh")], True), ([("customer", "What did you say just now?")], False)],
)
def test_a_phrase_may_run_over_neighbouring_turns_of_one_speaker(between: list[tuple[str, str]], found: bool) -> None:
    findings = find_phrases(turns(("agent", "so this call is"), *between, ("agent", "being recorded")), NOTICE)
    assert bool(findings) is found
    if found:
        assert (findings[0].start_ms, findings[0].end_ms) == (0, 1000 * (len(between) + 1))


def test_a_phrase_does_not_run_from_one_speaker_to_the_other_or_over_a_long_silence() -> None:
    assert not find_phrases(turns(("agent", "this call is"), ("customer", "recorded")), NOTICE)
    apart = Transcript((Turn("agent", 0, "this call is"), Turn("agent", 31_000, "recorded")))
    assert not find_phrases(apart, NOTICE)


def test_each_place_is_found_once_and_in_order_of_the_turns() -> None:
    said = turns(("agent", "this call is recorded, the call is taped"), ("customer", "the call is taped"))
    assert [finding.speaker for finding in find_phrases(said, NOTICE)] == ["agent", "agent", "customer"]


def test_a_question_counts_as_asked_when_the_other_party_has_the_next_turn() -> None:
    asks = lexicon("your name", answered=True)
    assert find_phrases(turns(("agent", "and your name?"), ("customer", "Dana")), asks)
    assert not find_phrases(turns(("agent", "and your name?"), ("agent", "never mind"), ("agent", "go on")), asks)
    assert not find_phrases(turns(("agent", "and your name?")), asks)


@pytest.mark.parametrize(
    ("words", "found"),
    [("STOP", True), ("stop.", True), ("Please stop", True), ("Unsubscribe!", True), ("stop the delivery", False),
     ("when will it stop", False), ("the end", False)],
)  # fmt: skip
def test_one_word_means_no_more_only_as_a_whole_message(words: str, found: bool) -> None:
    names = {finding.phrase for finding in find_phrases(turns(("customer", words)), PACKAGED)}
    assert ("opt_out_keyword" in names) is found


@pytest.mark.parametrize(
    ("pattern", "says"),
    [
        ("(a", "is missing"),
        ("a)", "stray"),
        ("[a", "is missing"),
        ("a||b", "an alternative is empty"),
        ("()", "an alternative is empty"),
        ("[a]", "at least one word"),
        ("...", "at least one word"),
        ("", "an alternative is empty"),
        ("a.*b", "has no meaning"),
        ("Über", "has no meaning"),
    ],
)
def test_a_pattern_that_cannot_be_read_is_refused_by_phrase_and_fault(pattern: str, says: str) -> None:
    with pytest.raises(PatternError, match="phrase it: pattern") as refused:
        lexicon(pattern)
    assert says in str(refused.value)


@given(st.lists(st.tuples(st.sampled_from(["agent", "customer", "0"]), st.text(max_size=60)), max_size=6))
def test_any_transcript_can_be_read(said: list[tuple[str, str]]) -> None:
    for finding in find_phrases(turns(*said), PACKAGED):
        assert finding.start_ms <= finding.end_ms <= 1000 * len(said)


@given(st.sampled_from([s for said in SAID.values() for s in said]), st.randoms(use_true_random=False))
def test_case_punctuation_and_fillers_change_nothing(sentence: str, rng: random.Random) -> None:
    dressed = " ".join(
        rng.choice((word, word.upper(), f"um {word}", f"{word} uh")) for word in sentence.split()
    ) + rng.choice(("", ".", "!", " ..."))

    def names(words: str) -> Counter[str | None]:
        return Counter(
            finding.phrase for finding in find_phrases(turns(("agent", words), ("customer", "ok")), PACKAGED)
        )

    assert names(dressed) == names(sentence)


# The packaged lexicon, measured


def measured(unseen: bool) -> tuple[float, float, list[Labelled]]:
    """Precision, recall, and what is wrong."""
    counts: Counter[tuple[bool, bool]] = Counter()
    wrong = []
    for case in labelled():
        if case.unseen is unseen:
            found = any(finding.phrase == case.phrase for finding in find_phrases(case.transcript, PACKAGED))
            counts[case.holds, found] += 1
            if found is not case.holds:
                wrong.append(case)
    hits = counts[True, True]
    return hits / (hits + counts[False, True]), hits / (hits + counts[True, False]), wrong


def test_the_lexicon_finds_what_it_was_made_for() -> None:
    precision, recall, wrong = measured(unseen=False)
    assert precision >= 0.99, [case.sentence for case in wrong]
    assert recall >= 0.98, [case.sentence for case in wrong]


def test_the_lexicon_holds_up_on_sentences_that_it_was_not_made_for() -> None:
    precision, recall, wrong = measured(unseen=True)
    assert precision >= 0.95, [case.sentence for case in wrong]
    assert recall >= 0.84, [case.sentence for case in wrong]


def fired(transcript: Transcript) -> list[RuleOutcome]:
    """By the whole packaged policy, of a call that was announced as recorded and never paused."""
    found = find_phrases(transcript, PACKAGED) + screen_text(transcript)
    facts = Facts(Channel.VOICE, transcript_read=True, annotations=frozenset({Annotation.RECORDING_NOTICE}))
    return [outcome for outcome in evaluate(found, facts, POLICY) if outcome.fired]


@pytest.mark.parametrize(("talk", "most"), [(ORDINARY, 0.02), (ORDINARY_UNSEEN, 0.1)], ids=["seen", "unseen"])
def test_ordinary_talk_accuses_nobody_and_seldom_asks_for_review(
    talk: tuple[tuple[str, str], ...], most: float
) -> None:
    alarms = {}
    for who, words in talk:
        other = "customer" if who == "agent" else "agent"
        if outcomes := fired(turns((other, "All right."), (who, words), (other, "One moment, please."))):
            alarms[words] = outcomes
    accused = {
        words: outcome.rule.id
        for words, outcomes in alarms.items()
        for outcome in outcomes
        if outcome.rule.verdict is VerdictValue.VIOLATION_DETECTED
    }
    assert accused == {}
    assert len(alarms) <= most * len(talk), list(alarms)


@pytest.mark.parametrize("threat", calls._THREATS)
def test_the_sandboxs_threats_are_accused(threat: str) -> None:
    said = turns(("agent", calls._DEBT), ("customer", "I can not pay this month."), ("agent", threat))
    assert [outcome.rule.id for outcome in fired(said)] == ["FDCPA-THREAT-01"]


def seconds(text: str) -> float:
    transcript = Transcript((Turn("0", 0, text),))
    began = process_time()
    find_phrases(transcript, PACKAGED)
    return process_time() - began


@pytest.mark.parametrize(
    "words", ["stop calling ", "do not ", "we will ", "card pin ", "call you will record my data . "]
)
def test_time_grows_with_length_and_no_faster(words: str) -> None:
    short, long = words * 500, words * 5_000
    assert min(seconds(long) for _ in range(3)) < 30 * max(min(seconds(short) for _ in range(3)), 1e-3)
