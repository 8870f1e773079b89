"The same settings give the same results, to the last bit, in two processes (with different hash seeds, one thread)."

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PROGRAM = """
import hashlib, torch
torch.set_num_threads(1)
from namemovers import load_model
from namemovers.activation_patching import patch
from namemovers.attribution_patching import attribute
from namemovers.copy_scores import copy_scores
from namemovers.data import MRS_TEMPLATES, NAMES, ioi_task, mrs_task, survey
from namemovers.head_attribution import head_attribution
from namemovers.logit_lens import logit_lens
from namemovers.stats import summarise

def digest(ds):
    h = hashlib.sha256(repr(sorted(ds.attrs.items())).encode())
    for name in sorted(ds.variables):
        values = ds[name].values
        h.update(name.encode() + (repr(values.tolist()).encode() if values.dtype.kind in "OU" else values.tobytes()))
    return h.hexdigest()

model = load_model("mini", device="cpu")
varied = dict(templates=list(MRS_TEMPLATES), corruption="new_subjects", descriptions="vary", cue_words="vary")
tasks = {
    "mrs": mrs_task(model.tokenizer, n=4, seed=3),
    "ioi": ioi_task(model.tokenizer, n=4, seed=3),
    "templates": mrs_task(model.tokenizer, n=8, seed=3, **varied),
}
for name, task in tasks.items():
    positions = sorted((k, v.tolist()) for k, v in task.positions.items())
    h = hashlib.sha256(repr((task.clean, task.corrupted, positions)).encode())
    for t in (task.clean_tokens, task.corrupted_tokens, task.correct, task.wrong): h.update(t.numpy().tobytes())
    print(name, h.hexdigest())
for name in ("mrs", "ioi"):
    task = tasks[name]
    print(name, "lens", digest(logit_lens(model, task)))
    print(name, "attribution", digest(head_attribution(model, task)))
    for engine in ("fast", "hooks"):
        heads = patch(model, task, "z", by="head", engine=engine)
        print(name, "patch", engine, digest(heads))
    print(name, "residual", digest(patch(model, task, "resid_pre", by="position", direction="noise")))
    print(name, "estimate", digest(attribute(model, task, "z")))
    print(name, "intervals", digest(summarise(heads.effect, seed=0)))
print("copy scores", digest(copy_scores(model, names=NAMES[:20], n=60)))
print("survey", digest(survey(model, n=3, seed=3)))
"""


def run(hash_seed, folder):
    settings = {k: v for k, v in os.environ.items() if k not in ("MODEL", "N", "SEED", "CORRUPTION", "DEVICE")}
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=600,
        env=settings | {"PYTHONHASHSEED": hash_seed, "PYTHONPATH": path},
    )
    assert not done.returncode, done.stderr[-2000:]
    return dict(line.rsplit(" ", 1) for line in done.stdout.splitlines())


def test_two_processes_give_the_same_results(tmp_path):
    first, second = run("1", tmp_path), run("2", tmp_path)
    assert len(first) == 19
    assert {k for k in first if first[k] != second.get(k)} == set()
