"""Kinds whose answer is one of the labels given: tickets, sentiment, language."""

from random import Random

from local_models.exam.kinds.kind import Filling, Kind, one_of
from local_models.exam.tables import NAMES, PRODUCTS
from local_models.exam.verdicts import Names

_TICKETS = {
    "billing": (
        "I was charged twice for the {product} this month.", "The invoice for the {product} shows the wrong amount.",
        "Why did you take {n} dollars from my credit card?", "Please send me the receipt for my last payment.",
        "My card was declined when I tried to pay for the {product}.", "I do not understand the fee of {n} dollars on my bill.",
        "You promised a discount of {n} percent, but I paid the full price.", "Can I pay the invoice by bank transfer?",
    ),
    "technical": (
        "The app crashes when I open the settings page.", "My {product} does not switch on any more.",
        "I get error {n} whenever I upload a file.", "The {product} does not connect to the wireless network.",
        "The website shows a blank page since the update.", "After the update the {product} freezes every {n} minutes.",
        "The software does not start on my new laptop.", "The screen of the {product} flickers all the time.",
    ),
    "shipping": (
        "Where is my parcel? It should have arrived {n} days ago.", "The tracking page says that my {product} is still in the warehouse.",
        "The courier left my {product} at the wrong house.", "When will my {product} be delivered?",
        "Can you send the parcel to another street?", "My delivery has been late for {n} days.",
        "The package with the {product} never arrived.", "Do you deliver the {product} to Norway?",
    ),
    "account": (
        "I forgot my password and cannot log in.", "Please change the email address of my user profile.",
        "How do I delete my account?", "My login is blocked after {n} wrong passwords.",
        "I want to change my user name.", "Please add {name} as a second user to my profile.",
        "The password reset link does not reach me.", "How can I turn on two-factor login?",
    ),
}  # fmt: skip
_CLOSINGS = ("", " Please help.", " Thanks, {name}", " Can you help me?", " This is urgent.")


def _ticket(rng: Random) -> Filling:
    label = rng.choice(sorted(_TICKETS))
    text = (rng.choice(_TICKETS[label]) + rng.choice(_CLOSINGS)).format(
        product=rng.choice(PRODUCTS), n=rng.randint(3, 40), name=rng.choice(NAMES)
    )
    labels = sorted(_TICKETS)
    rng.shuffle(labels)
    return Filling(
        slots={"text": text, "labels": ", ".join(labels)},
        truth=Names(accepted=(label,), rivals=tuple(_TICKETS)),
        constraint=one_of(*labels, name="category"),
    )


TICKET = Kind(
    name="classify_ticket",
    title="sort a customer's message into one of four given categories",
    max_tokens=32,
    chance=0.25,
    fill=_ticket,
    wordings={
        "": (
            "Classify this support ticket as one of: {labels}.\n\nTicket: {text}\nCategory:",
            "Which category fits the customer's message best: {labels}? Answer with the category only.\n\n{text}",
            "Categories: {labels}\nMessage: {text}\nReply with exactly one category.",
            "{text}\n\nSort this message into one of these categories: {labels}. One word.",
            "Assign a label from [{labels}] to the following ticket.\n{text}",
            'Ticket: "{text}"\nPick the right queue ({labels}) and reply with its name only.',
        )
    },
)

_THINGS = (
    "film", "hotel", "restaurant", "book", "{product}", "concert", "service", "meal", "course",
    "flight", "new update",
)  # fmt: skip
_GOOD = (
    "I loved the {thing}.", "The {thing} was wonderful from start to end.", "What a fantastic {thing}!",
    "The {thing} is excellent, and I would buy it again.", "I am very happy with the {thing}.",
    "The {thing} was better than anything I expected.", "Great {thing}, I recommend it to everybody.",
    "We enjoyed the {thing} very much.", "The {thing} made my day.", "Best {thing} I have had in years.",
)  # fmt: skip
_BAD = (
    "I hated the {thing}.", "The {thing} was terrible from start to end.", "What an awful {thing}!",
    "The {thing} is useless, and I want my money back.", "I am very disappointed with the {thing}.",
    "The {thing} was worse than anything I expected.", "Horrible {thing}, I warn everybody about it.",
    "We did not enjoy the {thing} at all.", "The {thing} ruined my day.", "Worst {thing} I have had in years.",
)  # fmt: skip
_GOOD_TAILS = (
    "", " The staff were friendly and helpful.", " It was worth every cent.", " I will come back.",
    " Five stars.", " Everything worked at once.", " Thank you so much!",
)  # fmt: skip
_BAD_TAILS = (
    "", " The staff were rude and slow.", " It was a waste of money.", " I will never come back.",
    " One star.", " Nothing worked.", " Avoid it.",
)  # fmt: skip


