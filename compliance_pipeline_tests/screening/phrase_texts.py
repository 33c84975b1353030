"""Labelled short transcripts for the packaged lexicon: sentences as people say them, dressed as recognisers and typists
write them. What is found in them is test_phrases'."""

import random
from collections.abc import Iterator
from dataclasses import dataclass

from compliance_pipeline.screening.transcripts import Transcript, Turn

SAID: dict[str, tuple[str, ...]] = {
    "recording_notice": (
        "just so you know this call is being recorded for training",
        "please be aware that calls are recorded and monitored",
        "your call may be monitored or recorded for quality assurance purposes",
        "for security reasons we record all of our calls",
        "I'm calling you on a recorded line today",
        "before we start I have to tell you that our conversation will be recorded",
        "all telephone calls may be recorded for your protection",
        "we'll be recording this conversation for quality",
        "I just need to let you know we're on a taped line",
        "to help us improve our service this call could be recorded",
        "hi this is Marta with Acme on a recorded line how are you",
        "this phone call is subject to recording and monitoring",
        "calls to this number are recorded",
        "I should mention the call's recorded is that okay",
        "thank you for calling Acme where all calls are recorded for quality and training purposes",
        "note that this conversation is recorded",
    ),
    "mm_debt_collector": (
        "this is Acme recovery and we are a debt collector",
        "my name's Lee and I'm a debt collector calling about your account",
        "this communication is from a debt collector",
        "I work for a debt collection agency called Acme",
        "please understand that this call is from a debt collector",
        "Acme is a licensed debt collection company",
    ),
    "mm_attempt": (
        "this is an attempt to collect a debt",
        "we are attempting to collect a debt that you owe to the clinic",
        "I am trying to collect on an outstanding debt",
        "the purpose of this call is to collect a debt",
        "this call is an effort to collect a balance",
        "we're calling in an attempt to recover the amount you owe",
    ),
    "mm_use": (
        "any information obtained will be used for that purpose",
        "anything you tell me will be used to collect the debt",
        "all information we obtain can be used for this purpose",
        "any info that you give us is going to be used for the purpose of collecting",
        "the information obtained from you will be used for that",
        "whatever you say may be used for debt collection purposes",
    ),
    "threat": (
        "if I don't see a payment tonight we will have you arrested",
        "we're going to garnish your wages starting Monday",
        "you're going to jail if you keep ignoring us",
        "our attorney will sue you for the whole amount",
        "the sheriff is going to come to your door",
        "we'll take your house",
        "I'm going to call your boss and tell him everything",
        "you will be arrested by the end of the week",
        "there is a warrant out for your arrest",
        "we are about to file a lawsuit against you",
        "they're gonna throw you in jail for this",
        "your bank account will be frozen tomorrow",
        "I will personally make sure you end up in prison",
        "your wages are going to be garnished",
        "pay now or we take you to court and you go to jail",
        "we know where you live",
        "we will seize your car on Friday",
        "you'll be sued",
    ),
    "profanity": (
        "listen to me you stupid idiot",
        "what the fuck is wrong with you",
        "that's bullshit and you know it",
        "you people are deadbeats",
        "just shut up and listen",
        "you're a liar and a thief",
        "don't be such an asshole",
        "go to hell",
    ),
    "payment_cue": (
        "can I take the card number please",
        "go ahead and read me the long number across the front of the card",
        "would you like to pay by credit card",
        "I'll process the payment for you now",
        "what's the expiry date",
        "I need your sixteen digit number",
        "I want to pay this bill with my visa",
        "what card would you like to use for the payment",
        "could you give me your debit card details",
        "put it on my mastercard",
    ),
    "security_code_cue": (
        "and the three digits on the back",
        "what's the security code",
        "I also need your cvv number",
        "can I get the three digit code on the back of your card",
        "my c v v is on the other side hold on",
        "the last three numbers on the signature strip please",
        "and the verification number on the reverse of your card",
    ),
    "pin_cue": (
        "could you tell me your pin",
        "please enter your four digit pin on the keypad",
        "my card pin is the same as my birthday",
        "what's the pin number for that debit card",
        "I'll give you the passcode for my card",
    ),
    "data_request": (
        "I want you to delete everything you have about me",
        "please erase my personal data from your systems",
        "can you send me a copy of all the data you hold on me",
        "I'd like to know what information you have stored about me",
        "I'm making a subject access request",
        "I withdraw my consent to marketing",
        "under GDPR I have the right to be forgotten",
        "I object to you using my data for profiling",
        "remove all of my details from your database",
        "stop selling my personal information",
        "you must correct the data you hold about me",
        "get rid of all my records",
        "I would like access to my personal data",
        "please close my account and wipe my data",
    ),
    "opt_out": (
        "stop calling me",
        "please take me off your calling list",
        "don't ever call this number again",
        "I don't want to receive any more calls from you",
        "put me on your do not call list",
        "quit texting me",
        "you need to remove my number from your list",
        "I'm asking you not to contact me anymore",
        "leave me alone",
        "how do I unsubscribe",
        "no more calls please",
        "this is the wrong number so stop ringing",
        "I've told you people to stop bothering me",
        "I want to opt out of these messages",
        "lose my number",
        "I no longer want to be contacted",
        "I do not wish to be called at home",
        "please quit with the calls",
    ),
    "special_category": (
        "I'm a practising Muslim so I can't do Fridays",
        "my husband and I are both men, my sexual orientation is my own business",
        "I am a member of the trade union",
        "we're Jewish so we don't work on Saturday",
        "I vote for the Labour party",
        "I'm gay and I don't want my parents to see the bill",
        "I had a DNA test done",
        "as a transgender woman I need my name changed",
        "my religion does not allow interest",
        "I always go to church on Sunday",
    ),
    "health_term": (
        "I was diagnosed with diabetes last year",
        "my doctor says I need surgery",
        "I'm on antidepressants at the moment",
        "I'm pregnant and due in May",
        "she has cancer",
        "I need a refill of my prescription",
        "I have an appointment with the oncologist",
        "my blood test results came in",
        "he had a stroke",
        "I'm calling about my lab results",
        "I've got asthma",
    ),
    "health_disclosure": (
        "your test results came back negative",
        "I can see that you were diagnosed with asthma in March",
        "your prescription for insulin is ready",
        "the doctor has prescribed a new medication for you",
        "you tested positive for the flu",
        "your biopsy shows nothing unusual",
        "your surgery is on Tuesday with doctor Lee",
        "according to your chart you are allergic to penicillin",
        "your latest blood results look fine",
    ),
    "asks_name": (
        "may I have your full name please",
        "who am I speaking with",
        "can you confirm your first and last name",
        "am I speaking to Mr Jones",
        "could I get your name",
    ),
    "asks_birth_date": (
        "and your date of birth",
        "can you verify your birthday for me",
        "when were you born",
        "what's your DOB",
        "could you just confirm the date of birth on the account",
    ),
}
"""By phrase: sentences that hold it."""

