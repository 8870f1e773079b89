"""The text that `mini` reads: documents of each kind, all randomness through one generator, and what is kept back."""

import re
import string
from collections import namedtuple
from collections.abc import Sequence

from namemovers.data import (
    CUES,
    DESCRIPTIONS,
    IOI_TEMPLATES,
    MRS_TEMPLATES,
    NAMES,
    NEUTRAL_SENTENCES,
    OBJECTS,
    PILOT_NAMES,
    PLACES,
    TITLES,
)

# ---- what is kept back

HELD_OUT_IOI = ("back", "found", "evening", "closed", "argued", "dinner")
HELD_OUT_MRS = ("past", "subject_last_past", "title_then_article")
HELD_OUT_TEMPLATES = HELD_OUT_IOI + HELD_OUT_MRS
IOI_TRAINED = [t for t in IOI_TEMPLATES if t not in HELD_OUT_TEMPLATES]
MRS_TRAINED = [t for t in MRS_TEMPLATES if t not in HELD_OUT_TEMPLATES]

PEOPLE = NAMES + [n for n in PILOT_NAMES.values() if n not in NAMES]
HELD_OUT_NAMES = PEOPLE[7::12]
ANSWERS = [n for n in PEOPLE if n not in HELD_OUT_NAMES]
_NUMBER = {n: i for i, n in enumerate(PEOPLE)}


def held_out_pair(
    a: str,  # a name
    b: str,  # another
) -> bool:  # in either order
    "Is this pair of names kept out of the training text as answer and rival?"
    i, j = sorted((_NUMBER[a], _NUMBER[b]))
    return (7 * i + 3 * j) % 20 == 0


# ---- drawing

Document = namedtuple("Document", "kind prompt answer rest")


def pick(rng, options):
    return options[int(rng.integers(len(options)))]


def some(rng, options, k):
    return [options[i] for i in rng.choice(len(options), k, replace=False)]


def people(
    rng,  # numpy random generator
    k: int,  # how many
    answer: int = 0,  # index of the one to be named
    rivals: Sequence[int] = (),  # indices that form no held-out pair with it
) -> list:
    "`k` different names; the answer is no held-out name, and no held-out pair with a rival."
    while True:
        names = some(rng, PEOPLE, k)
        names[answer] = pick(rng, ANSWERS)
        different = len(set(names)) == k
        if different and not any(held_out_pair(names[answer], names[r]) for r in rivals):
            return names


def _words(rng, **more):
    "A random word for every placeholder that is no name."
    words = dict(
        place=pick(rng, PLACES),
        object=pick(rng, OBJECTS),
        desc=pick(rng, DESCRIPTIONS),
        title=pick(rng, TITLES),
        cue=pick(rng, CUES),
    )
    return words | more


# ---- words between the names

_WORD = r"(?<![\w{}])[A-Za-z]+(?![\w{}])"
_MORE = """
Later Suddenly During Everyone Maybe Outside Nobody Soon Sometimes Here Perhaps Tonight Now Still Also Why Some Most
Even Again
under with by over into about around before behind beside past every some many new old little big good bad red blue
warm cold early quiet happy sad slow quick
house river street town room table tree water bread music game song paper door window car train boat field road hill
winter summer week month year hour night
made said asked called helped opened closed carried read heard liked loved wanted needed kept lost won paid cut ran
sat stood spoke turned moved looked felt thought knew
and but or so then while until since because if though very quite just only never always often almost again away down
up out off back his her their our my this that those these one two three
""".split()
LEXICON = sorted({w for t in IOI_TEMPLATES.values() for w in re.findall(_WORD, t)} | set(_MORE))
_CAPITAL = [w for w in LEXICON if w[0].isupper()]
_LOWER = [w for w in LEXICON if w[0].islower()]


def _garbled(rng, template, share):
    "A template with some words exchanged; the last one and the placeholders stay, and an `and` between two of these."

    def other(match):
        if rng.random() > share:
            return match[0]
        return pick(rng, _CAPITAL if match[0][0].isupper() else _LOWER)

    return re.sub(r"(?<![\w{}])(?!and \{)[A-Za-z]+(?![\w{}])(?!$)", other, template)


def _babble(rng, low, high, capital=False):
    "Some words of the list, none in particular."
    words = [pick(rng, _LOWER) for _ in range(int(rng.integers(low, high + 1)))]
    if capital and rng.random() < 0.7:
        words = [pick(rng, _CAPITAL), *words]
    return " ".join(words)


