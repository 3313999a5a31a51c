"""Golden snapshots: what every command said before a change, number by number and sentence by sentence."""
