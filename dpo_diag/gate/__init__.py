"""Rules over a run for CI. Reads diagnosis, outputs and review; nothing reads it.

rules       the YAML file, checked before anything is measured
subject     what a rule can be about, and the registry of these
subjects/   one file each: metric, tag, phrase, phrases, finding, gaming, behaviour, review
judged      the run, its baseline, and what rules read of them, computed when asked for
judge       outcomes, and JUnit XML
"""
