"""How the models that ship with the library were made. Plain Python beside it: nothing in `namemovers` imports this."""
