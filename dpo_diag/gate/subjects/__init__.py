"""The subjects of rules, one file each; each registers itself in dpo_diag.gate.subject.SUBJECTS."""
