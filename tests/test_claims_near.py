"""Every claim close to its threshold: results in which one number lies just inside it, and just outside.

Each case takes the results that a claim reads from a world in which it holds, and changes one number in one of them.
The list of claims that are tried so is the list of all claims."""

import shutil
from collections.abc import Callable
from typing import NamedTuple

import pytest
import xarray as xr
from test_claims import MISSES, World

from namemovers.claims import CLAIMS, evaluate, forms, pilot
from namemovers.literature import IOI_HEADS, MRS_HEADS, published_grid
from namemovers.results import load, save
from namemovers.stats import top_heads

HOLDS, FAILS, OPEN = "holds", "does not hold", "not evaluated"
Change = Callable[[xr.Dataset, float], None]  # of a result, in place, to a number


class Near(NamedTuple):
    "A claim, the result in which a number is changed, and the numbers with which it holds, does not, and is open."

    claim: str
    result: str
    change: Change
    holds: float
    fails: float
    open: tuple = ()


# What is changed


def at_head(head):
    return dict(zip(("layer", "head"), head))


def mean_of(variable, over="prompt", **where) -> Change:
    "The mean of a cell over prompts; the scatter stays."

    def change(ds, x):
        cell = ds[variable].sel(where)
        shift = x - float(cell.mean())
        ds[variable].loc[where] = cell + shift

    return change


def average_of(variable) -> Change:
    "The mean over all heads, each moved by as much."

    def change(ds, x):
        ds[variable][:] = ds[variable] + (x - float(ds[variable].mean()))

    return change


def beside(variable, rival, weakest) -> Change:
    "The mean of a rival, as its distance from that of the weakest of the claimed heads."

    def change(ds, x):
        level = float(ds[variable].sel(at_head(weakest)).mean())
        mean_of(variable, **at_head(rival))(ds, level + x)

    return change


def number(*variables, **where) -> Change:
    "A number that stands alone, in one variable or several."

    def change(ds, x):
        for variable in variables:
            ds[variable].loc[where] = x

    return change


def share_right(variable) -> Change:
    "In how many prompts the right answer is above the wrong one."

    def change(ds, x):
        values = abs(ds[variable].values) + 0.1
        values[int(x) :] *= -1
        ds[variable][:] = values

    return change


def times_the_model(circuit, **where) -> Change:
    "What a circuit keeps, as a share of the model's logit difference."

    def change(ds, x):
        ds["logit_diff"].loc[dict(circuit=circuit, **where)] = x * ds["model"].sel(where)

    return change


def evidence(kind, head, low=None, half=0.01) -> Change:
    "One piece of evidence about a head, with an interval, significant where that is above zero."

    def change(ds, x):
        place = dict(evidence=kind, **at_head(head))
        for variable, value in (("value", x), ("low", x - half), ("high", x + half), ("significant", x - half > 0)):
            ds[variable].loc[place] = value

    return change


def only(head, kind, *, of=None) -> Change:
    "As `evidence`, where no other head of some has any."

    def change(ds, x):
        for other in of:
            for each in ds.evidence.values:
                evidence(each, other)(ds, 0.0)
        evidence(kind, head)(ds, x)

    return change


def one_head_matters(role) -> Change:
    "Of the heads of a role one matters, or none."

    def change(ds, x):
        for head in IOI_HEADS[role]:
            ds["matters"].loc[at_head(head)] = False
        ds["matters"].loc[at_head(IOI_HEADS[role][0])] = bool(x)

    return change


def rivals(kind, heads) -> Change:
    "So many other heads lie above the claimed ones that one more puts a claimed one out of the top tenth."

    def change(ds, x):
        others = [divmod(i, 12) for i in range(144) if divmod(i, 12) not in heads]
        for head in others[: 14 - len(heads)]:
            mean_of(kind, **at_head(head))(ds, 0.9)
        mean_of(kind, **at_head(others[-1]))(ds, x)

    return change


def silent_all_but(head) -> Change:
    "Patching moves nothing but one head, by one half."

    def change(ds, x):
        ds["effect"][:] = ds["effect"] - ds["effect"].mean("prompt")
        mean_of("effect", **at_head(head))(ds, 0.5)

    return change


