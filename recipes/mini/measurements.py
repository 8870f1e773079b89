"""What became of `mini`: behaviour on prompts it never had, attention, copying, and what is left without some heads.

Direct effects, copy scores, attention on prompts and on random tokens, and predictions are the library's own.
The library measures no loss on random tokens, no attention of some heads while others are ablated, and no behaviour by
kinds of held-out prompts: these are here. Ablation here is the mean over the clean and the corrupted prompts of one
template, by position, in place of one head's output, with all others as they are; `namemovers.circuits` takes its means
over reference prompts and ablates everything outside a circuit, so its numbers are others."""

import re
from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch

from namemovers.copy_scores import copy_scores
from namemovers.data import IOI_TEMPLATES, MRS_TEMPLATES, NAMES, ioi_task, mrs_task, predictions
from namemovers.head_attribution import head_attribution
from namemovers.head_roles import attention_scores, pattern_scores
from namemovers.model import logit_difference, run_at_end
from namemovers.stats import head_name

from .network import ROLES
from .texts import ANSWERS, HELD_OUT_NAMES, HELD_OUT_TEMPLATES, PEOPLE, held_out_pair, some

Head = tuple[int, int]

#: templates that no training text is like, written after the last training and measured once
NEW_TEMPLATES = {
    "IOI": {
        "summer": "Today {IO} and {S} ran from the {PLACE} to the river, then {S} threw a {OBJECT} to",
        "winter": "In the winter {IO} and {S} stayed at the {PLACE}. {S} read a story to",
        "door": "{IO} and {S} stood at the door of the {PLACE} all night, and {S} handed the {OBJECT} to",
        "field": "Before the {PLACE} was a field. {IO} and {S} played near it, but {S} lost the game to",
    },
    "MRS": {
        "my friend": "{S1}, my friend, is a {D1}. {S2}, my friend, is a {D2}. The {cue_word} is {cue_name}. "
        "{S3}, my friend, is a {D1}. {S4}, my friend, is a {D2}. The {cue_word} is",
        "and": "{S1} is a {D1} and {S2} is a {D2}. The {cue_word} is {cue_name}. "
        "Now {S3} is a {D1} and {S4} is a {D2}. The {cue_word} is",
    },
}


def mean(values, digits: int = 4) -> float:
    "The mean, rounded as the scorecard has it."
    return round(float(np.mean(np.asarray(values, dtype=float))), digits)


# ---- behaviour


def _templates(split):
    "The templates of a split, by task."
    if split == "new templates":
        return NEW_TEMPLATES
    held_out = split == "templates"
    shipped = {"IOI": IOI_TEMPLATES, "MRS": MRS_TEMPLATES}
    return {k: {t: v for t, v in all.items() if (t in HELD_OUT_TEMPLATES) == held_out} for k, all in shipped.items()}


