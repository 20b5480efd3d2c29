"""The doctor: what is wrong with a bus or a run, told from what was found there. Pure: facts in, findings out."""
