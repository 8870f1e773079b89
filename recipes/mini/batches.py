"""What a step of the training reads: texts and random tokens as rows, with what losses and hints must know of them."""

import numpy as np
import torch

from namemovers.data import CUES

from .texts import PEOPLE

NAME_WEIGHT = 10.0  # of a name that was mentioned before
ANSWER_WEIGHT = 10.0
_NAMED = ("IOI", "ABC", "mentioned once", "list again", "MRS")


def _tensor(a):
    return torch.from_numpy(np.ascontiguousarray(a))


class Reader:
    "Turns texts into rows of tokens with what the loss and the hints need to know about them."

    def __init__(self, tokenizer):
        self.tokenizer, self.vocabulary = tokenizer, tokenizer.get_vocab_size()
        self.person = np.full(self.vocabulary, -1)  # token -> number of the person, with or without a space
        for i, name in enumerate(PEOPLE):
            for text in (name, " " + name):
                self.person[self._token(text)] = i
        self.word = self.person.copy()  # the same, with cue words as well
        for i, cue in enumerate(CUES):
            self.word[self._token(" " + cue)] = len(PEOPLE) + i
        self.spaced = np.array([self._token(" " + n) for n in PEOPLE])
        self.name_tokens = np.flatnonzero(self.person >= 0)

    def _token(self, text):
        ids = self.tokenizer.encode(text).ids
        if len(ids) != 1:
            many = f"{text!r} is {len(ids)} tokens and must be one"
            raise ValueError(f"tokenizer: {many}; train the tokenizer on more text.")
        return ids[0]

    def read(self, docs: list) -> list:
        "Documents as three batches of about equal length, so that little is padding."
        prompts = self.tokenizer.encode_batch([d.prompt for d in docs])
        rests = self.tokenizer.encode_batch([(f" {d.answer}" if d.answer else "") + d.rest for d in docs])
        rows = list(zip(docs, [p.ids for p in prompts], [r.ids for r in rests]))
        rows.sort(key=lambda row: len(row[1]) + len(row[2]))
        cuts = [0, int(0.54 * len(rows)), int(0.83 * len(rows)), len(rows)]
        return [self.batch(rows[a:b]) for a, b in zip(cuts, cuts[1:]) if b > a]

    def batch(self, rows: list) -> dict:
        """One padded batch of (document, tokens of its prompt, tokens of what follows).

        - `x`, `y`, `weight` [row, position]: tokens, those that come next, how much each of these counts
        - `name`, `earlier` [row, position], [row, query, key]: the person's token; earlier copies of a name or cue
        - `row`, `end`, `target` [named]: which rows name somebody, their END, the answer's token
        - `others` [named, token], `answer`, `repeated` [named, position]: tokens of the other people; where the answer
          stands; later mentions of people"""
        ids, length, end = self._padded(rows)
        x, y = ids[:, :-1], ids[:, 1:]
        at = np.arange(x.shape[1])
        who, next_who, word = self.person[x], self.person[y], self.word[x]
        back = at[:, None] > at
        is_word = (word >= 0)[:, :, None]
        earlier = (word[:, :, None] == word[:, None]) & is_word & back
        weight = self._weights(rows, who, next_who, back, length, end)

        named = np.array([i for i, (d, _, _) in enumerate(rows) if d.kind in _NAMED], int)
        last = end[named]
        before_end = at <= last[:, None]
        answer = who[named] == next_who[named, last][:, None]
        repeated = earlier.any(-1)[named] & (who[named] >= 0)
        found = dict(
            x=x,
            y=y,
            weight=weight,
            name=np.where(who >= 0, self.spaced[who], 0),
            earlier=earlier,
            row=named,
            end=last,
            target=y[named, last],
            others=self._others(who, y, named, last),
            answer=answer & before_end,
            repeated=repeated & before_end,
        )
        return {k: _tensor(v) for k, v in found.items()}

    def _padded(self, rows):
        "Tokens after the end-of-text token [row, position]; how many are to be predicted; where END is, or -1."
        T = max(len(prompt) + len(rest) for _, prompt, rest in rows)
        ids = np.zeros((len(rows), T + 1), int)
        length, end = np.zeros(len(rows), int), np.full(len(rows), -1)
        for i, (document, prompt, rest) in enumerate(rows):
            whole = prompt + rest
            ids[i, 1 : 1 + len(whole)] = whole
            length[i] = len(whole) + 1  # the end of the text is to be predicted too
            if document.answer:
                end[i] = len(prompt)
        return ids, length, end

    def _weights(self, rows, who, next_who, back, length, end):
        """How much each prediction counts [row, position]: nothing in padding, more for a name that was mentioned.

        The name in an MRS cue weighs nothing, since nothing can tell it."""
        T = who.shape[1]
        at = np.arange(T)
        upto = back | np.eye(T, dtype=bool)
        same = (next_who[:, :, None] == who[:, None]) & (next_who >= 0)[:, :, None]
        known = (same & upto).any(-1)
        before = at < np.where(end < 0, T, end)[:, None]
        cue = np.array([d.kind.startswith("MRS") for d, _, _ in rows])[:, None]
        weight = (at < length[:, None]).astype(np.float32)
        weight[known & before & ~cue] = NAME_WEIGHT
        weight[known & before & cue] = 0
        asked = np.flatnonzero(end >= 0)
        weight[asked, end[asked]] = ANSWER_WEIGHT
        return weight

    def _others(self, who, y, named, last):
        "The tokens of the people in a text other than its answer [named, token]."
        others = np.zeros((len(named), self.vocabulary), bool)
        for row, i, end in zip(others, named, last):
            mentioned = [n for n in set(who[i, : end + 1]) if n >= 0]
            row[self.spaced[mentioned]] = True
            row[y[i, end]] = False
        return others


