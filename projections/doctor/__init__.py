"""The doctor: what is wrong with an installation or a run, told from what was found there. Pure: facts in, findings out."""
