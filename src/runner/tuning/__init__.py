"""Hyperparameter search: one run per trial, chosen by Optuna, resumable after any kill. Never imports torch.

outputs/tune/<name>-<hash8>/
  study.jsonl       Optuna's journal: trials, their parameters and values; the truth about the search
  sweep.json        the trials as jobs of a sweep, for `runner status` and `runner report`
  jobs/NNN-<sig>/   an ordinary run directory per trial
  tune.json         what was found: values, best trials, importance; rewritten after every trial
  history.png importance.png front.png
"""