# ---- random tokens that come again


def _lookup(rng, draw, pool, T):
    "Random values by random keys, and again in another order: a row, and which of its tokens count."
    k = min(int(rng.integers(3, 9)), (T - 2) // 4)
    pairs = list(zip(rng.choice(pool, k, replace=False), draw(k)))
    row = [0]
    for key, value in pairs + [pairs[j] for j in rng.permutation(k)]:
        row += [key, value]
    row += draw(T)
    counts = np.zeros(T + 1, bool)
    counts[2 * k + 2 : 4 * k + 1 : 2] = True
    return row, counts


def _period(rng, draw, T):
    "A segment that comes again and again."
    row = [0] + draw(int(rng.integers(0, 9)))
    segment = draw(int(rng.integers(3, 17)))
    counts = np.zeros(T + 1, bool)
    counts[len(row) + len(segment) + 1 :] = True
    while len(row) <= T:
        row += segment
    return row, counts


def _segments(rng, draw, T):
    "Segments that come again once, after a gap or none."
    row, counts = [0], np.zeros(T + 1, bool)
    while len(row) <= T:
        segment = draw(int(rng.integers(3, 17)))
        row += draw(int(rng.integers(0, 9))) + segment + draw(int(rng.integers(0, 6)))
        counts[len(row) + 1 : len(row) + len(segment)] = True
        row += segment
    return row, counts


def random_rows(
    rng,  # numpy random generator
    reader: Reader,  # for the vocabulary
    R: int,  # rows
    T: int,  # positions
) -> dict:
    """Rows of random tokens with repeats; only what is a repeat counts.

    `induction` [row, query, key] marks, for each query that counts, what followed earlier copies of its token."""
    ids, counts = np.zeros((R, T + 1), int), np.zeros((R, T + 1), bool)
    for i in range(R):
        pool = reader.name_tokens if rng.random() < 0.25 else np.arange(1, reader.vocabulary)
        kind = rng.random()

        def draw(k):
            return list(rng.choice(pool, k))

        if kind < 0.08:
            row, counts[i] = _lookup(rng, draw, pool, T)
        elif kind < 0.4:
            row, counts[i] = _period(rng, draw, T)
        else:
            row, counts[i] = _segments(rng, draw, T)
        ids[i] = row[: T + 1]
    x, y = ids[:, :-1], ids[:, 1:]
    weight = counts[:, 1:].astype(np.float32)
    same = (x[:, :, None] == x[:, None]) & np.tril(np.ones((T, T), bool), -1)
    induction = np.zeros_like(same)
    induction[:, :, 1:] = same[:, :, :-1] & (weight > 0)[:, :, None]
    found = dict(x=x, y=y, weight=weight, earlier=same, induction=induction)
    return {k: _tensor(v) for k, v in found.items()}
