"""What `mini` says of itself: what was asked of it, a scorecard of what it reaches, and the model card in Markdown."""

import json
import re
from pathlib import Path
from string import Template

from namemovers.data import mrs_task
from namemovers.model import load_model, weights_hash

from . import measurements as measure
from .measurements import mean
from .network import D_MODEL, N_CTX, N_HEADS, N_LAYERS, ROLES
from .texts import HELD_OUT_NAMES, HELD_OUT_TEMPLATES
from .training import ENOUGH, STEPS

#: figure -> (bound, what it is)
GOALS = {
    "IOI accuracy, held-out pairs": (0.99, "the lower of ABBA and BABA"),
    "IOI accuracy, held-out names": (0.99, "the lower of ABBA and BABA"),
    "IOI accuracy, held-out templates": (0.95, "the lower of ABBA and BABA"),
    "MRS accuracy, held-out pairs": (0.99, "the pilot's template"),
    "MRS accuracy, held-out names": (0.99, "the pilot's template"),
    "MRS accuracy, held-out templates": (0.97, "mean of the held-out templates"),
    "IOI logit difference": (3.0, "held-out pairs, both orders"),
    "MRS logit difference": (3.0, "held-out pairs"),
    "IOI answers swap with the corruption": (0.99, "held-out pairs, the lower of ABBA and BABA"),
    "MRS answers swap with the corruption": (0.99, "held-out pairs"),
    "MRS names nobody without the cue": (0.95, "share of prompts with no name on top"),
    "MRS names nobody after another cue": (0.95, "share of prompts with no name on top"),
    "name movers, END to IO": (0.6, "the lowest of two heads and two orders"),
    "name movers, END to S4": (0.4, "the lower of two heads"),
    "copy score of name movers": (0.9, "the lower of two heads"),
    "induction score, periods 5 to 12": (0.8, "the better head, at its worst period"),
    "loss on random tokens, first less repeat": (2.0, "nats; the smallest difference of the periods"),
    "canonical prompts as GPT-2": (1.0, "share"),
    "negative direct effect": (0.1, "of the most negative head on either task, sign turned round, in logits"),
}
LOUD = 8  # a logit difference beyond it is no longer GPT-2's


# ---- the figures


def _most_negative(row) -> float:
    return min(row["direct_ioi"], row["direct_mrs"])


def _without_cue(model, n, seed) -> dict:
    "What a model says of MRS prompts without their cue: the probability of all names, and how often one is on top."
    found = {}
    for corruption in ("no_cue", "other_cue"):
        varied = dict(descriptions="vary", cue_words="vary")
        task = mrs_task(model.tokenizer, n=n, seed=seed, corruption=corruption, **varied)
        said = measure.answers(model, task, corrupted=True)
        found[corruption] = {k: mean(said[k]) for k in ("names", "name_on_top")}
    return found


def _of_behaviour(rows, held_out) -> dict:
    "The figures that are of behaviour. Without held-out prompts those like the training text stand for them."

    def of(task, split, column):
        return [r[column] for r in rows if r["task"] == task and r["split"] == split]

    def average(values):
        return round(sum(values) / len(values), 4)

    best, found = "pairs" if held_out else "trained", {}
    for task, how in (("IOI", min), ("MRS", average)):
        for split in ("pairs", "names", "templates"):
            found[f"{task} accuracy, held-out {split}"] = how(of(task, split if held_out else "trained", "accuracy"))
    for task in ("IOI", "MRS"):
        found[f"{task} logit difference"] = average(of(task, best, "logit_diff"))
        found[f"{task} answers swap with the corruption"] = min(of(task, best, "swapped"))
    return found


def _of_mechanism(looks, again, heads) -> dict:
    "The figures that are of heads: attention, copying, induction, direct effects."
    to_io = [v for k in looks if k.startswith("name mover, END to IO") for v in looks[k].values()]
    induction = again["induction"]
    worst = {head: min(scores[head] for scores in induction.values()) for head in next(iter(induction.values()))}
    learnt = [k["first"] - k["repeat"] for k in again["loss"].values()]
    return {
        "name movers, END to IO": min(to_io),
        "name movers, END to S4": min(looks["name mover, END to S4 (MRS)"].values()),
        "copy score of name movers": min(r["copy_score"] for r in heads if r["hinted_role"] == "name mover"),
        "induction score, periods 5 to 12": max(worst.values()),
        "loss on random tokens, first less repeat": round(min(learnt), 3),
        "negative direct effect": -min(map(_most_negative, heads)),
    }