NOT_SAID: dict[str, tuple[str, ...]] = {
    "recording_notice": (
        "is this call being recorded",
        "I bought the record last week and it skips",
        "this call is not being recorded",
        "I recorded the match on my television",
        "your order has been recorded in our system",
        "can I record the serial number",
        "I'd like to record a complaint",
    ),
    "mm_debt_collector": ("I collect stamps", "I have no debt at all", "the bin collection is on Monday"),
    "mm_attempt": ("I tried to collect my parcel", "we attempted to deliver it", "I'm calling to collect my order"),
    "mm_use": ("the information on your website is wrong", "I used it for that", "we use it to send you the parcel"),
    "threat": (
        "we will not sue you",
        "nobody is going to arrest you",
        "we won't garnish your wages",
        "I'm not saying we'll sue you",
        "your phone will arrive on Friday",
        "we never take your house over this",
        "the warranty will be issued to you",
        "I'll take you through the steps",
        "you will go to the next screen",
        "I'm going to send you an email",
        "they can't arrest you for that",
        "we will take your order now",
        "he asked whether we are going to sue him",
        "I will have the technician call your home",
        "we'll charge your account on Monday",
        "you're going to receive a letter",
        "my son is suing nobody",
        "you can garnish the salad with parsley",
        "are you worried that we'll sue you, don't be",
    ),
    "profanity": (
        "that's a classic title",
        "I live in Scunthorpe",
        "I passed the assessment",
        "what a beautiful day",
        "the cockpit was closed",
        "hello this is Dick from sales",
    ),
    "payment_cue": (
        "my sim card is not working",
        "I got a birthday card from you",
        "the payment went through last week",
        "we never ask for your card number",
        "which number should I call",
        "I left my library card at home",
        "please pay attention to the instructions",
    ),
    "security_code_cue": (
        "my zip code is on the letter",
        "please enter the code that we sent to your phone",
        "the door code has changed",
        "my back hurts since Monday",
        "the discount code on the website does not work",
        "we never ask for the security code",
    ),
    "pin_cue": (
        "drop a pin on the map",
        "we will never ask for your pin",
        "the pin of the plug is bent",
        "I lost the safety pin",
        "pin the note to the board",
    ),
    "data_request": (
        "please don't delete my data",
        "my mobile data is used up",
        "can you remove the item from my order",
        "I need more data on my plan",
        "could you send me a copy of the invoice",
        "the information on the page is wrong",
        "delete the second line of the address",
        "I forgot my account number",
        "how much data do I have left",
        "I object to the price",
        "I want to cancel my order",
    ),
    "opt_out": (
        "could you stop the delivery",
        "please don't stop calling me until I answer",
        "you did not call me back",
        "why didn't you call me",
        "I can't stop the machine",
        "my phone won't stop ringing",
        "please remove the second lamp from my order",
        "don't call him, call me",
        "nobody contacted me",
        "I could not call you yesterday",
        "the list of items is wrong",
        "take me to the checkout",
        "I don't get it",
        "you never called me back",
        "I don't want to call the police",
        "don't you call me back at three",
        "do not send it to my old address",
    ),
    "special_category": (
        "is the shop open at Christmas",
        "I live in Church Street",
        "we had a party for my son",
        "the green one please",
        "I'm left waiting again",
        "the union of both lists",
        "my boss is a member of the gym",
    ),
    "health_term": (
        "the phone is in good condition",
        "I agree to the terms and conditions",
        "that was a stroke of luck",
        "the printer needs a new drum",
        "test the line please",
        "I'm sick of waiting",
        "the results of the survey",
        "he is a spin doctor",
    ),
    "health_disclosure": (
        "your parcel came back to us",
        "your results in the quiz are in",
        "have you been diagnosed with anything",
        "when your results come in we will call",
        "your order is ready",
        "your subscription is ready",
    ),
    "asks_name": ("what is the name of the product", "I can confirm your order", "your name is on the parcel"),
    "asks_birth_date": ("what's the delivery date", "happy birthday", "the date of the invoice"),
}
"""By phrase: sentences that sound alike and don't hold it (they may hold another)."""