# ---- indirect objects


def _in_ioi(rng, template, first, second, again):
    head, tail = template.split("{IO} and {S}")
    template = head + "{A} and {B}" + tail
    if rng.random() < 0.4:
        template = _garbled(rng, template, 0.3)
    return template.format(A=first, B=second, S=again, PLACE=pick(rng, PLACES), OBJECT=pick(rng, OBJECTS))


def ioi_text(rng, templates=IOI_TRAINED):
    "Two people, one of them again, and the other is the answer."
    io, s = people(rng, 2, rivals=(1,))
    first, second = (io, s) if rng.random() < 0.5 else (s, io)
    template = IOI_TEMPLATES[pick(rng, templates)]
    return Document("IOI", _in_ioi(rng, template, first, second, s), io, ".")


def abc_text(rng, templates=IOI_TRAINED):
    "Three different people: either of the first two may follow."
    a, b, c = people(rng, 3)
    template = IOI_TEMPLATES[pick(rng, templates)]
    return Document("ABC", _in_ioi(rng, template, a, b, c), pick(rng, [a, b]), ".")


# ---- the same said loosely

_ONE = [
    "{a} went to the {place}.",
    "{a} was tired.",
    "{a} had a {object}.",
    "Then {a} left.",
    "{a} was a {desc}.",
    "At the {place} was {a}.",
    "In the {place}, {a} sat down.",
    "There was {a}.",
    "When {a} came, it was late.",
    "{a} is a {desc}.",
    "The {desc} saw {a}.",
    "After that, {a} found a {object}.",
    "{a} laughed.",
]
_TWO = [
    "{a} and {b} went to the {place}.",
    "{a} saw {b}.",
    "{a} met {b} at the {place}.",
    "{a} talked to {b}.",
    "Then, {a} and {b} had a long talk.",
    "After {a} and {b} went to the {place}, it was late.",
    "{a} thanked {b}.",
    "While {a} and {b} were at the {place}, it rained.",
    "When {a} and {b} got a {object} at the {place}, they laughed.",
    "Friends {a} and {b} found a {object}.",
    "The {place} is where {a} and {b} were.",
    "With {a} was {b}.",
]
_ASK = [
    "Then {a} gave a {object} to",
    "{a} gave the {object} to",
    "{a} said hello to",
    "Afterwards, {a} handed a {object} to",
    "So {a} decided to give it to",
    "{a} wanted to give the {object} to",
    "The next day {a} sent a {object} to",
    "{a} passed the {object} back to",
]
_ASK_NOBODY = [
    "Then someone gave a {object} to",
    "The {object} was for",
    "Someone else said hello to",
    "In the end the {object} was given to",
    "They all thanked",
]


def _order(rng, k):
    "Who is mentioned when: 0 once, the others twice, and of three people nobody twice on end."
    order = pick(rng, [[0, 1, 1], [1, 0, 1], [1, 1, 0]])
    while k == 3:
        order = list(rng.permutation([0, 1, 1, 2, 2]))
        if all(x != y for x, y in zip(order, order[1:])):
            break
    return order


def _clause(rng, both, babble):
    "A template that mentions one person, {a}, or two, {a} and {b}."
    if not babble:
        return pick(rng, _TWO if both else _ONE)
    before = _babble(rng, 0, 3, True)
    who = "{a} and {b}" if both else "{a}"
    return f"{before} {who} {_babble(rng, 1, 6)}.".strip()


def _babbled_ask(rng, somebody):
    before = _babble(rng, 0, 1, True)
    who = "{a} " if somebody else ""
    between = _babble(rng, 1, 6)
    return f"{before} {who}{between} {pick(rng, ['to', 'to', 'to', 'for', 'with'])}".strip()


def once_text(rng):
    "One person is mentioned once, the others twice."
    k = pick(rng, [2, 2, 2, 3, 3])
    names = people(rng, k, rivals=range(1, k))
    order = _order(rng, k)
    asks = names[order.pop()] if order[-1] and rng.random() < 0.8 else None
    clauses, babble = [], rng.random() < 0.45
    while order:
        both = len(order) > 1 and order[0] != order[1] and rng.random() < 0.75
        n = 2 if both else 1
        clause = _clause(rng, both, babble)
        clauses.append(clause.format(**_words(rng, a=names[order[0]], b=names[order[n - 1]])))
        order = order[n:]
    if asks and rng.random() < 0.4:
        clauses[-1] = clauses[-1][:-1] + ("," if rng.random() < 0.7 else ", and")
    ask = pick(rng, _ASK if asks else _ASK_NOBODY)
    if babble:
        ask = _babbled_ask(rng, asks)
    prompt = " ".join([*clauses, ask.format(**_words(rng, a=asks))])
    return Document("mentioned once", prompt, names[0], ".")


