"""The recipe of `mini`: text made to order, a tokenizer, a small GPT-2 trained in minutes, and its measurements.

    texts          what it reads: documents of each kind, made from word lists; what is held out
    tokenizer      a byte-level BPE in which every word is one token
    network        GPT-2's forward pass, its weights, the heads that are hinted
    batches        texts and random tokens as rows, with what losses and hints need to know of them
    training       hints, losses, schedule
    measurements   what became of it, on prompts it never had
    card           what it says of itself: goals, scorecard, model card

`python -m recipes.mini` does all of it."""