MORE_SAID: dict[str, tuple[str, ...]] = {
    "recording_notice": (
        "a quick heads up that this conversation's being recorded for training",
        "for quality and security we're recording this call",
        "you should know that I'm recording our call today",
        "our lines are recorded",
        "before we continue please note calls with us are monitored",
        "good afternoon you've reached Acme on a recorded line",
    ),
    "mm_debt_collector": ("Acme Services is a debt collector", "I'm with a collection agency, we're debt collectors"),
    "mm_attempt": ("we're trying to collect a debt", "this is a call from a company attempting to collect a debt"),
    "mm_use": (
        "information you provide will be used for that purpose",
        "any information I get from you may be used to collect it",
    ),
    "threat": (
        "I'm gonna sue you personally",
        "you will be going to prison over this bill",
        "we'll send the police to your house tomorrow morning",
        "our lawyers are going to take everything you own",
        "you'll get arrested at work",
        "your house will be seized",
        "we are going to press charges if you don't pay",
        "I'll ruin your credit and your life",
        "the officers will be at your door tonight",
        "pay today or you'll end up behind bars",
    ),
    "profanity": ("oh for fuck's sake", "this is such bullshit", "you're an idiot", "kiss my ass"),
    "payment_cue": (
        "let me get your credit card information",
        "I'd rather pay with a debit card",
        "please tell me the numbers on the front of your card",
        "and when does the card expire",
        "are you ready with the card details",
    ),
    "security_code_cue": (
        "there are three numbers on the back of it",
        "can you read me the cvc",
        "the code on the back of my card is",
    ),
    "pin_cue": ("do you remember your pin", "type in the pin for the card please", "so my pin number is"),
    "data_request": (
        "please have all my information deleted",
        "I want to see all the data you have about me",
        "I demand that you erase me from your records",
        "send me everything you've got on file about me",
        "I no longer consent to you processing my data",
        "can you forget all my data",
        "I'm exercising my right of access",
    ),
    "opt_out": (
        "I said don't call here anymore",
        "could you please take this number off your list",
        "stop sending me these texts",
        "I'd like to be removed from the mailing list",
        "never contact me again",
        "please don't phone my house again",
        "I want these calls to stop",
        "do not text this number",
        "get me off this list",
    ),
    "special_category": (
        "I'm Hindu and I don't eat beef",
        "we're a gay couple",
        "I'm a union rep at the plant",
        "because of my faith I can't take the vaccine",
        "I've been a Republican all my life",
    ),
    "health_term": (
        "I've been having chemotherapy since May",
        "my son is autistic",
        "I take insulin every day",
        "I have a bad heart condition",
        "my surgery was postponed",
        "she's being treated for depression",
    ),
    "health_disclosure": (
        "the results of your biopsy are back and it's benign",
        "your HIV test was negative",
        "the doctor changed your medication",
        "it says here you were admitted with chest pain",
        "you've been prescribed metformin",
    ),
    "asks_name": ("and what's your full name", "please state your name", "may I ask who I'm speaking to"),
    "asks_birth_date": ("can I have your birth date please", "date of birth please", "I'll need your date of birth"),
}
MORE_NOT_SAID: dict[str, tuple[str, ...]] = {
    "recording_notice": (
        "do you record these calls",
        "are you recording me",
        "I have a recording of the noise",
        "call me when the record is out",
    ),
    "threat": (
        "we would never have you arrested",
        "I'm going to put you on hold",
        "you will be charged ten dollars",
        "the technician will come to your house on Friday",
        "we'll send you a new card",
        "he told me that you will sue me, is that so",
        "we aren't going to take you to court",
        "the court is next to the police station",
        "no one is going to jail",
    ),
    "profanity": ("it's a shih tzu", "the assistant will assess it", "hello"),
    "payment_cue": ("your card has been posted to you", "the memory card details are on the box", "I paid in cash"),
    "security_code_cue": ("what's the country code", "look on the back of the router", "we'll text you a code"),
    "pin_cue": ("pin it to the top of the page", "never tell anyone your pin"),
    "data_request": (
        "I need a copy of my bill",
        "how do I transfer the data to my new phone",
        "remove the discount from my account please",
        "the tracking information was deleted",
        "what information do you need from me",
    ),
    "opt_out": (
        "please call me back tomorrow",
        "don't call before nine",
        "the texts stopped coming",
        "I've never been contacted about it",
        "please don't email the invoice, post it",
        "he stopped calling his mother",
        "remove this number from the order and add the other one",
    ),
    "special_category": (
        "the parcel is at the church",
        "I left it at the party",
        "he speaks for the union square shop",
    ),
    "health_term": ("the car is in bad condition", "how is the weather", "the laptop died"),
    "health_disclosure": (
        "your application came back",
        "your treatment of customers is awful",
        "the test drive is booked",
    ),
    "asks_name": ("what is the street name", "the name of the agent was Tom"),
    "asks_birth_date": ("the date of the delivery please", "it's her birthday today"),
}
UNSEEN_SAID: dict[str, tuple[str, ...]] = {
    "recording_notice": (
        "this is a recorded call by the way",
        "I have to inform you that I am recording",
        "all conversations are recorded to protect you and us",
        "please remember your call will be monitored for training",
        "we record calls so that we can check our service",
        "the conversation we are about to have may be recorded",
    ),
    "mm_debt_collector": (
        "I am calling from the debt collection firm Acme",
        "as a debt collector I must tell you this",
    ),
    "mm_attempt": ("this message is an attempt to collect a debt", "I'm here to collect the debt you have with us"),
    "mm_use": ("information we get will be used for that", "anything you say can be used to collect this debt"),
    "threat": (
        "we are going to come to your job and embarrass you",
        "they will lock you up for fraud",
        "you're going to lose your house",
        "we will be suing you next week",
        "the police are going to arrest you",
        "I'll have your wages garnished",
        "a warrant will be issued in your name",
        "do you want to go to jail, because that's where you're going",
        "we'll take you to court on Monday",
    ),
    "profanity": (
        "don't give me that crap, you moron",
        "this is fucking ridiculous",
        "you lying thief",
        "what a bitch",
    ),
    "payment_cue": (
        "may I have the sixteen digits please",
        "you can pay by card right now over the phone",
        "what's your card number",
        "I'm going to take your payment now",
    ),
    "security_code_cue": ("the cvv please", "and the security code is four", "it's the three digit number on the back"),
    "pin_cue": ("go ahead and enter your pin", "what is your card's pin code", "do you know the pin for that card"),
    "data_request": (
        "kindly remove my data from your servers",
        "I request a copy of my personal information",
        "what personal data do you have on me",
        "I want to be forgotten, delete my profile",
        "please stop using my data for advertising",
        "I hereby revoke my consent",
        "erase all information related to me",
    ),
    "opt_out": (
        "please stop these calls",
        "don't you dare call me again",
        "remove us from your call list",
        "I don't want you to call me anymore",
        "stop emailing me",
        "do not contact me by phone",
        "I'm on the do not call registry",
        "cease all communication with me",
        "please unsubscribe me",
    ),
    "special_category": (
        "I'm a devout Christian",
        "my partner is transgender",
        "I converted to Islam last year",
        "our rabbi told us to wait",
        "I'm a lifelong Democrat",
        "the genetic test showed that I carry it",
    ),
    "health_term": (
        "I have high blood pressure",
        "they found a tumor",
        "my medication costs too much",
        "I had a miscarriage in March",
        "he suffers from epilepsy",
        "I was hospitalized for a week",
        "my therapist says I should rest",
    ),
    "health_disclosure": (
        "your lab results are in and they look good",
        "you were prescribed antibiotics last month",
        "your MRI shows a small tear",
        "I can see on your chart that you take insulin",
        "your pregnancy test is positive",
    ),
    "asks_name": ("could you tell me your full name", "can I take your name please", "your first and last name please"),
    "asks_birth_date": ("what's your birthday", "I need to verify your date of birth", "and what year were you born"),
}
UNSEEN_NOT_SAID: dict[str, tuple[str, ...]] = {
    "recording_notice": (
        "was our last call recorded",
        "I have a broken tape recorder",
        "he broke the world record",
        "could you record my complaint please",
    ),
    "threat": (
        "we can't sue you for that and we won't",
        "I'm going to take your details now",
        "you will be charged for delivery",
        "we'll come to your home to fix the line",
        "the judge show is on television",
        "they will take the old fridge",
        "we are going to have your order sent",
        "I'd never call your boss",
        "you're going to love the new house",
    ),
    "profanity": ("my dog is a bit stubborn", "please pass the message on", "that is a pity", "it's damp in here"),
    "payment_cue": (
        "the card with the flowers is nice",
        "your loyalty card number is on the app",
        "was the payment received",
    ),
    "security_code_cue": ("the code did not arrive", "it's in the back of the shop", "we will never ask for the cvv"),
    "pin_cue": ("the map has a pin on it", "don't tell me your pin"),
    "data_request": (
        "my data connection is slow",
        "please correct the spelling of the street",
        "I want a copy of the contract",
        "delete the draft please",
        "what data plan do I have",
        "you have my consent",
    ),
    "opt_out": (
        "can you stop the payment",
        "did you not call me yesterday",
        "put me through to sales",
        "I never got a text",
        "please call this number instead",
        "take the lamp off the order",
        "I won't call again today",
    ),
    "special_category": ("I was born in March", "a Catholic school is next door", "we vote on the colour tomorrow"),
    "health_term": (
        "the doctor's office is closed, wrong extension",
        "my patience is over",
        "the battery health is low",
    ),
    "health_disclosure": (
        "your order was prescribed by the contract",
        "your credit report shows two loans",
        "your refund is ready",
    ),
    "asks_name": ("my name is Dana", "the product's name is Lux"),
    "asks_birth_date": ("when was the order placed", "my birthday is in May"),
}
"""Written after the lexicon was mended on the sentences above. At first sight: precision 0.977, recall 0.860. Since
then only two false alarms were mended ('come to your home to fix the line', 'did you not call me')."""

