"""A trained run on a person's own inputs: `runner predict`.

`request` is what was asked for; `accepts` says, without torch, whether a run takes it; one file per kind of input reads
it (`images`, `texts`, `tables`, `molecules`); `answering` asks the model, `table` and `show` write what it says. Dense
tasks colour pictures instead: `predictor` and `pictures`.
"""