def handing_over(position, layer) -> Change:
    "All is on S4 up to layer 8 and at END from layer 9 on; but for one number."

    def change(ds, x):
        for l in range(12):
            mean_of("effect", layer=l, position="S4")(ds, float(l <= 8))
            mean_of("effect", layer=l, position="END")(ds, float(l >= 9))
        mean_of("effect", layer=layer, position=position)(ds, x)

    return change


def other_roles(ds, x):
    "So many of the 26 heads have another role in this task."
    heads = [h for some in IOI_HEADS.values() for h in some]
    for head in heads[: int(x)]:
        other = "induction" if ds["role"].sel(at_head(head)).item() != "induction" else "name mover"
        ds["role"].loc[at_head(head)] = other


def share_of_survey(family) -> Change:
    "The share of a family of prompts that name the latest subject, give or take a tenth."

    def change(ds, x):
        place = dict(family=family, kind="latest")
        for variable, value in (("share", x), ("share_low", x - 0.1), ("share_high", x + 0.1)):
            ds[variable].loc[place] = value

    return change


def two_searches(ds, x):
    "The likeness of one search of either task."
    ds["jaccard"][3, 0] = ds["jaccard"][0, 3] = x


def loud_studies(ds, x):
    "In how many of 20 studies a head was called."
    ds["any"][:] = 0.0
    ds["any"][0, 0, : int(x)] = 1.0


def one_negative_writer(ds, x):
    "One head writes against the answer, by a share of what the first writes for it; the others do not."
    mean = ds["attribution"].mean("prompt")
    ds["attribution"][:] = ds["attribution"] - mean.where(mean < 0, 0)
    mean_of("attribution", layer=10, head=7)(ds, -x * float(mean.max()))


def probability_off(row) -> Change:
    "The probability of a prompt's published token, as its distance from the published one."

    def change(ds, x):
        ds["probability"][row] = float(ds.expected_probability[row]) + x

    return change


def first_token(ds, x):
    "Whether the last prompt is continued as published."
    if not x:
        ds["top_token"][-1] = " other"


# The cases


def of_the_first(claim, result, variable, heads, rival, by, sign=1):
    "A rival just behind the weakest of the heads that are claimed to be first, and just ahead."
    yield Near(claim, result, beside(variable, rival, heads[-1]), -sign * by, sign * by)


MOVERS, NEGATIVE, INHIBIT = (IOI_HEADS[role] for role in ("name mover", "negative name mover", "S-inhibition"))
LENS_HALF = dict(stage="5 post")
PILOT_N1 = published_grid("mrs", "z", 1)
HEADS_FOR, HEADS_AGAINST = MRS_HEADS["head_attribution", "positive"], MRS_HEADS["head_attribution", "negative"]
MOVING, HURTING = MRS_HEADS["z", "positive"], MRS_HEADS["z", "negative"]
GRID = "mrs_patch_resid_pre_named_position"
# share of 40 prompts: with how many it holds, with how many it does not, and between
OF_40 = {0.97: (39, 36, (38, 37)), 0.95: (38, 35, (37, 36))}


def served(task, role):
    "Heads with a pattern: one of them has an effect of about a twentieth, and none has any other evidence."
    heads = IOI_HEADS[role]
    yield Near(f"{task}-{role.replace(' ', '-')}", f"{task}_roles", only(heads[0], "effect", of=heads), 0.051, 0.049)