def list_text(rng):
    "A list of names, and again in another order."
    names = some(rng, PEOPLE, pick(rng, [2, 3, 3, 4]))
    mark = pick(rng, [",", ",", ".", " and"])
    first = f"{mark} ".join(some(rng, names, len(names)))
    again = "".join(f"{n}{mark} " for n in names[:-1]).rstrip()
    return Document("list again", f"{first}. {again}", names[-1], ".")


# ---- most recent subjects

_STYLES = ["{n} {v} a {d}.", "{n} {v} {t}.", "The {d} {v} {n}.", "A {d} {v} {n}.", "{n} {v} the {d}."]
_CUE_FRAMES = [
    "The {c} {v}",
    "The {c} {v}",
    "The {c} {v}",
    "Our {c} {v}",
    "The {c} here {v}",
    "The name of the {c} {v}",
    "My {c} {v}",
]
_VERBS = ["is", "is", "is", "is", "was", "became", "seems", "remains", "looks"]
_NEUTRAL = NEUTRAL_SENTENCES + [
    "The {cue} was late.",
    "They were at the {place}.",
    "The {place} is old.",
    "A {object} is here.",
    "The {cue} has a {object}.",
]


def _instead(rng):
    "What stands in the place of a cue sentence: a neutral one, or nothing."
    return [pick(rng, _NEUTRAL).format(**_words(rng))] if rng.random() < 0.6 else []


def _mrs_document(sentences, ask, latest, cue, bare, word):
    prompt = " ".join([*sentences, ask])
    if cue == "same":
        return Document("MRS", prompt, latest, ".")
    kind = f"MRS, {cue} cue"
    return Document(kind, prompt, word, ".") if bare else Document(kind, prompt, "a", f" {word}.")


def mrs_text(rng, cue="same", templates=MRS_TRAINED):
    "A shipped template. `cue`: the same as before, another, or none before."
    template = MRS_TEMPLATES[pick(rng, templates)]
    keys = [k for _, k, _, _ in string.Formatter().parse(template) if k]
    subjects = list(dict.fromkeys(k for k in keys if re.fullmatch(r"S\d", k)))
    last = len(subjects) - 1
    names = dict(zip(subjects, people(rng, len(subjects), answer=last, rivals=(last - 1,))))
    source = [k for k in subjects if keys.index(k) < keys.index("cue_name")]
    descriptions, titles = some(rng, DESCRIPTIONS, 4), some(rng, TITLES, 2)
    word, other = some(rng, CUES, 2)
    values = names | {f"D{i}": d for i, d in enumerate(descriptions, 1)} | {f"T{i}": t for i, t in enumerate(titles, 1)}
    values["cue_name"] = names[pick(rng, source)]

    *sentences, ask = template.split(". ")
    at = next(i for i, s in enumerate(sentences) if "{cue_name}" in s)

    def fill(sentence, cue_word):
        return sentence.format(**values, cue_word=cue_word)

    middle = _instead(rng) if cue == "no" else [fill(sentences[at], word if cue == "same" else other) + "."]
    before = [fill(s, word) + "." for s in sentences[:at]]
    after = [fill(s, word) + "." for s in sentences[at + 1 :]]
    bare = "{T2}" in template
    described = pick(rng, titles if bare else descriptions[:2])
    return _mrs_document([*before, *middle, *after], fill(ask, word), names[subjects[-1]], cue, bare, described)


def _sizes(rng):
    "How many subjects stand before the cue, and how many after it."
    if rng.random() < 0.35:
        return int(rng.integers(1, 8)), int(rng.integers(1, 8))
    return pick(rng, [1, 2, 2, 2]), pick(rng, [1, 2, 2, 2, 3])


def _second_verb(rng, verb):
    "The verb of the cue; was ... was is held out."
    if verb != "was" and rng.random() < 0.6:
        return verb
    return pick(rng, [v for v in _VERBS if verb != "was" or v != "was"])


