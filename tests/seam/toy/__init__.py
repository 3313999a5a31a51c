"""A plugin: one toy of every kind that can be added, each from one file. DPO_DIAG_PLUGINS=toy makes it known."""

from . import a_check, a_format, a_loss, a_metric, a_row_form, a_rule, a_section, a_tracker  # noqa: F401 - importing registers