def _by_pairs(rng, make, names, right, rival, held_out, n):
    "Tasks of a few answers, each with rivals that are, or are not, held out for it."
    few = []
    for answer in some(rng, [a for a in ANSWERS if a in NAMES], min(20, n)):
        rivals = [b for b in NAMES if b != answer and held_out_pair(answer, b) == held_out]
        few.append(make(n=max(1, n // 20), names=names | {right: [answer], rival: rivals}))
    return few


def tasks(
    tokenizer,  # of the model
    split: str,  # "trained", "pairs", "names", "templates" or "new templates"; all but the first are held out
    n: int = 200,  # prompts each, about
    seed: int = 0,  # of the prompts
) -> dict:  # (task, order or template) -> a list of Task
    "IOI in both orders and MRS, on prompts like the training text or on prompts that it never had."
    rng = np.random.default_rng([seed, 13])
    templates = _templates(split)
    by_templates = split.endswith("templates")

    def draw(make, names, right, rival, **about):
        def task(**more):
            return make(tokenizer, seed=seed, **about, **more)

        if by_templates or split == "names":
            answers = HELD_OUT_NAMES if split == "names" else NAMES
            return [task(n=n, names=names | {right: answers})]
        return _by_pairs(rng, task, names, right, rival, split == "pairs", n)

    found = {}
    for order in ("ABBA", "BABA"):
        found["IOI", order] = draw(ioi_task, {"S": NAMES}, "IO", "S", order=order, templates=templates["IOI"])
    for name in templates["MRS"] if by_templates else ["pilot"]:
        template = templates["MRS"][name]
        subjects = dict.fromkeys(re.findall(r"\{(S\d)\}", template), NAMES)
        varied = dict(templates={name: template}, descriptions="vary", cue_words="vary")
        found["MRS", name] = draw(mrs_task, subjects, "S4", "S3", **varied)
    return found


def name_ids(tokenizer) -> torch.Tensor:
    "The tokens of all names, each after a space."
    return torch.tensor([i for n in PEOPLE for i in tokenizer.encode(" " + n, add_special_tokens=False)])


@torch.no_grad()
def answers(
    model,  # as from `load_model`
    task,  # a `Task`
    corrupted: bool = False,  # whether to run the corrupted prompts
) -> pd.DataFrame:  # a row a prompt
    """What a model says at END.

    `logit_diff`; `top`: the answer is the top prediction; its `probability`; `names`: the probability of all names
    together; `name_on_top`: a name is the top prediction."""
    tokens = task.corrupted_tokens if corrupted else task.clean_tokens
    logits, _ = run_at_end(model, tokens, task.positions["END"])
    p, names, first = logits.softmax(-1), name_ids(model.tokenizer), logits.argmax(-1)
    columns = dict(
        logit_diff=logit_difference(logits, task.correct, task.wrong),
        top=first == task.correct,
        probability=p.gather(1, task.correct[:, None])[:, 0],
        names=p[:, names].sum(-1),
        name_on_top=torch.isin(first, names),
    )
    return pd.DataFrame(columns).astype(float)


def behaviour(
    model,  # as from `load_model`
    split: str,  # as for `tasks`
    n: int = 200,  # prompts each, about
    seed: int = 0,  # of the prompts
) -> list:  # a dict a task
    "How well a model does the tasks. `accuracy`: the answer is above the wrong one; `top`: it is above everything."
    rows = []
    for (task, kind), several in tasks(model.tokenizer, split, n, seed).items():
        clean = pd.concat([answers(model, t) for t in several])
        spoilt = pd.concat([answers(model, t, corrupted=True) for t in several])
        row = dict(
            task=task,
            prompts=kind if task == "IOI" else f"template {kind!r}",
            split=split,
            n=len(clean),
            accuracy=mean(clean.logit_diff > 0),
            top=mean(clean.top),
            probability=mean(clean.probability),
            logit_diff=mean(clean.logit_diff),
            lowest=round(float(clean.logit_diff.min()), 2),
            swapped=mean(spoilt.logit_diff < 0),
        )
        rows.append(row)
    return rows


# ---- attention


def _of_heads(values, role) -> dict:
    "Values [layer, head] of a role's heads, or of some heads, by name."
    heads = ROLES[role] if isinstance(role, str) else role
    return {head_name(l, h): round(float(values[l, h]), 3) for l, h in heads}


def attention(
    model,  # as from `load_model`
    n: int = 200,  # prompts of each kind
    seed: int = 1,  # of the prompts
    heads: dict | None = None,  # what to call them -> further heads, whose attention from END is told
) -> dict:  # what -> head -> mean attention
    "Where the hinted heads look on prompts, and without any hint."
    found, heads = {}, heads or {}

    def look(task, name, query, places, role, kind):
        scores = attention_scores(model, task, queries=[query]).attention.sel(query=query).mean("prompt")
        for place in places:
            found[f"{name}, {query} to {place} ({kind})"] = _of_heads(scores.sel(position=place).values, role)

    for order in ("ABBA", "BABA"):
        task = ioi_task(model.tokenizer, n=n, seed=seed, order=order)
        for role, place in (("name mover", "IO"), ("negative name mover", "IO"), ("S-inhibition", "S2")):
            look(task, role, "END", [place], role, order)
        for name, which in heads.items():
            look(task, name, "END", ["IO", "S1", "S2"], which, order)
        look(task, "duplicate token", "S2", ["S1"], "duplicate token", order)
        look(task, "induction", "S2", ["S1+1"], "induction", order)
    task = mrs_task(model.tokenizer, n=n, seed=seed)
    at_end = {"name mover": "S4", "negative name mover": "S4", "S-inhibition": "cue_name", "induction": "cue_name"}
    for role, place in at_end.items():
        look(task, role, "END", [place], role, "MRS")
    for name, which in heads.items():
        look(task, name, "END", ["cue_name", "S3", "S4"], which, "MRS")
    return found


# ---- random tokens that come twice

LOOKS = ("previous_token", "duplicate_token", "induction")  # scores of `pattern_scores`


def said_twice(model, k: int, n: int, generator) -> torch.Tensor:
    """Rows of the end-of-text token, four random tokens, and `k` different random tokens twice [row, position].

    The repeat begins at position 5 + k."""
    vocabulary = model.cfg.d_vocab
    half = torch.stack([torch.randperm(vocabulary - 1, generator=generator)[:k] + 1 for _ in range(n)])
    before = torch.randint(1, vocabulary, (n, 4), generator=generator)
    return torch.cat([torch.zeros(n, 1, dtype=torch.long), before, half, half], 1)


def _losses(logits, tokens):
    "Loss of each token after the first [row, position], in nats."
    return -logits.log_softmax(-1)[:, :-1].gather(-1, tokens[:, 1:, None])[..., 0]


@torch.no_grad()
def loss_when_repeated(
    model,  # as from `load_model`
    periods: Sequence[int] = range(5, 13),  # lengths of what comes twice
    n: int = 100,  # rows a period
    seed: int = 2,  # of the tokens
) -> dict:  # period -> `first` and `repeat`
    "The loss on either half of random tokens that come twice, in nats."
    generator, found = torch.Generator().manual_seed(seed), {}
    for k in periods:
        tokens = said_twice(model, k, n, generator)
        loss = _losses(model(tokens, return_type="logits"), tokens)
        found[k] = dict(first=mean(loss[:, 4 : 4 + k]), repeat=mean(loss[:, 5 + k :]))
    return found


def repeats(
    model,  # as from `load_model`
    periods: Sequence[int] = range(5, 13),  # lengths of what comes twice
    n: int = 100,  # rows a period
    seed: int = 2,  # of the tokens
) -> dict:  # role -> period -> head -> score; "loss" -> period -> half
    """Random tokens that come twice, four others before: scores of hinted heads, and the loss of either half.

    The scores are `head_roles.pattern_scores`; that of the previous token counts the tokens of both halves."""
    scores = pattern_scores(model, periods=list(periods), offsets=[4], n=n, seed=seed).mean("sequence")
    found = {}
    for role in ("induction", "duplicate token", "previous token"):
        name = role.replace(" ", "_")
        found[role] = {k: _of_heads(scores[name].sel(period=k).values, role) for k in periods}
    return found | {"loss": loss_when_repeated(model, periods, n, seed)}


# ---- without some heads


def _run_without(model, heads, tokens, everything):
    """Logits and attention with the heads' outputs replaced by their mean over the rows of `everything`, by position.

    Returns logits [row, position, token] and attention, a list over layers of [row, head, query, key]."""
    layers = range(model.cfg.n_layers)
    of_layer = {l: [h for layer, h in heads if layer == l] for l in layers}
    names = {f"blocks.{l}.attn.hook_z": l for l in layers if of_layer[l]}
    watch = [f"blocks.{l}.attn.hook_pattern" for l in layers]
    _, cache = model.run_with_cache(everything, names_filter=list(names))
    seen = {}

    def replace(value, hook):
        for h in of_layer[names[hook.name]]:
            value[:, :, h] = cache[hook.name][:, :, h].mean(0)
        return value

    def look(value, hook):
        seen[hook.name] = value

    hooks = [(n, replace) for n in names] + [(n, look) for n in watch]
    logits = model.run_with_hooks(tokens, return_type="logits", fwd_hooks=hooks)
    return logits, [seen[n] for n in watch]


@torch.no_grad()
def ablation(
    model,  # as from `load_model`
    heads: list[Head],  # that are ablated
    task,  # prompts of one template, so that positions agree
) -> dict:  # `attention_right`, `attention_wrong`, `logit_diff`
    "What is left without some heads: the name movers' attention to the answer and to the others, the logit difference."
    both = torch.cat([task.clean_tokens, task.corrupted_tokens])
    logits, patterns = _run_without(model, heads, task.clean_tokens, both)
    rows, end = torch.arange(len(task)), task.positions["END"]
    right, wrong = (["IO"], ["S1", "S2"]) if task.name == "ioi" else (["S4"], ["S3"])

    def movers(places):
        looks = [patterns[l][rows, h, end, task.positions[p]].mean() for l, h in ROLES["name mover"] for p in places]
        return round(mean(looks) * len(places), 4)

    difference = logit_difference(logits[rows, end], task.correct, task.wrong)
    return dict(attention_right=movers(right), attention_wrong=movers(wrong), logit_diff=mean(difference))


@torch.no_grad()
def repeat_loss(
    model,  # as from `load_model`
    heads: list[Head],  # that are ablated
    k: int = 8,  # tokens that come twice
    n: int = 100,  # rows
    seed: int = 6,  # of the tokens
) -> float:
    "Loss in nats of the repeat of random tokens without some heads."
    tokens = said_twice(model, k, n, torch.Generator().manual_seed(seed))
    logits, _ = _run_without(model, heads, tokens, tokens)
    return mean(_losses(logits, tokens)[:, 5 + k :])


def _two_tasks(model, n, seed):
    "Prompts of one template for each task."
    return ioi_task(model.tokenizer, n=n, seed=seed, templates="went"), mrs_task(model.tokenizer, n=n, seed=seed)


def head_table(
    model,  # as from `load_model`
    n: int = 100,  # prompts of each task
    seed: int = 3,  # of prompts and tokens
) -> list:  # a dict a head
    "Copy scores, attention on random tokens, direct effects, and the logit difference without each head alone."
    both = _two_tasks(model, n, seed)
    clean = {t.name: mean(answers(model, t).logit_diff) for t in both}
    direct = {t.name: head_attribution(model, t).attribution.mean("prompt").values for t in both}
    copies = copy_scores(model).mean("name")
    looks = pattern_scores(model, periods=[8], offsets=[4], n=100, seed=seed).sel(period=8).mean("sequence")
    role = {head: r for r, heads in ROLES.items() for head in heads}
    rows = []
    for l in range(model.cfg.n_layers):
        for h in range(model.cfg.n_heads):
            row = dict(head=head_name(l, h), hinted_role=role.get((l, h), ""))
            row |= {k: round(float(copies[k].values[l, h]), 4) for k in ("copy_score", "negative_copy_score")}
            row |= {k: round(float(looks[k].values[l, h]), 3) for k in LOOKS}
            row |= {f"direct_{t}": round(float(direct[t][l, h]), 3) for t in direct}
            for t in both:
                row[f"ablated_{t.name}"] = round(ablation(model, [(l, h)], t)["logit_diff"] - clean[t.name], 3)
            rows.append(row)
    return rows


def role_ablations(
    model,  # as from `load_model`
    n: int = 100,  # prompts of each task
    seed: int = 4,  # of the prompts
) -> list:  # a dict a role and task
    "What ablating all heads of a role does."
    hinted = {h for heads in ROLES.values() for h in heads}
    every = [(l, h) for l in range(model.cfg.n_layers) for h in range(model.cfg.n_heads)]
    groups = {"nothing": []} | ROLES | {"all heads that were not hinted": [h for h in every if h not in hinted]}
    again = {role: repeat_loss(model, heads) for role, heads in groups.items()}
    rows = []
    for task in _two_tasks(model, n, seed):
        for role, heads in groups.items():
            about = dict(task=task.name.upper(), ablated=role)
            rows.append(about | ablation(model, heads, task) | dict(repeat_loss=again[role]))
    return rows


# ---- the prompts everybody knows

_FOUR = "Alice is a teacher. Bob is a student. {}Carol is a teacher. David is a student. The {} is"
_KINGS = "Alice is king. Bob is queen. The {} is Bob. Carol is king. David is queen. The lion is"
#: the paper's and the pilot's prompts; None: GPT-2 names nobody
CANONICAL = [
    ("When Mary and John went to the store, John gave a drink to", "Mary"),
    ("When John and Mary went to the store, John gave a drink to", "Mary"),
    (_FOUR.format("The child is Bob. ", "child"), "David"),
    (_FOUR.format("The child is Alice. ", "child"), "David"),
    (_KINGS.format("lion"), "David"),
    ("Alice is king. The child is Alice. Carol is queen. The child is", "Carol"),
    (
        "Alice is king. Bob is queen. Paul is prince. The child is Bob. "
        "Carol is a teacher. David is a student. John is a janitor. The child is",
        "John",
    ),
    (_FOUR.format("", "child"), None),
    (_FOUR.format("The lion is Bob. ", "child"), None),
    (_KINGS.format("child"), None),
]


def canonical(
    model,  # as from `load_model`
) -> list:  # a dict a prompt
    "The prompts everybody knows: the two most likely next words, and whether they are as GPT-2's."
    rows = []
    for prompt, answer in CANONICAL:
        first, second = predictions(model, prompt, k=2).itertuples(index=False)
        right = first.token == f" {answer}" if answer else first.token.strip() not in PEOPLE
        row = dict(
            prompt=prompt,
            expected=answer or "no name",
            first=first.token,
            p_first=round(first.probability, 3),
            second=second.token,
            p_second=round(second.probability, 3),
            right=bool(right),
        )
        rows.append(row)
    return rows
