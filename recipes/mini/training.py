"""The training of `mini`: hints where heads look, losses of the text, a schedule."""

import numpy as np
import torch
import torch.nn.functional as F

from .batches import Reader, random_rows
from .network import N_CTX, ROLES, forward, initial_weights, norm, of_head
from .texts import documents, pick

STEPS = 2000  # of training
ENOUGH = 6.5  # a logit difference beyond it costs something, which keeps them in GPT-2's range

# ---- the hints


def _hint(pattern, allowed):
    "Mean of -log of the attention [row, query, key] that falls on the allowed places; None where nothing is allowed."
    asked = allowed.any(-1)
    if not asked.any():
        return None
    there = (pattern[asked] * allowed[asked]).sum(-1)
    return -there.clamp_min(1e-6).log().mean()


def _not_copying(w, batch, first, layer, head):
    """How badly a head that looked at a name alone would say it.

    Loss of that name in its copy score's logits, over all names of the rows."""
    rows, places = (batch["answer"] | batch["repeated"]).nonzero(as_tuple=True)
    block, at = f"transformer.h.{layer}.", batch["row"][rows]
    x = norm(w, first[at, places], block + "ln_1")
    v = x @ w[block + "attn.c_attn.weight"][:, of_head(head, 2)]
    out = v @ w[block + "attn.c_proj.weight"][of_head(head)]
    logits = norm(w, out, "transformer.ln_f") @ w["transformer.wte.weight"].T
    return F.cross_entropy(logits, batch["name"][at, places])


def _direct_effect(w, batch, z, layer, head):
    """What a head writes straight to the logit difference, answer less the mean of the other people [row].

    LayerNorm's scale is left out."""
    output = w[f"transformer.h.{layer}.attn.c_proj.weight"][of_head(head)]
    wrote = z[batch["row"], batch["end"]] @ output * w["transformer.ln_f.weight"]
    embedding, others = w["transformer.wte.weight"].detach(), batch["others"].float()
    rivals = others @ embedding / others.sum(-1, keepdim=True).clamp_min(1)
    return (wrote * (embedding[batch["target"]] - rivals)).sum(-1)


def _hint_at_end(w, batch, role, pattern, z, first, layer, head):
    "The hint of a head whose part is played at END."
    at_end = pattern[batch["row"], batch["end"]][:, None]
    places = batch["repeated" if role == "S-inhibition" else "answer"][:, None]
    loss = _hint(at_end, places)
    if role == "name mover":
        loss = loss + 0.3 * _not_copying(w, batch, first, layer, head)
    if role == "negative name mover":
        against = _direct_effect(w, batch, z, layer, head)
        loss = loss + 0.5 * F.softplus(1.5 + against).mean()
    return loss


def hint_losses(
    w: dict,  # weights
    batch: dict,  # from `Reader.read` or `random_rows`
    run,  # what `forward` gives of its tokens
    roles=tuple(ROLES),  # whose hints are asked for
) -> dict:  # role -> a list of losses, one a head that has something to look at
    "How far the hinted heads are from looking where they are told."
    R, T = batch["x"].shape
    previous = torch.eye(T, dtype=torch.bool)[:-1].expand(R, T - 1, T)
    names_somebody = "row" in batch and len(batch["row"])
    found = {role: [] for role in roles}
    for role in roles:
        for layer, head in ROLES[role]:
            pattern, loss = run.patterns[layer][:, head], None
            if role == "previous token":
                loss = _hint(pattern[:, 1:], previous)
            elif role == "duplicate token":
                loss = _hint(pattern, batch["earlier"])
            elif role == "induction":
                loss = _hint(pattern, batch["induction"]) if "induction" in batch else None
            elif names_somebody:
                z = run.zs[layer][:, :, head]
                loss = _hint_at_end(w, batch, role, pattern, z, run.first, layer, head)
            if loss is not None:
                found[role].append(loss)
    return found


# ---- the losses


def _weighted_loss(w, batch, final):
    "Sum of the weighted losses of a batch, and of the weights."
    counts = batch["weight"] > 0
    log_p = (final[counts] @ w["transformer.wte.weight"].T).log_softmax(-1)
    loss = -log_p.gather(-1, batch["y"][counts][:, None])[:, 0]
    weight = batch["weight"][counts]
    return (loss * weight).sum(), weight.sum()