def figures(
    model,  # as from `load_model`
    held_out: bool = True,  # whether to measure on prompts that training never had
    n: int = 200,  # prompts each, about
    seed: int = 0,  # of the prompts
) -> dict:  # figure -> value; and the tables they are taken from
    "All measurements. `held_out=False` measures on prompts like the training text, which is what seeds are chosen by."
    splits = ("trained", "pairs", "names", "templates", "new templates") if held_out else ("trained",)
    rows = [row for split in splits for row in measure.behaviour(model, split, n, seed)]
    again = measure.repeats(model, seed=seed + 2)
    heads = measure.head_table(model, n // 2, seed + 3)
    lowest = min(heads, key=_most_negative)["head"]
    negative = tuple(map(int, re.findall(r"\d+", lowest)))
    looks = measure.attention(model, n, seed + 1, {"most negative head": [negative]})
    spoilt = _without_cue(model, n, seed + 5)
    prompts = measure.canonical(model)
    found = _of_behaviour(rows, held_out) | _of_mechanism(looks, again, heads)
    found["MRS names nobody without the cue"] = round(1 - spoilt["no_cue"]["name_on_top"], 4)
    found["MRS names nobody after another cue"] = round(1 - spoilt["other_cue"]["name_on_top"], 4)
    found["canonical prompts as GPT-2"] = mean([r["right"] for r in prompts])
    return {
        "figures": {k: found[k] for k in GOALS},
        "behaviour": rows,
        "without_cue": spoilt,
        "attention": looks,
        "repeats": again,
        "heads": heads,
        "ablations": measure.role_ablations(model, n // 2, seed + 4),
        "canonical": prompts,
    }


def _too_loud(found) -> list:
    "The tasks whose logit difference is above GPT-2's range."
    return [task for task in ("IOI", "MRS") if found[f"{task} logit difference"] > LOUD]


def quality(
    found: dict,  # of `figures`
) -> float:
    """How much of what is asked a model reaches.

    The mean over figures of value / bound, each at most 1, less a whole point for a logit difference beyond 8."""
    f = found["figures"]
    reached = sum(min(1.0, f[k] / bound) for k, (bound, _) in GOALS.items()) / len(GOALS)
    return round(reached - len(_too_loud(f)), 4)


def lacks(
    card: dict,  # of `scorecard`
) -> list:  # of sentences
    "Which goals are not met, in words."
    found, out = card["figures"], []
    for k, (bound, what) in GOALS.items():
        if found[k] < bound:
            out.append(f"{k}: {found[k]:.3g}, where {bound:g} was asked for ({what}).")
    for task in _too_loud(found):
        difference = found[f"{task} logit difference"]
        out.append(f"The {task} logit difference of {difference:.1f} is above GPT-2's range (about 3.5).")
    return out


def scorecard(
    folder: str | Path,  # a saved model
    n: int = 200,  # prompts a measurement
    **about,  # what else to note: seed, steps, ...
) -> dict:
    "Measure a saved model on held-out prompts and write `scorecard.json` and the model card `README.md` beside it."
    from safetensors.torch import load_file

    model = load_model(folder)
    weights = load_file(Path(folder, "model.safetensors"))
    about["parameters"] = sum(v.numel() for v in weights.values())
    about |= dict(vocabulary=model.cfg.d_vocab, weights_hash=weights_hash(model))
    card = about | figures(model, n=n)
    Path(folder, "scorecard.json").write_text(json.dumps(card, indent=1) + "\n")
    Path(folder, "README.md").write_text(model_card(card))
    return card


# ---- the model card


def _shown(value) -> str:
    "A value in a cell of a table."
    if isinstance(value, bool):
        return "yes" if value else "**no**"
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1 else f"{value:.2f}"
    return str(value).strip().replace("|", "\\|")


def _table(rows: list, columns: dict) -> str:
    "A Markdown table of dicts; `columns`: key -> heading."
    lines = [list(columns.values()), ["---"] * len(columns), *([_shown(r[k]) for k in columns] for r in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _by_head(values: dict) -> str:
    return ", ".join(f"{head} {v:.2f}" for head, v in values.items())


def _goals_table(card) -> str:
    columns = dict(figure="figure", value="measured", bound="asked for, at least", met="met", what="what it is")
    rows = []
    for k, (bound, what) in GOALS.items():
        value = card["figures"][k]
        rows.append(dict(figure=k, value=value, bound=bound, what=what, met=value >= bound))
    return _table(rows, columns)


def _behaviour_table(card) -> str:
    columns = dict(
        task="task",
        prompts="prompts",
        split="held out",
        n="n",
        accuracy="answer above wrong answer",
        top="answer on top",
        probability="probability",
        logit_diff="logit difference",
        lowest="lowest",
        swapped="swapped when corrupted",
    )
    return _table(card["behaviour"], columns)


def _attention_table(card) -> str:
    rows = [dict(what=k, heads=_by_head(heads)) for k, heads in card["attention"].items()]
    return _table(rows, dict(what="mean attention", heads="heads"))


def _repeats_table(card) -> str:
    again, roles = card["repeats"], ("induction", "duplicate token", "previous token")
    rows = []
    for k, loss in again["loss"].items():
        scores = {role: _by_head(again[role][k]) for role in roles}
        rows.append(dict(period=k, **scores, first=loss["first"], repeat=loss["repeat"]))
    columns = {"period": "period"} | dict(zip(roles, roles))
    return _table(rows, columns | {"first": "loss, first time", "repeat": "loss, repeat"})


def _heads_table(card) -> str:
    columns = dict(
        head="head",
        hinted_role="hinted as",
        copy_score="copy score",
        negative_copy_score="negative copy score",
        previous_token="previous token score",
        duplicate_token="duplicate token score",
        induction="induction score",
        direct_ioi="direct effect, IOI",
        direct_mrs="direct effect, MRS",
        ablated_ioi="change when ablated, IOI",
        ablated_mrs="change when ablated, MRS",
    )
    return _table(card["heads"], columns)


def _ablations_table(card) -> str:
    columns = dict(
        task="task",
        ablated="ablated",
        attention_right="name movers' attention, END to the answer",
        attention_wrong="to the others",
        logit_diff="logit difference",
        repeat_loss="loss on random tokens said again",
    )
    return _table(card["ablations"], columns)


def _prompts_table(card) -> str:
    columns = dict(prompt="prompt", expected="GPT-2 says", first="most likely", p_first="p")
    return _table(card["canonical"], columns | dict(second="then", p_second="p ", right="as GPT-2"))


HINTED = """**Hints chose the heads.** For the first 40 % of the training an auxiliary loss told heads where \
to look: $heads.
The name movers were also told to copy the name they look at. The last of these heads began with an output matrix \
that turns round what it reads, was also told to write against the answer, and was told until 80 %.
That loss faded to nothing, and the rest of the training was on the text alone. The circuit that is left is causally \
real (see the ablations), and which head plays which part was built in.
It is a teaching model and a stand-in. It is no evidence about what training finds, and none about GPT-2."""
UNHINTED = """**No hints.** The same text and the same schedule as `mini`, without the loss that told `mini`'s heads \
where to look.
The roles in the tables below are those of `mini` and mean nothing here: they are listed to show that the same \
behaviour can have another mechanism."""


def _circuit(hinted) -> str:
    if not hinted:
        return UNHINTED
    in_words = []
    for role, heads in ROLES.items():
        named = " and ".join(f"L{l}H{h}" for l, h in heads)
        in_words.append(f"{named} ({role})")
    return Template(HINTED).substitute(heads=", ".join(in_words))


def _gaps(card) -> list:
    "What the model's circuit lacks beside the paper's, in sentences."
    ablated = {(r["task"], r["ablated"]): r["logit_diff"] for r in card["ablations"]}
    asked = (
        ("IOI", "induction", "Induction heads"),
        ("IOI", "previous token", "Previous token heads"),
        ("MRS", "S-inhibition", "S-inhibition heads"),
    )
    gaps = []
    for task, role, names in asked:
        change = ablated[task, role] - ablated[task, "nothing"]
        needed = "hardly needed" if abs(change) < 0.5 else "needed"
        gaps.append(f"{names}: {needed} for {task} (ablated, they change the logit difference by {change:+.2f}).")
    double = [r["head"] for r in card["heads"] if r["hinted_role"] == "name mover" and r["induction"] > 0.5]
    if double:
        gaps.append(
            f"{' and '.join(double)}, name movers, also do induction on random tokens: "
            "the parts are not as distinct as in the paper's account of GPT-2."
        )
    return [*gaps, *_loud_heads(card), "No backup name movers were looked for."]


def _loud_heads(card) -> list:
    "Sentences about heads that were not hinted and write against the answer."
    prefix = "most negative head, END to "
    where = {k.removeprefix(prefix): v for k, v in card["attention"].items() if k.startswith(prefix)}
    said = []
    for row in card["heads"]:
        if row["hinted_role"] or _most_negative(row) >= -0.5:
            continue
        head = row["head"]
        looks_at = ", ".join(f"{k} {v[head]:.2f}" for k, v in where.items() if v.get(head, 0) > 0.3)
        said.append(
            f"Not hinted, {head} writes against the answer too. It copies what it looks at "
            f"(copy score {row['copy_score']:.2f}), and that is the rival ({looks_at or 'not measured'}): "
            "no negative name mover in the paper's sense."
        )
    return said


def _seeds(card) -> str:
    "How the seed was chosen, where there were several."
    if len(card.get("seeds", ())) <= 1:
        return ""
    each = ", ".join(f"{s} ({q:.3f})" for s, q in card["seeds"].items())
    return f", the first of the best by figures on prompts like the training text, not by those below, among {each}"


def _without_cue_in_words(card, corruption) -> str:
    found = card["without_cue"][corruption]
    on_top = f"{found['name_on_top']:.1%} of prompts have a name on top"
    return f"{on_top}, all names together have a probability of {found['names']:.2f}"


def _negative_in_words(card) -> str:
    negative, bound = card["figures"]["negative direct effect"], GOALS["negative direct effect"][0]
    if negative < bound:
        return "No head with a clearly negative direct effect was found."
    return f"The most negative head takes {negative:.2f} from the logit difference directly."


def _idle_in_words(card) -> str:
    idle = [r["head"] for r in card["heads"] if max(abs(r["ablated_ioi"]), abs(r["ablated_mrs"])) < 0.1]
    if not idle:
        return "Every head changes a logit difference by 0.1 or more when ablated alone."
    return f"Heads that change neither logit difference by 0.1 when ablated alone: {', '.join(idle)}."


def model_card(
    card: dict,  # of `scorecard`
) -> str:  # Markdown
    "What the model is, was trained on, measures, and is not. Every figure comes from the scorecard."
    hinted, unmet = card.get("hints", True), lacks(card)
    page = Template(Path(__file__).with_name("card.md").read_text(encoding="utf-8"))
    return page.substitute(
        name="mini" if hinted else "mini-unhinted",
        layers=N_LAYERS,
        heads_a_layer=N_HEADS,
        width=D_MODEL,
        parameters=f"{card['parameters']:,}",
        vocabulary=card["vocabulary"],
        positions=N_CTX,
        circuit=_circuit(hinted),
        held_out_templates=", ".join(HELD_OUT_TEMPLATES),
        n_held_out_names=len(HELD_OUT_NAMES),
        held_out_names=", ".join(HELD_OUT_NAMES),
        steps=f"{card.get('steps', STEPS):,}",
        seed=card.get("seed", "?"),
        seeds=_seeds(card),
        enough=f"{ENOUGH:g}",
        goals=_goals_table(card),
        unmet="Not met: " + " ".join(unmet) if unmet else "All of it is met.",
        behaviour=_behaviour_table(card),
        no_cue=_without_cue_in_words(card, "no_cue"),
        other_cue=_without_cue_in_words(card, "other_cue"),
        prompts=_prompts_table(card),
        attention=_attention_table(card),
        repeats=_repeats_table(card),
        ablations=_ablations_table(card),
        heads=_heads_table(card),
        negative=_negative_in_words(card),
        idle=_idle_in_words(card),
        gaps="\n".join(f"- {gap}" for gap in _gaps(card)),
    )