NEAR: list[Near] = [
    Near("paper-accuracy", "ioi_logit_lens", share_right("clean"), *OF_40[0.97]),
    *of_the_first("paper-name-movers", "ioi_paths_logits", "effect", [(9, 9), (9, 6)], (5, 0), 0.01),
    *of_the_first("paper-negative-name-movers", "ioi_paths_logits", "effect", NEGATIVE, (5, 0), 0.01, sign=-1),
    Near("paper-copy-score", "copy_scores", mean_of("copy_score", **at_head((9, 9))), 0.953, 0.947),
    Near("paper-average-copy-score", "copy_scores", average_of("copy_score"), 0.199, 0.201),
    Near("paper-negative-copy-score", "copy_scores", mean_of("negative_copy_score", **at_head((10, 7))), 0.921, 0.918),
    Near("paper-average-negative-copy-score", "copy_scores", average_of("negative_copy_score"), 0.169, 0.171),
    Near("paper-average-negative-copy-score", "copy_scores", average_of("negative_copy_score"), 0.071, 0.069),
    Near(
        "paper-attention-output",
        "ioi_name_projection",
        number("correlation", "low", "high", **at_head((9, 9))),
        0.811,
        0.809,
    ),
    Near("paper-s-inhibition", "ioi_roles", evidence("s_inhibition", (0, 0)), 0.245, 0.275, (0.265,)),
    Near("paper-into-values", "ioi_paths", lambda ds, x: ds["mean"].__setitem__(2, x), 0.39, 0.41),
    Near("paper-induction-heads", "pattern_scores", rivals("induction", IOI_HEADS["induction"]), 0.79, 0.81),
    Near(
        "paper-duplicate-token-heads",
        "pattern_scores",
        rivals("duplicate_token", IOI_HEADS["duplicate token"]),
        0.79,
        0.81,
    ),
    Near(
        "paper-previous-token-heads",
        "pattern_scores",
        rivals("previous_token", IOI_HEADS["previous token"]),
        0.79,
        0.81,
    ),
    Near("paper-backups", "ioi_roles", evidence("backup", (11, 9)), 0.011, -0.001, (0.005,)),
    Near("paper-circuit", "ioi_circuit", times_the_model("the paper's, of GPT-2 small"), 0.969, 0.971),
    Near("paper-circuit", "ioi_circuit", times_the_model("the paper's, of GPT-2 small"), 0.771, 0.769),
    Near("ioi-done", "ioi_logit_lens", share_right("clean"), *OF_40[0.95]),
    Near("ioi-name-movers", "ioi_roles", one_head_matters("name mover"), 1, 0),
    Near("ioi-negative-name-movers", "ioi_roles", one_head_matters("negative name mover"), 1, 0),
    Near("ioi-s-inhibition", "ioi_roles", one_head_matters("S-inhibition"), 1, 0),
    Near("ioi-through-queries", "ioi_paths_movers", mean_of("effect", component="k", **at_head((8, 6))), 0.79, 0.81),
    Near("ioi-through-queries", "ioi_paths_movers", mean_of("effect", component="v", **at_head((8, 6))), -0.79, -0.81),
    Near("ioi-signals", "ioi_signals_s_inhibition", mean_of("token"), 1.49, 1.53),
    Near("ioi-signals", "ioi_signals_s_inhibition", mean_of("token"), 0.02, -0.02, (0.005, -0.005)),
    *served("ioi", "induction"),
    *served("ioi", "duplicate token"),
    *served("ioi", "previous token"),
    Near("ioi-backup", "ioi_roles", only((9, 0), "backup", of=IOI_HEADS["backup name mover"]), 0.051, 0.049),
    Near("ioi-small-circuit", "ioi_circuit", times_the_model("pruned"), 0.871, 0.869),
    Near("ioi-small-circuit", "ioi_circuit", number("size", circuit="pruned"), 50, 51),
    *(
        Near(claim, "pilot_prompts", probability_off(row), sign * inside, sign * outside)
        for claim, row, inside, outside in (
            ("pilot-david", 0, 0.0049, 0.0051),
            ("pilot-prompts-as-published", 7, 0.0099, 0.0101),
        )
        for sign in (1, -1)
    ),
    Near("pilot-prompts-as-published", "pilot_prompts", first_token, 1, 0),
    *of_the_first("pilot-attribution-positive", "mrs_head_attribution", "attribution", HEADS_FOR, (0, 0), 0.003),
    *of_the_first(
        "pilot-attribution-negative", "mrs_head_attribution", "attribution", HEADS_AGAINST, (0, 0), 0.003, -1
    ),
    *of_the_first("pilot-patching-positive", "mrs_patch_z_head", "effect", MOVING, (0, 0), 0.003),
    *of_the_first("pilot-patching-negative", "mrs_patch_z_head", "effect", HURTING, (0, 0), 0.003, -1),
    *(
        Near(
            "pilot-patching-n1",
            "mrs_patch_z_head_n1",
            lambda ds, x: ds["effect"].__setitem__((3, 3), 0.5 * (float(PILOT_N1[3, 3]) + x)),
            sign * 0.049,
            sign * 0.051,
        )
        for sign in (1, -1)
    ),
    Near("pilot-s4-then-end", GRID, mean_of("effect", layer=7, position="S4"), 0.903, 0.897),
    Near("pilot-s4-then-end", GRID, mean_of("effect", layer=3, position="END"), 0.097, 0.103),
    Near("pilot-s4-then-end", GRID, mean_of("effect", layer=10, position="END"), 0.503, 0.497),
    *(
        Near(claim, "mrs_attention", mean_of("attention", **at_head((9, 9)), position=p), *numbers)
        for claim in ("pilot-recency-attention", "mrs-recency-attention")
        for p, numbers in (("S2", (0.209, 0.2115)), ("S3", (0.699, 0.702)), ("S1", (0.059, 0.0615)))
    ),
    *(
        Near(claim, "mrs_attention", mean_of("attention", **at_head(head), position="cue_name"), 0.699, 0.702)
        for claim, head in (("pilot-l8h11-looks", (8, 11)), ("mrs-negative-looks", (10, 7)))
    ),
    Near("mrs-done", "mrs_logit_lens", share_right("clean"), *OF_40[0.95]),
    *(
        Near(claim, "survey", share_of_survey(family), *numbers)
        for claim, other in (("mrs-cue", "no cue"), ("mrs-cue-word", "cue word changed"))
        for family, numbers in (("pilot", (0.501, 0.399, (0.499, 0.401))), (other, (0.499, 0.601, (0.501, 0.599))))
    ),
    Near("mrs-handover", GRID, handing_over("END", 7), 0.499, 0.501),
    Near("mrs-handover", GRID, handing_over("S4", 10), 0.899, 0.901),
    Near("mrs-s3-hurts", GRID, mean_of("effect", layer=0, position="S3"), -0.051, -0.047),
    Near("mrs-negative-writers", "mrs_head_attribution", one_negative_writer, 0.0505, 0.0495),
    *(
        Near(f"{task}-one-prompt", f"{task}_one_prompt", mean_of("overlap", measure="patching", k=10), 0.801, 0.799)
        for task in ("mrs", "ioi")
    ),
    *served("mrs", "induction"),
    Near("mrs-name-movers", "copy_scores", mean_of("copy_score", **at_head((9, 9))), 0.503, 0.497),
    Near("mrs-passed-on", "mrs_roles", only((4, 11), "recency", of=[(4, 11), (8, 3)]), 0.051, 0.049),
    *(
        Near(f"{task}-late", f"{task}_logit_lens", mean_of("logit_diff", **LENS_HALF), 1.77, 1.79)
        for task in ("mrs", "ioi")
    ),
    *(
        Near(
            f"{task}-silent",
            f"{task}_patch_z_head+{task}_paths_logits",
            mean_of("effect", **at_head((9, 9))),
            0.097,
            0.103,
        )
        for task in ("mrs", "ioi")
    ),
    Near("ioi-writers-copy", "copy_scores", mean_of("copy_score", **at_head((9, 6))), 0.503, 0.497),
    Near("mrs-negative-copy", "copy_scores", mean_of("negative_copy_score", **at_head((10, 7))), 0.503, 0.497),
    Near("shared-writers", "ioi_head_attribution", beside("attribution", (8, 11), (10, 0)), 0.003, -0.003),
    Near("shared-roles", "mrs_roles", other_roles, 12, 13),
    Near("mrs-small-circuit", "mrs_circuit", times_the_model("pruned"), 0.871, 0.869),
    Near("mrs-small-circuit", "mrs_circuit", number("size", circuit="pruned"), 50, 51),
    Near("shared-circuit", "circuit_overlap", number("p", kind="heads"), 0.05, 0.0501),
    Near("ioi-circuit-does-mrs", "circuit_overlap", times_the_model("ioi heads", on="mrs"), 0.901, 0.899),
    Near("mrs-circuit-does-ioi", "circuit_overlap", times_the_model("mrs heads", on="ioi"), 0.901, 0.899),
    Near("circuits-differ", "circuit_overlap", two_searches, 0.899, 0.901),
    Near(
        "validation-finds",
        "validation",
        mean_of("auroc", method="direct logit attribution (IOI)", question="what it can see"),
        0.951,
        0.949,
    ),
    Near("validation-silence", "validation_controls", loud_studies, 1, 3, (2,)),
]
#: judged by a rank correlation and its interval, which is replaced; and by the pilot's own grids
RANKED, QUOTED = ("methods-agree", "shared-attribution", "shared-patching"), ("pilot-n1-quoted",)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    "Results with which every claim holds."
    folder = tmp_path_factory.mktemp("published")
    World(folder, True)
    return folder