AGENT_SAYS = frozenset(
    ("recording_notice", "mm_debt_collector", "mm_attempt", "mm_use", "threat", "profanity", "health_disclosure",
     "asks_name", "asks_birth_date")
)  # fmt: skip


@dataclass(frozen=True)
class Labelled:
    """A transcript, the phrase in question, and whether it is in there. unseen: not used to mend the lexicon."""

    phrase: str
    holds: bool
    transcript: Transcript
    sentence: str
    unseen: bool


def labelled(seed: int = 1) -> Iterator[Labelled]:
    """Each sentence as it is, and once as it may come out of a recogniser or a keyboard."""
    rng = random.Random(seed)
    lists = (
        (True, False, SAID),
        (True, False, MORE_SAID),
        (False, False, NOT_SAID),
        (False, False, MORE_NOT_SAID),
        (True, True, UNSEEN_SAID),
        (False, True, UNSEEN_NOT_SAID),
    )
    for holds, unseen, phrases in lists:
        for phrase, sentences in phrases.items():
            for sentence in sentences:
                for words in (sentence[0].upper() + sentence[1:] + ".", _dressed(sentence, rng)):
                    yield Labelled(phrase, holds, _transcript(phrase, words, rng), sentence, unseen)


def _dressed(sentence: str, rng: random.Random) -> str:
    words = sentence.split()
    for _ in range(2):
        words.insert(rng.randrange(len(words) + 1), rng.choice(("um", "uh,", "er", "um,")))
    if rng.random() < 0.3:
        at = rng.randrange(len(words))
        words.insert(at, words[at])
    text = " ".join(words)
    style = rng.randrange(4)
    if style == 0:
        text = text.lower().replace("'", "").replace(",", "")
    elif style == 1:
        text = text.upper()
    elif style == 2:
        text = text.replace("'", "’")
    return text + rng.choice(("", ".", "...", "!"))


def _transcript(phrase: str, words: str, rng: random.Random) -> Transcript:
    speaker, other = ("agent", "customer") if phrase in AGENT_SAYS else ("customer", "agent")
    turns = [Turn(other, 0, "Okay, one moment please."), Turn(speaker, 4_000, "Right then.")]
    parts = words.split()
    if len(parts) > 6 and rng.random() < 0.3:
        half = len(parts) // 2
        turns += [
            Turn(speaker, 6_000, " ".join(parts[:half]), 8_000),
            *([Turn(other, 8_500, "uh huh", 9_000)] if rng.random() < 0.5 else []),
            Turn(speaker, 9_500, " ".join(parts[half:]), 12_000),
        ]
    else:
        turns.append(Turn(speaker, 6_000, words, 11_000))
    turns.append(Turn(other, 14_000, "All right, and the rest is as we said before?"))
    return Transcript(tuple(turns))