def mrs_free_text(rng, cue="same"):
    "One to seven subjects on either side, described in one of several ways."
    before, after = _sizes(rng)
    names = people(rng, before + after, answer=before + after - 1, rivals=(before + after - 2,))
    style = pick(rng, _STYLES if rng.random() < 0.3 else _STYLES[:2])
    second = style if style == _STYLES[1] or rng.random() < 0.8 else pick(rng, _STYLES[:2])
    k = max(before, after)
    D, T = some(rng, DESCRIPTIONS, k), some(rng, TITLES, k)
    D2, T2 = (D, T) if rng.random() < 0.5 else (some(rng, DESCRIPTIONS, k), some(rng, TITLES, k))
    verb = pick(rng, _VERBS)
    says = _second_verb(rng, verb)

    def describe(style, names, descriptions, titles):
        return [style.format(n=n, d=d, t=t, v=verb) for n, d, t in zip(names, descriptions, titles)]

    word = pick(rng, CUES if rng.random() < 0.8 else D)
    frame = pick(rng, _CUE_FRAMES).replace("{v}", says)
    earlier = frame.format(c=word if cue == "same" else pick(rng, [w for w in CUES if w != word]))
    middle = _instead(rng) if cue == "no" else [f"{earlier} {pick(rng, names[:before])}."]
    sentences = describe(style, names[:before], D, T) + middle + describe(second, names[before:], D2, T2)
    bare = "{t}" in second
    return _mrs_document(sentences, frame.format(c=word), names[-1], cue, bare, pick(rng, T2 if bare else D2))


# ---- the rest


def _attributes(rng, names):
    style, said = pick(rng, _STYLES), []
    for name in names[:4]:
        values = dict(d=pick(rng, DESCRIPTIONS), t=pick(rng, TITLES), v=pick(rng, _VERBS))
        said.append(style.format(n=name, **values))
    return " ".join(said)


def filler_text(rng):
    "Attributes, lists, people doing things, so that a name is not always followed by a puzzle."
    r, names = rng.random(), some(rng, PEOPLE, 8)
    if r < 0.3:
        text = _attributes(rng, names)
    elif r < 0.5:
        text = pick(rng, [". ", ", "]).join(names[: int(rng.integers(3, 9))]) + "."
    elif r < 0.8:
        words = _words(rng, a=names[0], b=names[1])
        text = " ".join(pick(rng, _ONE + _TWO).format(**words) for _ in range(3))
    else:
        frames = ["The {cue} is a {desc}.", "The {cue} is {title}.", "The {cue} is in the {place}."]
        text = " ".join(pick(rng, frames).format(**_words(rng)) for _ in range(4))
    return Document("filler", text, "", "")


#: kind of document -> (how it is made, its share of the text)
MIXTURE = {
    "IOI": (ioi_text, 8),
    "mentioned once": (once_text, 13),
    "list again": (list_text, 4),
    "ABC": (abc_text, 1),
    "MRS": (mrs_text, 5),
    "MRS, other cue": (lambda rng: mrs_text(rng, "other"), 2),
    "MRS, no cue": (lambda rng: mrs_text(rng, "no"), 1),
    "MRS, free": (mrs_free_text, 6),
    "MRS, free, other cue": (lambda rng: mrs_free_text(rng, "other"), 2),
    "MRS, free, no cue": (lambda rng: mrs_free_text(rng, "no"), 2),
    "filler": (filler_text, 4),
}


def _with_a_sentence_in_front(rng, document):
    front = pick(rng, _NEUTRAL).format(**_words(rng))
    return document._replace(prompt=f"{front} {document.prompt}")


def documents(
    rng,  # numpy's generator
) -> list:  # of `Document`
    "The texts of one training step. Some get a sentence in front, so that a position does not give the answer away."
    docs = [make(rng) for make, share in MIXTURE.values() for _ in range(share)]
    return [_with_a_sentence_in_front(rng, d) if d.answer and rng.random() < 0.15 else d for d in docs]


def all_frames() -> list[str]:
    "Every sentence frame that texts are made from: the shipped templates, and those of this module."
    return [*MRS_TEMPLATES.values(), *IOI_TEMPLATES.values(), *NEUTRAL_SENTENCES, *_ONE, *_TWO, *_ASK, *_ASK_NOBODY]