def _sentiment(rng: Random) -> Filling:
    good = rng.random() < 0.5
    thing = rng.choice(_THINGS).format(product=rng.choice(PRODUCTS))
    text = rng.choice(_GOOD if good else _BAD).format(thing=thing)
    text += rng.choice(_GOOD_TAILS if good else _BAD_TAILS)
    labels = ["positive", "negative"]
    rng.shuffle(labels)
    return Filling(
        slots={"text": text, "labels": " or ".join(labels)},
        truth=Names(
            accepted=("positive" if good else "negative",),
            rivals=("positive", "negative", "neutral", "mixed"),
        ),
        constraint=one_of(*labels, name="sentiment"),
    )


SENTIMENT = Kind(
    name="sentiment",
    title="say whether a short review is positive or negative",
    max_tokens=32,
    chance=0.5,
    fill=_sentiment,
    wordings={
        "": (
            "Is this review {labels}?\n\n{text}",
            "Classify the sentiment of this review as {labels}: {text}",
            "Review: {text}\nSentiment ({labels}):",
            "{text}\n\nIs the sentiment {labels}? Answer with one word.",
            'What is the sentiment of "{text}"? Reply with {labels} only.',
            "Decide whether the following text is {labels}. One word.\nText: {text}",
            "Label the sentiment of the text below as {labels}.\n\n{text}",
        )
    },
)

_SENTENCES = {
    "English": (
        ("The train is late", "My sister lives in the city", "We are going to the market", "The children play outside",
         "I have bought a new car", "The shop opens at nine"),
        ("today", "because it is raining", "and nobody knows why", "every morning", "with my friends", "again"),
    ),
    "Spanish": (
        ("El tren llega tarde", "Mi hermana vive en la ciudad", "Vamos al mercado", "Los niños juegan fuera",
         "He comprado un coche nuevo", "La tienda abre a las nueve"),
        ("hoy", "porque está lloviendo", "y nadie sabe por qué", "todas las mañanas", "con mis amigos", "otra vez"),
    ),
    "French": (
        ("Le train est en retard", "Ma sœur habite en ville", "Nous allons au marché", "Les enfants jouent dehors",
         "J'ai acheté une nouvelle voiture", "Le magasin ouvre à neuf heures"),
        ("aujourd'hui", "parce qu'il pleut", "et personne ne sait pourquoi", "tous les matins", "avec mes amis", "encore une fois"),
    ),
    "German": (
        ("Der Zug kommt zu spät", "Meine Schwester wohnt in der Stadt", "Wir gehen auf den Markt", "Die Kinder spielen draußen",
         "Ich habe ein neues Auto gekauft", "Der Laden öffnet um neun"),
        ("heute", "weil es regnet", "und niemand weiß warum", "jeden Morgen", "mit meinen Freunden", "schon wieder"),
    ),
    "Italian": (
        ("Il treno è in ritardo", "Mia sorella abita in città", "Andiamo al mercato", "I bambini giocano fuori",
         "Ho comprato una macchina nuova", "Il negozio apre alle nove"),
        ("oggi", "perché piove", "e nessuno sa perché", "ogni mattina", "con i miei amici", "di nuovo"),
    ),
}  # fmt: skip


def _language(rng: Random) -> Filling:
    language = rng.choice(sorted(_SENTENCES))
    heads, tails = _SENTENCES[language]
    text = f"{rng.choice(heads)} {rng.choice(tails)}"
    if rng.random() < 0.7:
        text += f". {rng.choice(heads)} {rng.choice(tails)}"
    return Filling(
        slots={"text": text + "."},
        truth=Names(
            accepted=(language,), rivals=(*_SENTENCES, "Portuguese", "Dutch", "Catalan", "Latin")
        ),
        constraint=one_of(*_SENTENCES, name="language"),
    )


LANGUAGE = Kind(
    name="language",
    title="name the language of a short text, of five",
    max_tokens=48,
    chance=0.2,
    fill=_language,
    wordings={
        "": (
            "Which language is this text written in?\n\n{text}",
            'What language is "{text}"? Answer with the language only.',
            "Identify the language: {text}",
            "{text}\n\nName the language of this text in one word.",
            "Text: {text}\nLanguage:",
            "Is the following English, Spanish, French, German or Italian? One word.\n{text}",
            "Detect the language of the text below. Reply with its English name.\n\n{text}",
        )
    },
)

KINDS = (TICKET, SENTIMENT, LANGUAGE)