def one(identity):
    return next(c for c in CLAIMS if c.id == identity)


def judged(world, folder, case, x):
    "The status of a claim where a number is x; only what it reads is there."
    claim = one(case.claim)
    for name in claim.needs:
        shutil.copy(world / f"{name}.nc", folder)
    ground, _, name = case.result.rpartition("+")
    if ground:
        changed = load(ground, folder).load()
        silent_all_but((9, 9))(changed, 0.0)
        save(changed, ground, folder)
    changed = load(name, folder).load()
    case.change(changed, x)
    save(changed, name, folder)
    return evaluate(folder, [claim], n_resamples=199).iloc[0]


@pytest.mark.parametrize("case", NEAR, ids=[f"{i}-{c.claim}" for i, c in enumerate(NEAR)])
def test_a_number_on_either_side_of_a_threshold(world, tmp_path, case):
    asked = [(case.holds, HOLDS), (case.fails, FAILS), *((x, OPEN) for x in case.open)]
    found = [(x, judged(world, tmp_path, case, x)) for x, _ in asked]
    assert [(x, row.status) for x, row in found] == asked, [row.figure for _, row in found]
    assert all("leave it open" in row.figure for _, row in found[2:])


@pytest.mark.parametrize("identity", RANKED)
def test_a_rank_correlation_on_either_side(world, tmp_path, monkeypatch, identity):
    "Above zero for sure; below what is a likeness for sure; or neither."
    for name in one(identity).needs:
        shutil.copy(world / f"{name}.nc", tmp_path)
    cases = [
        ((0.2, 0.001, 0.5), HOLDS),
        ((0.1, -0.001, 0.299), FAILS),
        ((0.1, -0.001, 0.301), OPEN),
        ((0.1, 0.0, 0.3), OPEN),
    ]
    for (rho, low, high), status in cases:
        made = xr.Dataset({"rho": rho, "low": low, "high": high, "n": 144})
        monkeypatch.setattr(forms, "rank_correlation", lambda a, b, made=made, **how: made)
        assert evaluate(tmp_path, [one(identity)]).iloc[0].status == status, (rho, low, high)


def test_the_pilots_two_grids_on_either_side(tmp_path, monkeypatch):
    "Eight of the top ten heads in common, or seven: one head of one grid pushed down."
    real = pilot.published_grid
    common = [h for h in top_heads(abs(real("mrs", "z", 1)), 10) if h in top_heads(abs(real("mrs", "z", 50)), 10)]
    for kept, status in ((8, HOLDS), (7, FAILS)):

        def quoted(task, what, n, kept=kept):
            grid = real(task, what, n).copy(deep=True)
            if n == 1:
                for head in common[kept:]:
                    grid.loc[at_head(head)] = 0.0
            return grid

        monkeypatch.setattr(pilot, "published_grid", quoted)
        row = evaluate(tmp_path, [one("pilot-n1-quoted")]).iloc[0]
        assert (row.status, row.value) == (status, kept / 10)


def test_every_claim_is_tried_near_its_threshold():
    tried = {c.claim for c in NEAR} | {m[0] for m in MISSES} | {*RANKED, *QUOTED}
    assert tried == {c.id for c in CLAIMS}