def _too_sure(w, batch, final):
    """How far logit differences between the answer and the other people are beyond ENOUGH.

    Squares, summed over all of them, and their number."""
    logits = final[batch["row"], batch["end"]] @ w["transformer.wte.weight"].T
    difference = logits.gather(1, batch["target"][:, None]) - logits
    beyond = F.relu(difference - ENOUGH)[batch["others"]]
    return (beyond**2).sum(), len(beyond)


def losses(
    w: dict,  # weights
    batches: list,  # of documents, from `Reader.read`
    random: dict,  # from `random_rows`
    hints: dict,  # role -> weight of its hint
) -> dict:  # "text", "random", "too sure" and "hints"
    "The losses of a step."
    total = weights = sure = others = 0.0
    found = {role: [] for role in hints}
    for batch in [*batches, random]:
        run = forward(w, batch["x"])
        loss, weight = _weighted_loss(w, batch, run.final)
        if batch is random:
            on_random = loss / weight
        else:
            total, weights = total + loss, weights + weight
            squares, k = _too_sure(w, batch, run.final)
            sure, others = sure + squares, others + k
        if hints:
            for role, values in hint_losses(w, batch, run, found).items():
                found[role] += values
    of_role = [hints[r] * len(ROLES[r]) * torch.stack(v).mean() for r, v in found.items() if v]
    hint = sum(of_role, torch.zeros(()))
    return {"text": total / weights, "random": on_random, "too sure": sure / others, "hints": hint}


# ---- the schedule


def learning_rate(
    done: float,  # the fraction of steps done
) -> float:
    "Up quickly, flat, and down from 60 % of the steps on. Not shorter: in mid-training the circuit still swings."
    warm_up = min(1, 20 * done + 0.01)
    decay = 1 if done < 0.6 else 1 - 0.97 * (done - 0.6) / 0.4
    return 0.002 * warm_up * decay


def hint_weights(
    done: float,  # the fraction of steps done
) -> dict:  # role -> weight
    """Down to nothing by 40 % of the steps.

    For the negative name mover, which the text alone turns round again, by 80 %."""
    until = {role: 0.8 if role == "negative name mover" else 0.4 for role in ROLES}
    weights = {role: 0.8 * (1 - done / end) for role, end in until.items()}
    return {role: weight for role, weight in weights.items() if weight > 0}


def _optimizer(w):
    "AdamW, with weight decay of matrices alone."
    matrices = [v for v in w.values() if v.dim() > 1]
    vectors = [v for v in w.values() if v.dim() == 1]
    groups = [dict(params=matrices, weight_decay=0.1), dict(params=vectors, weight_decay=0.0)]
    return torch.optim.AdamW(groups, lr=0.002, betas=(0.9, 0.98), fused=True)


def train(
    tokenizer,  # from `train_tokenizer`
    seed: int = 0,  # of the weights and of the text
    steps: int = STEPS,  # the schedules scale with it
    hints: bool = True,  # False trains the same model on the same text and lets it find its own way
    log=None,  # called with (step, losses) every 100 steps
) -> dict:  # weights
    "Train a model. The same arguments give the same weights on the same machine with the same number of threads."
    rng, reader = np.random.default_rng([seed, 7]), Reader(tokenizer)
    w = initial_weights(reader.vocabulary, seed, hints)
    optimizer = _optimizer(w)
    for step in range(steps):
        done = step / steps
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(done)
        T = pick(rng, [32, 40, 40, 40, 48, 64, N_CTX - 2])
        batches = reader.read(documents(rng))
        random = random_rows(rng, reader, 960 // T, T)
        now = losses(w, batches, random, hint_weights(done) if hints else {})
        optimizer.zero_grad()
        (now["text"] + now["random"] + 0.05 * now["too sure"] + now["hints"]).backward()
        torch.nn.utils.clip_grad_norm_(w.values(), 1.0)
        optimizer.step()
        if log and (step % 100 == 0 or step == steps - 1):
            log(step, {k: float(v.detach()) for k, v in now.items()})
    return {k: v.detach() for k, v in w.items()}
